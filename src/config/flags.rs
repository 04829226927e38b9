//! The table of settings: the source of the flags, of the variables, of `--help` and of error messages.

use clap::{Arg, ArgAction, Command};

/// One setting.
pub struct Setting {
    /// The long flag, without dashes.
    pub flag: &'static str,
    /// The variables that set it, the first one winning.
    pub variables: &'static [&'static str],
    /// What stands for the value in `--help`.
    pub value: &'static str,
    /// What applies when nothing is set; for people, if it starts with a parenthesis.
    pub default: &'static str,
    /// The sentence in `--help`.
    pub help: &'static str,
}

/// All settings, in the order of `--help`.
pub const SETTINGS: &[Setting] = &[
    Setting {
        flag: "listen",
        variables: &["LISTEN"],
        value: "ADDRESS:PORT",
        default: "0.0.0.0:8080",
        help: "Where to serve the public; port 0 takes a free one. PORT or APP_PORT set the port alone",
    },
    Setting {
        flag: "admin-listen",
        variables: &["ADMIN_LISTEN"],
        value: "ADDRESS:PORT",
        default: "127.0.0.1:8081",
        help: "Where to serve operators: /metrics for Prometheus; port 0 takes a free one. APP_METRICS_PORT sets the port alone",
    },
    Setting {
        flag: "shards",
        variables: &["SHARDS"],
        value: "NUMBER",
        default: "(CPUs this process may use)",
        help: "Threads that serve, each pinned to a CPU of its own if there are enough",
    },
    Setting {
        flag: "data-dir",
        variables: &["DATA_DIR"],
        value: "PATH",
        default: "./data",
        help: "Where the purchase log lives; one server at a time",
    },
    Setting {
        flag: "items",
        variables: &["ITEMS", "APP_ITEM_NUMBER"],
        value: "NUMBER",
        default: "10000",
        help: "Stock of each sale; applies from the next sale on",
    },
    Setting {
        flag: "user-limit",
        variables: &["USER_LIMIT", "APP_USER_LIMIT"],
        value: "NUMBER",
        default: "10",
        help: "Items that one user may hold and buy in a sale; applies from the next sale on",
    },
    Setting {
        flag: "sale-period",
        variables: &["SALE_PERIOD"],
        value: "DURATION",
        default: "1h",
        help: "Length of a sale, in whole seconds; sales begin at multiples of it since 1970, so 1h means on the hour",
    },
    Setting {
        flag: "reservation-ttl",
        variables: &["RESERVATION_TTL"],
        value: "DURATION",
        default: "30s",
        help: "How long a checkout holds its item",
    },
    Setting {
        flag: "log-budget",
        variables: &["LOG_BUDGET"],
        value: "BYTES",
        default: "1GiB",
        help: "Disk that the logs may use; of ended sales, refused attempts are removed first and purchases last",
    },
    Setting {
        flag: "database-url",
        variables: &["DATABASE_URL"],
        value: "URL",
        default: "(none: the log alone)",
        help: "PostgreSQL to persist to, like postgres://user@host/name. Or in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT",
    },
    Setting {
        flag: "ack",
        variables: &["ACK"],
        value: "local|postgres",
        default: "local",
        help: "What a purchase's 200 waits for: this machine's disk, or Postgres too",
    },
    Setting {
        flag: "recover-from",
        variables: &["RECOVER_FROM"],
        value: "auto|log|postgres",
        default: "auto",
        help: "Which wins if the log and Postgres contradict each other; auto refuses to start then, and takes the sale over from Postgres if the data directory is empty",
    },
    Setting {
        flag: "max-connections",
        variables: &["MAX_CONNECTIONS"],
        value: "NUMBER",
        default: "(16384, or what the descriptor limit allows)",
        help: "Connections served at once; more are answered 503 and closed",
    },
    Setting {
        flag: "steering",
        variables: &["STEERING"],
        value: "hash|cpu",
        default: "hash",
        help: "Which shard gets a new connection: any, by its address and port; or the one on the CPU where it arrived, for cards that spread connections over CPUs themselves",
    },
    Setting {
        flag: "drain-delay",
        variables: &["DRAIN_DELAY"],
        value: "DURATION",
        default: "0s",
        help: "After SIGTERM, how long to go on selling while /readyz says 503 already: until balancers send nobody here",
    },
    Setting {
        flag: "drain-timeout",
        variables: &["DRAIN_TIMEOUT"],
        value: "DURATION",
        default: "10s",
        help: "After that, how long the end may take: requests in flight, the flush, what Postgres lacks; then the process exits, and the log keeps the rest",
    },
    Setting {
        flag: "env-file",
        variables: &["ENV_FILE"],
        value: "PATH",
        default: ".env",
        help: "Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist",
    },
    Setting {
        flag: "log-format",
        variables: &["LOG_FORMAT"],
        value: "text|json",
        default: "(text on a terminal, else json)",
        help: "How log lines on standard error look",
    },
];

/// The command line, from the table.
pub fn command() -> Command {
    let command = Command::new("stampede")
        .version(clap::crate_version!())
        .args_override_self(true)
        .about("A flash-sale server: sells a limited stock exactly, durable before every 200.")
        .after_help(
            "Each setting is taken from its flag, else from the first of its variables in the environment, else from \
             the file that --env-file names, else from its default.",
        )
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Print the settings in force and exit: 0 if they are good, 2 if not"),
        );
    SETTINGS.iter().fold(command, |command, setting| command.arg(argument(setting)))
}

/// A setting as a flag.
pub fn argument(setting: &Setting) -> Arg {
    let Setting { flag, variables, value, default, help } = *setting;
    let default = default.trim_matches(['(', ')']);
    let help = format!("{help} [env: {}] [default: {default}]", variables.join(", "));
    Arg::new(flag).long(flag).value_name(value).help(help)
}
