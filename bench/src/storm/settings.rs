//! Flags to settings, and `--help`.

use crate::scenario::Scenario;
use crate::schedule::Pace;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Closed and open loop:
  In a closed loop (--rate 0) a buyer comes when another leaves: it finds how much the server can do. In an open loop
  (--rate N) buyers come when they come, whether the server keeps up or not, and latency counts from the moment they
  meant to ask, so a stall shows in every buyer who came meanwhile.

Examples:
  storm                                       buys every item of the sale at localhost:8080, as fast as it can
  storm --scenario crowd --users 100000       a hundred thousand people within one second
  storm --scenario sold-out --rate 20000 --duration 60 --html report.html
  storm --scenario retry --database-url 'host=/run/postgresql user=stampede dbname=stampede'

Exit codes:
  0  everything is as it was told    1  a violation, or it could not be verified    2  a setting is wrong";

/// Sends a crowd to a flash sale, measures it, and verifies everything that it was told
///
/// How many items there are and how many one user may buy is read from the server.
#[derive(Clone, Debug, Parser)]
#[command(version, after_long_help = EXAMPLES)]
pub struct Settings {
    /// Where the sale is
    #[arg(default_value = "127.0.0.1:8080")]
    pub address: String,
    /// What buyers do
    #[arg(long, value_enum, default_value = "chain")]
    pub scenario: Scenario,
    /// Buyers a second (open loop); 0: as fast as they are answered (closed loop)
    ///
    /// By default what suits the scenario: all users within one second for `crowd`, 100 for `trickle`, else 0.
    #[arg(long)]
    pub rate: Option<u32>,
    /// Names that buyers come under; in `crowd`, how many buyers there are
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(i64).range(1..))]
    pub users: i64,
    /// Connections, each with at most one request in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Seconds in which buyers come, at most; whoever has begun may finish
    #[arg(long, default_value_t = 10)]
    pub duration: u64,
    /// The same seed, the same buyers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds after which a buyer hangs up (the server itself gives up after 10)
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Others buy meanwhile: the server may have sold more than this storm was told
    #[arg(long)]
    pub others_buy: bool,
    /// How many acknowledged codes to ask for again at the end
    #[arg(long, default_value_t = 1000)]
    pub sample: usize,
    /// Compare what was told with the rows of this database, as libpq would spell it (without TLS)
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Seconds to wait for rows that are on their way to the database
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// Write the report as JSON to this file; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the plot of latencies by percentile as a picture to this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Where unexpected answers go, with their requests; the file is made when there is one
    #[arg(long, value_name = "FILE", default_value = "storm-unexpected.txt")]
    pub unexpected: PathBuf,
    /// How many of them are saved; the rest are counted
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub unexpected_max: u64,
}

impl Settings {
    /// The server's address.
    ///
    /// # Errors
    /// It is no address.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let remedy = "give HOST:PORT, like 127.0.0.1:8080";
        let mut found =
            self.address.to_socket_addrs().map_err(|error| format!("{}: {error}; {remedy}", self.address))?;
        found.next().ok_or_else(|| format!("{}: no such host; {remedy}", self.address))
    }

    /// How fast buyers come.
    pub fn pace(&self) -> Pace {
        let default = match self.scenario {
            Scenario::Crowd => u32::try_from(self.users).unwrap_or(u32::MAX),
            Scenario::Trickle => 100,
            Scenario::Chain | Scenario::Hoarders | Scenario::Retry | Scenario::SoldOut => 0,
        };
        match self.rate.unwrap_or(default) {
            0 => Pace::Closed,
            rate => Pace::Open { rate },
        }
    }

    /// Until when buyers come, since the start.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.duration)
    }

    /// How long a buyer waits for an answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Finds out whether the settings make sense for a sale of `items` items, `limit` to a user.
    ///
    /// # Errors
    /// They do not: with the setting and the remedy.
    pub fn check(&self, items: u32, limit: u32) -> Result<(), String> {
        let users_needed = i64::from(items.div_ceil(limit.max(1)));
        if self.scenario == Scenario::Chain && self.users < users_needed {
            let users = self.users;
            return Err(format!(
                "--users {users}: at most {limit} items a user, {items} items need at least {users_needed} users"
            ));
        }
        let files_needed = u64::from(self.connections) + 64;
        let limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < files_needed) {
            let more = Rlimit { current: Some(files_needed), maximum: limit.maximum };
            let remedy = "use fewer, or raise it by ulimit -n";
            setrlimit(Resource::Nofile, more).map_err(|error| {
                format!("--connections {}: the limit on open files is too low ({error}); {remedy}", self.connections)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str]) -> Settings {
        Settings::parse_from([&["storm"], arguments].concat())
    }

    #[test]
    fn each_scenario_has_its_pace_and_rate_wins() {
        assert_eq!(settings(&[]).pace(), Pace::Closed);
        assert_eq!(settings(&["--scenario", "crowd", "--users", "500"]).pace(), Pace::Open { rate: 500 });
        assert_eq!(settings(&["--scenario", "trickle"]).pace(), Pace::Open { rate: 100 });
        assert_eq!(settings(&["--scenario", "crowd", "--rate", "0"]).pace(), Pace::Closed);
        assert_eq!(settings(&["--rate", "7"]).pace(), Pace::Open { rate: 7 });
    }

    #[test]
    fn settings_that_cannot_work_are_named_with_a_remedy() {
        let error = settings(&["--users", "99"]).check(1000, 10).unwrap_err();
        assert!(error.contains("--users 99") && error.contains("100 users"), "{error}");
        assert_eq!(settings(&["--users", "100"]).check(1000, 10), Ok(()));
        assert!(settings(&["no address"]).address().unwrap_err().contains("HOST:PORT"));
    }
}
