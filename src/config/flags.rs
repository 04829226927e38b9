//! The table of settings. Flags, variables, `--help`, the manual page, shell completions and the settings file of the
//! Debian package are generated from it. The file `settings` reads the values.

use clap::{Arg, ArgAction, Command};

/// Setting of the server.
pub struct Setting {
    /// Long flag, without dashes.
    pub flag: &'static str,
    /// Variables that set it. The first one that is set is used.
    pub variables: &'static [&'static str],
    /// Placeholder of the value in `--help`.
    pub value: &'static str,
    /// Default value. In parentheses it is a description, and the setting has no value by default.
    pub default: &'static str,
    /// Description in `--help`.
    pub help: &'static str,
}

/// All settings, in the order of `--help`.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    Setting { flag: "listen", variables: &["LISTEN"], value: "ADDRESS:PORT", default: "0.0.0.0:8080",
        help: "Address and port of the public API; port 0 takes a free port. PORT or APP_PORT sets only the port. Not \
            used if systemd passes sockets" },
    Setting { flag: "admin-listen", variables: &["ADMIN_LISTEN"], value: "ADDRESS:PORT", default: "127.0.0.1:8081",
        help: "Address and port of the dashboard and of /metrics for Prometheus; port 0 takes a free port. \
            APP_METRICS_PORT sets only the port. This port has no authentication" },
    Setting { flag: "admin-host", variables: &["ADMIN_HOST"], value: "NAMES",
        default: "(none: only IP addresses and localhost)",
        help: "Host names under which clients may address the admin port, separated by commas, besides IP addresses \
            and localhost. Requests with another name in Host are answered 421" },
    Setting { flag: "shards", variables: &["SHARDS"], value: "NUMBER",
        default: "(the number of CPUs that this process may use)",
        help: "Number of threads that serve clients. Each thread is pinned to its own CPU if there are enough CPUs" },
    Setting { flag: "data-dir", variables: &["DATA_DIR"], value: "PATH", default: "./data",
        help: "Directory of the log. It is created if it does not exist, and locked: one server at a time can use it" },
    Setting { flag: "plan", variables: &["PLAN"], value: "FILE",
        default: "(none: one sale after another, by the five settings that follow)",
        help: "File with the sales: when each opens and closes, under which terms, and what it sells. It is read at the \
            start and by an upgrade in place, and replaces --items, --user-limit, --sale-period, --reservation-ttl and \
            --extension. stampede plan check explains it" },
    Setting { flag: "items", variables: &["ITEMS", "APP_ITEM_NUMBER"], value: "NUMBER", default: "10000",
        help: "Number of items in each sale. A change applies from the next sale on" },
    Setting { flag: "user-limit", variables: &["USER_LIMIT", "APP_USER_LIMIT"], value: "NUMBER", default: "10",
        help: "Number of items that one user may hold and have bought together in a sale. A change applies from the \
            next sale on" },
    Setting { flag: "sale-period", variables: &["SALE_PERIOD"], value: "DURATION", default: "1h",
        help: "Length of a sale, in whole seconds. Sales begin at multiples of it since 1970-01-01 UTC: with 1h, on \
            every full hour. It cannot change for an existing data directory" },
    Setting { flag: "reservation-ttl", variables: &["RESERVATION_TTL"], value: "DURATION", default: "30s",
        help: "Time for which a checkout holds its item. Then the item is available again" },
    Setting { flag: "extension", variables: &["EXTENSION"], value: "DURATION", default: "0s",
        help: "Time by which a client can extend its hold once, by POST /checkout/extend; 0s: never" },
    Setting { flag: "receipts", variables: &["RECEIPTS"], value: "DURATION",
        default: "(1h, or four sale periods if that is shorter)",
        help: "Time after the end of a sale for which repeated requests with its codes and keys still get their \
            answers, and GET /sales/{id} shows it. Each sale that is remembered needs memory for its items" },
    Setting { flag: "log-budget", variables: &["LOG_BUDGET"], value: "BYTES", default: "1GiB",
        help: "Disk space for the logs of all shards, at least 1MiB for each shard. When it is used up, the server \
            removes records of ended sales, refused attempts first; if that is not enough, it refuses checkouts" },
    Setting { flag: "database-url", variables: &["DATABASE_URL"], value: "URL",
        default: "(none: only the log is written)",
        help: "PostgreSQL database to which every record is persisted, such as postgres://user@host/name. It can also \
            be set in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT" },
    Setting { flag: "ack", variables: &["ACK"], value: "local|postgres|replicated", default: "local",
        help: "What a 200 waits for. local: the flush to the local disk. postgres: that of a purchase also waits for the \
            commit in Postgres. replicated: those of checkouts, extensions and releases as well, and the commit for a \
            synchronous standby" },
    Setting { flag: "recover-from", variables: &["RECOVER_FROM"], value: "auto|log|postgres", default: "auto",
        help: "Which side is used at start if the log and Postgres contradict each other. auto: refuse to start. log \
            or postgres: use that side. If the data directory is empty, auto and postgres restore the sale from \
            Postgres" },
    Setting { flag: "standby", variables: &["STANDBY"], value: "on|off", default: "off",
        help: "Run as one of two servers that share a database: while the other one sells, wait and answer 503; sell in \
            its place when it has stopped or does not report. Set it on both, with --ack replicated or postgres. \
            --standby alone means on" },
    Setting { flag: "standby-heartbeat", variables: &["STANDBY_HEARTBEAT"], value: "DURATION", default: "500ms",
        help: "With --standby: time between two reports of the selling server to the database" },
    Setting { flag: "standby-patience", variables: &["STANDBY_PATIENCE"], value: "DURATION", default: "1500ms",
        help: "With --standby: time without a report after which the other server takes over, and the selling server \
            answers 503. At least twice --standby-heartbeat. That of the selling server counts on both" },
    Setting { flag: "keep-sales", variables: &["KEEP_SALES"], value: "DURATION", default: "0s",
        help: "Time after which the rows of a sale are dropped from Postgres, such as 400d; 0s: never" },
    Setting { flag: "keep-attempts", variables: &["KEEP_ATTEMPTS"], value: "DURATION", default: "0s",
        help: "Time after which the refused checkouts of a sale are dropped from Postgres, such as 30d; 0s: with the \
            sale" },
    Setting { flag: "max-connections", variables: &["MAX_CONNECTIONS"], value: "NUMBER",
        default: "(16384, or fewer if the descriptor limit is lower)",
        help: "Number of client connections at once. At this limit the connection that has been idle longest is closed \
            for a new one; if none is idle, the new one is answered 503 and closed" },
    Setting { flag: "max-connections-per-address", variables: &["MAX_CONNECTIONS_PER_ADDRESS"], value: "NUMBER",
        default: "0",
        help: "Number of connections at once from one IPv4 address or one /64 network of IPv6; 0: no limit. Further \
            connections are answered 503 and closed. Behind a proxy all connections have its address: leave it at 0" },
    Setting { flag: "idle-timeout", variables: &["IDLE_TIMEOUT"], value: "DURATION", default: "75s",
        help: "Time after which a connection without a request is closed. Answers state it in the header Keep-Alive. A \
            proxy in front must close its idle connections earlier" },
    Setting { flag: "steering", variables: &["STEERING"], value: "hash|cpu", default: "hash",
        help: "Which shard gets a new connection. hash: any shard, by address and port. cpu: the shard on the CPU \
            where the connection arrived, for network cards that distribute connections over the CPUs" },
    Setting { flag: "cors-origin", variables: &["CORS_ORIGIN"], value: "ORIGINS",
        default: "(none: web pages of other origins cannot use the API)",
        help: "Origins of web pages that may use the API from a browser, separated by commas, such as \
            https://shop.example; * for every origin" },
    Setting { flag: "shop", variables: &["SHOP"], value: "on|off", default: "on",
        help: "Whether GET / is a page to buy from" },
    Setting { flag: "drain-delay", variables: &["DRAIN_DELAY"], value: "DURATION", default: "0s",
        help: "After a signal to stop: time for which the server still sells while /readyz already answers 503, so \
            that load balancers stop sending clients" },
    Setting { flag: "drain-timeout", variables: &["DRAIN_TIMEOUT"], value: "DURATION", default: "10s",
        help: "After the drain delay: maximum time to finish requests in flight, flush the log and persist it in \
            Postgres. Then the process exits, and the log keeps the records that are not persisted" },
    Setting { flag: "env-file", variables: &["ENV_FILE"], value: "PATH", default: ".env",
        help: "File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be \
            missing. ENV_FILE is read from the environment only" },
    Setting { flag: "log-format", variables: &["LOG_FORMAT"], value: "text|json",
        default: "(text on a terminal, otherwise json)",
        help: "Format of the log lines on standard error" },
];

/// Returns the command line that the table defines.
pub fn command() -> Command {
    let command = Command::new("stampede")
        .version(clap::crate_version!())
        .args_override_self(true)
        .about("Flash-sale server that never oversells and loses no acknowledged purchase.")
        .after_help(
            "Each setting is taken from its flag. Without a flag, it is taken from the first of its variables that \
             is set, in the order shown; each variable is looked up in the environment, and then in the file of \
             --env-file. Without a variable, the default is used. A variable that is set to an empty value counts \
             as not set; in the environment, it also hides the same variable in the file.\n\n\
             A DURATION is a number with a unit, such as 250ms, 30s or 1h. BYTES can have a unit, such as 512MiB \
             or 4GiB.",
        )
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Print the settings in force and exit: with code 0 if they are valid, with 2 if not"),
        );
    SETTINGS.iter().fold(command, |command, setting| command.arg(argument(setting)))
}

/// Returns the flag of a setting.
pub fn argument(setting: &Setting) -> Arg {
    let Setting { flag, variables, value, default, help } = *setting;
    let default = default.trim_matches(['(', ')']);
    let help = format!("{help} [env: {}] [default: {default}]", variables.join(", "));
    let argument = Arg::new(flag).long(flag).value_name(value).help(help);
    // A switch needs no value.
    if value == "on|off" { argument.num_args(0..=1).default_missing_value("on") } else { argument }
}
