//! The settings in force as text, for `--check-config`.

use crate::config::database_url::DatabaseUrl;
use crate::config::raw_setting::in_one_unit;
use crate::config::settings::{Config, PairTimes};
use std::fmt;

/// Formats the settings for `--check-config`, one per line.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Destructure without `..`, so that the compiler rejects a new setting that is not printed.
        let Config {
            listen,
            admin_listen,
            admin_hosts,
            shards,
            data_dir,
            sales,
            plan,
            rules,
            log_budget,
            database,
            recover_from,
            pair,
            keep,
            max_connections,
            max_connections_per_address,
            idle_timeout,
            steers_by_cpu,
            cors_origins,
            has_shop,
            drain_delay,
            drain_timeout,
            env_file,
            has_env_file: _,
            is_ack_given: _,
            log_format,
        } = self;
        let open = |value: Option<String>| value.unwrap_or_else(|| "auto".into());
        writeln!(f, "listen = {listen}")?;
        writeln!(f, "admin-listen = {admin_listen}")?;
        let listed = |names: &[String]| if names.is_empty() { "none".into() } else { names.join(",") };
        writeln!(f, "admin-host = {}", listed(admin_hosts))?;
        writeln!(f, "shards = {}", open(shards.map(|shards| shards.to_string())))?;
        writeln!(f, "data-dir = {}", data_dir.display())?;
        writeln!(f, "plan = {}", plan.map_or("none", |plan| plan.file))?;
        if plan.is_none() {
            writeln!(f, "items = {}", sales.items)?;
            writeln!(f, "user-limit = {}", sales.user_limit)?;
            writeln!(f, "sale-period = {}", in_one_unit(u64::from(sales.period_s) * 1000))?;
            writeln!(f, "reservation-ttl = {}", in_one_unit(sales.ttl_ms.into()))?;
            writeln!(f, "extension = {}", in_one_unit(sales.extension_ms.into()))?;
        }
        writeln!(f, "receipts = {}", in_one_unit(rules.receipts_ms))?;
        writeln!(f, "log-budget = {log_budget}")?;
        writeln!(f, "database = {}", database.as_ref().map_or("none".into(), DatabaseUrl::place))?;
        writeln!(f, "ack = {}", rules.ack)?;
        writeln!(f, "recover-from = {recover_from}")?;
        writeln!(f, "standby = {}", if pair.is_some() { "on" } else { "off" })?;
        if let Some(PairTimes { heartbeat, patience }) = pair {
            writeln!(f, "standby-heartbeat = {}", in_one_unit(heartbeat.as_millis() as u64))?;
            writeln!(f, "standby-patience = {}", in_one_unit(patience.as_millis() as u64))?;
        }
        writeln!(f, "keep-sales = {}", in_one_unit(keep.sales.as_millis() as u64))?;
        writeln!(f, "keep-attempts = {}", in_one_unit(keep.attempts.as_millis() as u64))?;
        writeln!(f, "max-connections = {}", open(max_connections.map(|connections| connections.to_string())))?;
        writeln!(f, "max-connections-per-address = {max_connections_per_address}")?;
        writeln!(f, "idle-timeout = {}", in_one_unit(idle_timeout.as_millis() as u64))?;
        writeln!(f, "steering = {}", if *steers_by_cpu { "cpu" } else { "hash" })?;
        writeln!(f, "cors-origin = {}", listed(cors_origins))?;
        writeln!(f, "shop = {}", if *has_shop { "on" } else { "off" })?;
        writeln!(f, "drain-delay = {}", in_one_unit(drain_delay.as_millis() as u64))?;
        writeln!(f, "drain-timeout = {}", in_one_unit(drain_timeout.as_millis() as u64))?;
        writeln!(f, "env-file = {env_file}")?;
        write!(f, "log-format = {}", open(log_format.map(|format| format.to_string())))
    }
}
