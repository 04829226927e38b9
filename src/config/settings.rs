//! Reads the settings from their sources, and validates them into a [`Config`].
//!
//! Each setting is taken from the first of these that has it:
//!
//! 1. its flag;
//! 2. its variables in the order of the table. Each variable is looked up in the environment, and then in the env file;
//! 3. its default.
//!
//! A variable with an empty value counts as not set. In the environment, it also hides the same variable in the file. A
//! value that is not UTF-8 is an error, and not a reason to use another source.

use crate::config::database_url::DatabaseUrl;
use crate::config::flags::SETTINGS;
use crate::config::raw_setting::{BadSetting, RawSetting};
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::code::ITEMS_MAX;
use crate::sale::parts::ENDED_MAX;
use crate::sale::rules::{Ack, HOLD_MAX, PERIOD_MAX, Rules};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use strum::{Display, EnumString};

/// Maximum number of shards.
pub const SHARDS_MAX: u16 = 256;
/// Maximum of the limits of connections.
const CONNECTIONS_MAX: u64 = 10_000_000;
/// Settings of the sales without a plan.
const REPLACED: [&str; 5] = ["items", "user-limit", "sale-period", "reservation-ttl", "extension"];
/// Longest time of `--keep-sales` and `--keep-attempts`.
const KEEP_MAX: Duration = Duration::from_secs(36_500 * 86_400);
/// Default of `--receipts`, unless four sale periods are shorter.
const RECEIPTS: Duration = Duration::from_secs(3600);
/// Minimum and maximum of `--standby-heartbeat`.
const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);
/// Maximum of `--standby-patience`.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// Maximum of the drain delay and of the drain timeout.
const DRAIN_MAX: Duration = Duration::from_secs(3600);
/// Minimum and maximum of the idle timeout. Connections are checked about once a second, and answers state the timeout
/// in whole seconds.
const IDLE_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Format of log lines.
#[derive(Clone, Copy, Debug, Display, EnumString, PartialEq, Eq)]
#[strum(serialize_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Side that is used at start if the data directory and the database contradict each other.
#[derive(Clone, Copy, Debug, Display, EnumString, PartialEq, Eq)]
#[strum(serialize_all = "lowercase")]
pub enum RecoverFrom {
    /// The log, or the database if the data directory is empty. A contradiction is refused.
    Auto,
    /// The log. Records that the database lacks and that the log no longer has stay missing in the database.
    Log,
    /// The database. A contradicting log is moved to `set-aside-N`.
    Postgres,
}

/// Validated settings of the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address of the public API.
    pub listen: SocketAddr,
    /// Address of the admin port.
    pub admin_listen: SocketAddr,
    /// Host names under which the admin port answers, in addition to IP addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// Number of shards. `None`: derived from the CPUs.
    pub shards: Option<u16>,
    /// Directory of the log.
    pub data_dir: PathBuf,
    /// The sales without a plan.
    pub sales: PeriodicSale,
    /// The plan.
    pub plan: Option<LoadedPlan>,
    /// Settings of the rules, with the sales of the plan, or those without one, as the schedule.
    pub rules: Rules,
    /// Disk space for the logs of all shards together, in bytes.
    pub log_budget: u64,
    /// Database to which records are persisted. Its `Debug` form has no password.
    pub database: Option<DatabaseUrl>,
    /// Side that is used if the database and the log contradict each other.
    pub recover_from: RecoverFrom,
    /// Maximum number of client connections. `None`: derived from the descriptor limit.
    pub max_connections: Option<u32>,
    /// Maximum number of connections of one client address. 0: no limit.
    pub max_connections_per_address: u32,
    /// Time after which a connection without a request is closed.
    pub idle_timeout: Duration,
    /// Whether the shard on the CPU where a connection arrives gets it.
    pub steers_by_cpu: bool,
    /// Origins of web pages that may use the API, such as `https://shop.example`, or `*` for every origin.
    pub cors_origins: Vec<String>,
    /// Whether there is a page to buy from.
    pub has_shop: bool,
    /// Time for which the server still sells after a signal to stop.
    pub drain_delay: Duration,
    /// Maximum time for the rest of the stop.
    pub drain_timeout: Duration,
    /// Path of the env file.
    pub env_file: String,
    /// Whether the env file exists and sets a variable.
    pub has_env_file: bool,
    /// Whether `--ack` is set, and not its default.
    pub is_ack_given: bool,
    /// Times of a pair of servers, with `--standby`.
    pub pair: Option<PairTimes>,
    /// How long rows are kept in Postgres.
    pub keep: Keep,
    /// Format of log lines. `None`: derived from standard error.
    pub log_format: Option<LogFormat>,
}

/// Times of two servers that share a database, of which one sells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairTimes {
    /// Time between two reports of the selling server to the database.
    pub heartbeat: Duration,
    /// Time without a report after which the selling server promises nothing, and the other one takes over.
    pub patience: Duration,
}

/// How long rows are kept in Postgres. Zero: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Rows of a sale.
    pub sales: Duration,
    /// Refused checkouts.
    pub attempts: Duration,
}

/// Sources of raw values.
pub struct Sources<'a> {
    /// Values of flags, by the name of the flag.
    pub flags: BTreeMap<&'static str, String>,
    /// Lookup of a variable in the environment.
    pub environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// Path of the env file.
    pub env_file: String,
    /// Variables in the env file.
    pub in_file: BTreeMap<String, String>,
    /// The plan in the file of [`plan_path`](Self::plan_path), if it was read.
    pub plan: Option<LoadedPlan>,
}

impl Sources<'_> {
    /// Returns the path of the env file, which has more variables.
    ///
    /// # Errors
    /// The variable `ENV_FILE` is not UTF-8.
    pub fn env_file_path(&self) -> Result<String, BadSetting> {
        Ok(self.get("env-file")?.text)
    }

    /// Returns the path of the plan, if one is set.
    ///
    /// # Errors
    /// The variable `PLAN` is not UTF-8.
    pub fn plan_path(&self) -> Result<Option<String>, BadSetting> {
        Ok(self.given("plan")?.map(|raw| raw.text))
    }

    /// Checks that no setting contradicts the plan, which has the sales.
    fn check_replaced(&self) -> Result<(), BadSetting> {
        let Some(plan) = self.given("plan")? else { return Ok(()) };
        for flag in REPLACED {
            if let Some(RawSetting { origin, .. }) = self.given(flag)? {
                let plan = plan.origin;
                return Err(BadSetting(format!(
                    "{plan} and {origin} contradict each other: the plan has the sales and their terms; remove {origin}, \
                     or run without a plan"
                )));
            }
        }
        Ok(())
    }

    fn variable(&self, name: &str) -> Result<Option<RawSetting>, BadSetting> {
        let given = match (self.environment)(name).map(OsString::into_string) {
            Some(Ok(text)) => Some((text, String::new())),
            Some(Err(_)) => {
                return Err(BadSetting(format!("{name} is not UTF-8; set it to text in UTF-8, or unset it")));
            }
            None => self.in_file.get(name).map(|text| (text.clone(), format!(" in {}", self.env_file))),
        };
        // An empty value counts as not set: compose files and unit files pass variables without a value as empty ones.
        let given = given.filter(|(text, _)| !text.is_empty());
        Ok(given.map(|(text, place)| RawSetting { text, origin: format!("{name}{place}") }))
    }

    /// Returns the first of these variables that is set.
    fn first_of(&self, names: &[&str]) -> Result<Option<RawSetting>, BadSetting> {
        // Errors count as found.
        let found = names.iter().map(|name| self.variable(name)).find(|found| !matches!(found, Ok(None)));
        found.unwrap_or(Ok(None))
    }

    /// Returns the value of a setting, unless it is not set.
    fn given(&self, flag: &str) -> Result<Option<RawSetting>, BadSetting> {
        let setting = SETTINGS.iter().find(|setting| setting.flag == flag).expect("the setting is in the table");
        match self.flags.get(flag) {
            Some(text) => Ok(Some(RawSetting { text: text.clone(), origin: format!("--{flag}") })),
            None => self.first_of(setting.variables),
        }
    }

    /// Returns the value of a setting that has a default.
    fn get(&self, flag: &str) -> Result<RawSetting, BadSetting> {
        let setting = SETTINGS.iter().find(|setting| setting.flag == flag).expect("the setting is in the table");
        assert!(!setting.default.starts_with('('), "a default in parentheses is no value");
        let default = || RawSetting { text: setting.default.into(), origin: format!("the default of --{flag}") };
        Ok(self.given(flag)?.unwrap_or_else(default))
    }

    fn database(&self) -> Result<Option<DatabaseUrl>, BadSetting> {
        let mut database = match (self.given("database-url")?, self.variable("DB_HOST")?) {
            // Do not repeat the value: it may contain a password.
            (Some(url), _) => DatabaseUrl::parse(&url.text).map_err(|why| {
                BadSetting(format!(
                    "{} cannot be read ({why}); give a URL like postgres://user@host:5432/name",
                    url.origin
                ))
            })?,
            (None, Some(host)) => self.database_from_parts(&host.text)?,
            (None, None) => return Ok(None),
        };
        if let Some(password) = self.variable("DB_PASSWORD")?.filter(|_| database.config.get_password().is_none()) {
            database.config.password(password.text);
        }
        Ok(Some(database))
    }

    fn database_from_parts(&self, host: &str) -> Result<DatabaseUrl, BadSetting> {
        let mut pairs = vec![("host".to_owned(), host.to_owned())];
        for (variable, keyword, default) in [
            ("DB_PORT", "port", ""),
            ("DB_USER", "user", "stampede"),
            ("DB_NAME", "dbname", "stampede"),
            ("DB_SSL_MODE", "sslmode", ""),
            ("DB_SSL_ROOT_CERT", "sslrootcert", ""),
        ] {
            let value = self.variable(variable)?.map_or(default.to_owned(), |raw| raw.text);
            pairs.extend(Some((keyword.to_owned(), value)).filter(|(_, value)| !value.is_empty()));
        }
        DatabaseUrl::from_pairs(pairs).map_err(|why| {
            BadSetting(format!("the database in DB_HOST and the other variables DB_* cannot be used ({why})"))
        })
    }

    /// Returns the sales.
    fn sales(&self) -> Result<PeriodicSale, BadSetting> {
        let period = self.get("sale-period")?;
        let period_s = period.duration(Duration::from_secs(1)..=PERIOD_MAX, "whole seconds")?;
        if period_s.subsec_nanos() != 0 {
            return Err(period.bad("a duration in whole seconds, like 30s or 1h"));
        }
        let ttl = self.get("reservation-ttl")?;
        let ttl_time = ttl.duration(Duration::from_millis(1)..=HOLD_MAX / 2, "milliseconds")?;
        let extension = self.get("extension")?.duration(Duration::ZERO..=HOLD_MAX / 2, "milliseconds")?;
        let holds = period_s * u32::from(ENDED_MAX);
        if ttl_time + extension > holds {
            let holds = humantime::format_duration(holds);
            let expected =
                format!("a time that ends within {ENDED_MAX} sale periods, with --extension at most {holds}");
            return Err(ttl.bad(&expected));
        }
        Ok(PeriodicSale {
            period_s: period_s.as_secs() as u32,
            items: self.get("items")?.number(1..=ITEMS_MAX.into())? as u32,
            user_limit: self.get("user-limit")?.number(1..=ITEMS_MAX.into())? as u32,
            ttl_ms: ttl_time.as_millis() as u32,
            extension_ms: extension.as_millis() as u32,
        })
    }

    /// Returns the time for which ended sales are remembered, at most `longest`. The `shortest` time from one sale to the
    /// next bounds the default.
    fn receipts(&self, shortest: Duration, longest: Duration) -> Result<Duration, BadSetting> {
        let given = self.given("receipts")?.map(|raw| raw.duration(Duration::ZERO..=longest, "milliseconds"));
        given.unwrap_or_else(|| Ok(RECEIPTS.min(shortest * 4)))
    }

    /// Returns how long rows are kept in Postgres.
    fn keep(&self) -> Result<Keep, BadSetting> {
        let time = |flag| self.get(flag)?.duration(Duration::ZERO..=KEEP_MAX, "seconds");
        Ok(Keep { sales: time("keep-sales")?, attempts: time("keep-attempts")? })
    }

    /// Returns the times of a pair of servers, if `--standby` is set.
    fn pair(&self, ack: Ack, recover_from: RecoverFrom) -> Result<Option<PairTimes>, BadSetting> {
        let (standby, given_heartbeat, given_patience) =
            (self.get("standby")?, self.get("standby-heartbeat")?, self.get("standby-patience")?);
        let heartbeat = given_heartbeat.duration(HEARTBEATS, "milliseconds")?;
        let patience = given_patience.duration(heartbeat * 2..=PATIENCE_MAX, "milliseconds")?;
        match standby.text.as_str() {
            "off" => Ok(None),
            // Such a server may promise something without the database, so its silence proves nothing.
            "on" if !ack.needs_database() => Err(standby.bad("--ack replicated or --ack postgres as well, or use off")),
            "on" if recover_from != RecoverFrom::Auto => Err(standby.bad("--recover-from auto as well, or use off")),
            "on" => Ok(Some(PairTimes { heartbeat, patience })),
            _ => Err(standby.bad("on or off")),
        }
    }

    /// Returns the origins of `--cors-origin`. A browser compares them letter by letter, so each must have the form that
    /// browsers send.
    fn origins(&self) -> Result<Vec<String>, BadSetting> {
        let Some(raw) = self.given("cors-origin")? else { return Ok(Vec::new()) };
        let is_origin = |origin: &str| {
            let authority = origin.strip_prefix("https://").or(origin.strip_prefix("http://"));
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
            origin == "*" || authority.is_some_and(|authority| !authority.is_empty() && authority.chars().all(is_plain))
        };
        let origins: Vec<String> = raw.text.split(',').map(|origin| origin.trim().to_owned()).collect();
        let are_valid = origins.iter().all(|origin| is_origin(origin));
        let expected = "origins in lower case without a path, separated by commas, like https://shop.example, or *";
        if are_valid { Ok(origins) } else { Err(raw.bad(expected)) }
    }

    /// Returns the names of `--admin-host`.
    fn admin_hosts(&self) -> Result<Vec<String>, BadSetting> {
        let Some(raw) = self.given("admin-host")? else { return Ok(Vec::new()) };
        let is_name =
            |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        let names: Vec<String> = raw.text.split(',').map(|name| name.trim().to_owned()).collect();
        let expected = "host names without a port, separated by commas, like shop-1.internal";
        if names.iter().all(is_name) { Ok(names) } else { Err(raw.bad(expected)) }
    }

    /// Returns an address. If neither its flag nor its variable is set, the first of the variables in `ports` sets the
    /// port.
    fn address(&self, flag: &str, variable: &str, ports: &[&str]) -> Result<SocketAddr, BadSetting> {
        let is_whole = self.flags.contains_key(flag) || self.variable(variable)?.is_some();
        let raw = self.get(flag)?;
        let mut address: SocketAddr =
            raw.text.parse().map_err(|_| raw.bad("an IP address and a port, like 0.0.0.0:8080 or [::]:8080"))?;
        if let Some(port) = self.first_of(ports)?.filter(|_| !is_whole) {
            address.set_port(port.number(0..=65535)? as u16);
        }
        Ok(address)
    }
}

impl Config {
    /// Reads all settings from the sources and validates them.
    ///
    /// # Errors
    /// The first invalid setting.
    pub fn new(sources: &Sources<'_>) -> Result<Config, BadSetting> {
        let get = |flag| sources.get(flag);
        let (database, given_ack) = (sources.database()?, get("ack")?);
        let ack: Ack = given_ack.choice("local, postgres or replicated")?;
        if ack.needs_database() && database.is_none() {
            return Err(given_ack.bad("--database-url as well, or use local"));
        }
        let given = get("recover-from")?;
        let recover_from = given.choice("auto, log or postgres")?;
        if recover_from == RecoverFrom::Postgres && database.is_none() {
            return Err(given.bad("--database-url as well, or use auto"));
        }
        let steering = get("steering")?;
        let steers_by_cpu = match steering.text.as_str() {
            "hash" => false,
            "cpu" => true,
            _ => return Err(steering.bad("hash or cpu")),
        };
        let shop = get("shop")?;
        let has_shop = match shop.text.as_str() {
            "on" => true,
            "off" => false,
            _ => return Err(shop.bad("on or off")),
        };
        let log_format = sources.given("log-format")?.map(|raw| raw.choice("text or json"));
        let shards = sources.given("shards")?.map(|raw| raw.number(1..=SHARDS_MAX.into()));
        let max_connections = sources.given("max-connections")?.map(|raw| raw.number(1..=CONNECTIONS_MAX));
        if sources.plan.is_some() {
            sources.check_replaced()?;
        }
        let sales = sources.sales()?;
        let (schedule, shortest, longest) = match sources.plan {
            None => {
                let period = Duration::from_secs(sales.period_s.into());
                (SaleSchedule::Periodic(sales), period, period * u32::from(ENDED_MAX))
            }
            Some(plan) => {
                let every = plan.series.iter().map(|series| series.every_ms).filter(|every_ms| *every_ms > 0).min();
                (SaleSchedule::Planned(plan.series), every.map_or(RECEIPTS, Duration::from_millis), PERIOD_MAX)
            }
        };
        let receipts_ms = sources.receipts(shortest, longest)?.as_millis() as u64;
        Ok(Config {
            listen: sources.address("listen", "LISTEN", &["PORT", "APP_PORT"])?,
            admin_listen: sources.address("admin-listen", "ADMIN_LISTEN", &["APP_METRICS_PORT"])?,
            admin_hosts: sources.admin_hosts()?,
            shards: shards.transpose()?.map(|shards| shards as u16),
            data_dir: get("data-dir")?.text.into(),
            sales,
            plan: sources.plan,
            rules: Rules { schedule, receipts_ms, ack },
            log_budget: get("log-budget")?.bytes(1 << 20..=1 << 50)?,
            database,
            recover_from,
            pair: sources.pair(ack, recover_from)?,
            keep: sources.keep()?,
            max_connections: max_connections.transpose()?.map(|connections| connections as u32),
            max_connections_per_address: get("max-connections-per-address")?.number(0..=CONNECTIONS_MAX)? as u32,
            idle_timeout: get("idle-timeout")?.duration(IDLE_TIMEOUTS, "milliseconds")?,
            steers_by_cpu,
            cors_origins: sources.origins()?,
            has_shop,
            drain_delay: get("drain-delay")?.duration(Duration::ZERO..=DRAIN_MAX, "milliseconds")?,
            drain_timeout: get("drain-timeout")?.duration(Duration::ZERO..=DRAIN_MAX, "milliseconds")?,
            env_file: sources.env_file.clone(),
            has_env_file: !sources.in_file.is_empty(),
            is_ack_given: sources.given("ack")?.is_some(),
            log_format: log_format.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::database_url::TlsMode;
    use crate::sale::ids::SaleId;
    use crate::sale::sale_schedule::SaleSeries;

    fn config(
        flags: &[(&'static str, &str)],
        environment: &[(&str, &str)],
        dotenv: &[(&str, &str)],
    ) -> Result<Config, String> {
        let look_up = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, text)| text.into());
        let sources = Sources {
            flags: flags.iter().map(|(flag, text)| (*flag, text.to_string())).collect(),
            environment: &look_up,
            env_file: ".env".into(),
            in_file: dotenv.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect(),
            plan: None,
        };
        Config::new(&sources).map_err(|bad| bad.to_string())
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let config = config(&[], &[], &[]).unwrap();
        assert_eq!(config.listen, "0.0.0.0:8080".parse().unwrap());
        let (period_s, items, user_limit, ttl_ms, ack) = (3600, 10_000, 10, 30_000, Ack::Local);
        let (extension_ms, receipts_ms) = (0, 3_600_000);
        let sales = PeriodicSale { period_s, items, user_limit, ttl_ms, extension_ms };
        assert_eq!(config.rules, Rules { schedule: SaleSchedule::Periodic(sales), receipts_ms, ack });
        assert_eq!((config.data_dir, config.log_budget), ("./data".into(), 1 << 30));
        assert_eq!((config.shards, config.max_connections, config.log_format), (None, None, None));
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file() {
        let items = |flags: &[(&'static str, &str)], env: &[(&str, &str)], file: &[(&str, &str)]| {
            config(flags, env, file).unwrap().sales.items
        };
        assert_eq!(items(&[("items", "1")], &[("ITEMS", "2")], &[("ITEMS", "3")]), 1);
        assert_eq!(items(&[], &[("ITEMS", "2"), ("APP_ITEM_NUMBER", "4")], &[("ITEMS", "3")]), 2);
        assert_eq!(items(&[], &[("APP_ITEM_NUMBER", "4")], &[]), 4);
        assert_eq!(items(&[], &[("ITEMS", "")], &[("ITEMS", "3")]), 10_000, "empty means not set");
        assert_eq!(items(&[], &[], &[("ITEMS", "3")]), 3);
    }

    #[test]
    fn the_port_alone_can_be_set() {
        let port =
            |flags: &[(&'static str, &str)], env: &[(&str, &str)]| config(flags, env, &[]).unwrap().listen.port();
        assert_eq!(port(&[], &[("PORT", "81")]), 81);
        assert_eq!(port(&[], &[("APP_PORT", "82")]), 82);
        assert_eq!(port(&[], &[("PORT", "81"), ("LISTEN", "1.2.3.4:5")]), 5);
        assert_eq!(port(&[("listen", "1.2.3.4:6")], &[("PORT", "81")]), 6);
        let admin = config(&[], &[("APP_METRICS_PORT", "83"), ("PORT", "81")], &[]).unwrap().admin_listen;
        assert_eq!(admin, "127.0.0.1:83".parse().unwrap());
    }

    #[test]
    fn errors_name_the_setting_the_value_and_the_remedy() {
        for (flag, text, parts) in [
            ("items", "0", ["--items", "\"0\"", "1 to 16777216"]),
            ("items", "many", ["--items", "\"many\"", "whole number"]),
            ("user-limit", "-1", ["--user-limit", "\"-1\"", "whole number"]),
            ("shards", "257", ["--shards", "\"257\"", "1 to 256"]),
            ("sale-period", "0s", ["--sale-period", "\"0s\"", "from 1s"]),
            ("sale-period", "1500ms", ["--sale-period", "\"1500ms\"", "whole seconds"]),
            ("reservation-ttl", "forever", ["--reservation-ttl", "\"forever\"", "like 30s"]),
            ("listen", "localhost", ["--listen", "\"localhost\"", "0.0.0.0:8080"]),
            ("log-budget", "5 stones", ["--log-budget", "\"5 stones\"", "512MiB"]),
            ("ack", "postgres", ["--ack", "\"postgres\"", "--database-url"]),
            ("ack", "replicated", ["--ack", "\"replicated\"", "--database-url"]),
            ("ack", "twice", ["--ack", "\"twice\"", "local, postgres or replicated"]),
            ("recover-from", "postgres", ["--recover-from", "\"postgres\"", "--database-url"]),
            ("recover-from", "luck", ["--recover-from", "\"luck\"", "auto, log or postgres"]),
            ("admin-host", "shop-1:8081", ["--admin-host", "\"shop-1:8081\"", "without a port"]),
            ("admin-host", "a,,b", ["--admin-host", "\"a,,b\"", "like shop-1.internal"]),
            ("log-format", "xml", ["--log-format", "\"xml\"", "text or json"]),
            ("max-connections", "0", ["--max-connections", "\"0\"", "from 1"]),
            (
                "max-connections-per-address",
                "many",
                ["--max-connections-per-address", "\"many\"", "from 0 to 10000000"],
            ),
            ("idle-timeout", "75", ["--idle-timeout", "\"75\"", "from 1s to 1h"]),
            ("idle-timeout", "999ms", ["--idle-timeout", "\"999ms\"", "from 1s to 1h"]),
            ("idle-timeout", "2h", ["--idle-timeout", "\"2h\"", "from 1s to 1h"]),
            ("steering", "left", ["--steering", "\"left\"", "hash or cpu"]),
            ("drain-delay", "2h", ["--drain-delay", "\"2h\"", "to 1h"]),
            ("drain-timeout", "soon", ["--drain-timeout", "\"soon\"", "like 30s"]),
        ] {
            let error = config(&[(flag, text)], &[], &[]).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let error = config(&[], &[], &[("PORT", "99999")]).unwrap_err();
        assert!(error.starts_with("PORT in .env is \"99999\""), "{error}");
        let error = config(&[], &[("DATABASE_URL", "postgres://x:secret@y:z/w")], &[]).unwrap_err();
        assert!(error.starts_with("DATABASE_URL cannot be read") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_value_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let refusal = |flags: &[(&'static str, &str)], bad: &str| {
            let environment = |name: &str| (name == bad).then(|| OsString::from_vec(b"/srv/\xff".to_vec()));
            let flags = flags.iter().map(|(flag, text)| (*flag, text.to_string())).collect();
            let (env_file, in_file) = (".env".into(), BTreeMap::new());
            let sources = Sources { flags, environment: &environment, env_file, in_file, plan: None };
            let paths = sources.env_file_path().and_then(|_| sources.plan_path());
            paths.and_then(|_| Config::new(&sources)).err().map(|bad| bad.to_string())
        };
        let variables = SETTINGS.iter().flat_map(|setting| setting.variables.iter().copied());
        let of_address = ["PORT", "APP_PORT", "APP_METRICS_PORT", "DB_HOST"];
        for name in variables.chain(of_address) {
            let refusal = refusal(&[], name).unwrap_or_else(|| panic!("{name} is ignored"));
            assert!(refusal.starts_with(&format!("{name} is not UTF-8")), "{refusal}");
        }
        assert!(refusal(&[("database-url", "postgres://h/n")], "DB_PASSWORD").unwrap().starts_with("DB_PASSWORD"));
        assert_eq!(refusal(&[("items", "5")], "ITEMS"), None, "the flag is used");
    }

    #[test]
    fn a_plan_replaces_the_settings_of_the_sales() {
        let first = PeriodicSale { period_s: 60, items: 3, user_limit: 1, ttl_ms: 1, extension_ms: 0 }.terms(SaleId(5));
        let series: &[_] = Box::leak(Box::new([SaleSeries { first, every_ms: 60_000, count: 9, layer: 0 }]));
        let plan = LoadedPlan { file: "shop.toml", plan: Box::leak(Box::default()), series };
        let with = |flags: &[(&'static str, &str)], variable: &str| {
            let environment = |name: &str| (name == variable).then(|| "7".into());
            let flags = flags.iter().map(|(flag, text)| (*flag, text.to_string())).collect();
            let (env_file, in_file) = (".env".into(), BTreeMap::new());
            Config::new(&Sources { flags, environment: &environment, env_file, in_file, plan: Some(plan) })
        };
        let planned = with(&[("plan", "shop.toml")], "").unwrap();
        assert_eq!(planned.rules.schedule, SaleSchedule::Planned(series));
        assert_eq!(planned.rules.receipts_ms, 240_000, "four times the time from one sale to the next");
        assert!(planned.to_string().contains("plan = shop.toml\nreceipts = 4m\n"), "{planned}");
        let refused = |flag| with(&[("plan", "shop.toml"), (flag, "7")], "").unwrap_err().to_string();
        for flag in REPLACED {
            assert!(refused(flag).starts_with(&format!("--plan and --{flag} contradict each other: ")), "{flag}");
        }
        let compatible = with(&[("plan", "shop.toml")], "APP_ITEM_NUMBER").unwrap_err().to_string();
        assert!(compatible.contains("remove APP_ITEM_NUMBER, or run without a plan"), "{compatible}");
    }

    #[test]
    fn the_database_can_be_given_whole_or_in_parts() {
        let database = |env: &[(&str, &str)]| config(&[], env, &[]).unwrap().database;
        assert_eq!(database(&[]), None);
        let whole = database(&[("DATABASE_URL", "postgres://u:p@h:7/n")]).unwrap();
        let parts = [("DB_HOST", "h"), ("DB_PORT", "7"), ("DB_USER", "u"), ("DB_PASSWORD", "p"), ("DB_NAME", "n")];
        assert_eq!(Some(whole), database(&parts));
        assert!(!format!("{:?}", database(&parts)).contains("\"p\""));
        let secure = database(&[("DB_HOST", "h"), ("DB_SSL_MODE", "verify-full"), ("DB_SSL_ROOT_CERT", "/r")]).unwrap();
        assert_eq!((secure.tls, secure.root_certificates), (TlsMode::VerifyFull, Some("/r".into())));
        let apart = database(&[("DATABASE_URL", "postgres://u@h:7/n"), ("DB_PASSWORD", "p")]);
        assert_eq!(apart, database(&parts), "the password can be outside the URL");
    }

    #[test]
    fn the_command_line_is_sound() {
        crate::config::flags::command().debug_assert();
    }
}
