//! The command line: flags, `--help`, and the checks that need to know the sale.

use crate::scenario::{Scenario, Wanted};
use crate::schedule::Pace;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Closed and open loop:
  In a closed loop (--rate 0), a new buyer arrives when another buyer leaves. This measures the server's capacity. In an
  open loop (--rate N), buyers arrive at a fixed rate, whether or not the server keeps up. Latency counts from the
  intended start of each request, so a stall of the server shows in every request that was due during the stall.

Examples:
  storm                                       buys every item of the sale at localhost:8080 at full speed
  storm --scenario crowd --users 100000       a hundred thousand buyers arrive within one second
  storm --live 8090 --duration 60             shows the run at http://127.0.0.1:8090/
  storm --scenario sold-out --rate 20000 --duration 60 --html report.html
  storm --scenario plan                       buys from every sale that GET /sales lists, until the last one closes
  storm --scenario opening --connections 5000 measures the opening of the next sale under 5,000 waiting connections
  storm --scenario retry --database-url 'host=/run/postgresql user=stampede dbname=stampede'

Exit codes:
  0  verified, no violation
  1  a violation, or the run could not be verified
  2  an invalid option, no server, or a file that cannot be written";

/// Generates load on a flash sale, measures it, and verifies every response
///
/// The number of items and the limit for each user are read from the server.
#[derive(Clone, Debug, Parser)]
#[command(version, after_long_help = EXAMPLES)]
pub struct StormOptions {
    /// Address of the server
    #[arg(default_value = "127.0.0.1:8080")]
    pub address: String,
    /// Behaviour of the buyers
    #[arg(long, value_enum, default_value = "chain")]
    pub scenario: Scenario,
    /// Checkouts name no item: buyers take any free one
    #[arg(long)]
    pub any: bool,
    /// Checkouts name this product and no item: buyers take any free unit of it
    #[arg(long, value_name = "ID", conflicts_with = "any", value_parser = product_id)]
    pub product: Option<String>,
    /// Buyers per second (open loop); 0 sends as fast as the server responds (closed loop)
    ///
    /// The default depends on the scenario: all users within one second for `crowd`, 100 for `trickle`, 1000 for `plan`, 0
    /// otherwise. `opening` has a schedule of its own.
    #[arg(long)]
    pub rate: Option<u32>,
    /// Number of user ids; in `crowd`, also the number of buyers; in `opening`, each connection has one
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(i64).range(1..))]
    pub users: i64,
    /// Number of connections, each with at most one request in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Maximum seconds in which buyers arrive; buyers who have started may finish
    ///
    /// The default is 10. With `plan`, it is the time until the last sale that was known at the start closes, and with
    /// `opening` the time until 10 s after the opening.
    #[arg(long)]
    pub duration: Option<u64>,
    /// Seed of the random choices; the same seed gives the same buyers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds after which a request times out (the server times out after 10)
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Accept more sold items than this run bought, because other clients buy at the same time
    #[arg(long)]
    pub others_buy: bool,
    /// Number of acknowledged purchases to repeat at the end
    #[arg(long, default_value_t = 1000)]
    pub sample: usize,
    /// Compare the responses with the rows of this database: a libpq connection string, without TLS
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Seconds to wait for rows that are not yet in the database
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// Write the report as JSON to this file; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as an HTML page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the plot of latency by percentile as an SVG image to this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Show the report as a web page during the run, at http://127.0.0.1:PORT/
    ///
    /// The page shows the progress of the run each second, and at the end the report. With ADDRESS:PORT, it is served
    /// on that address. With port 0, the system chooses a free port. The URL is printed on standard error.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = live_address)]
    pub live: Option<SocketAddr>,
    /// File for unexpected responses and their requests; created when there is one
    #[arg(long, value_name = "FILE", default_value = "storm-unexpected.txt")]
    pub unexpected: PathBuf,
    /// Maximum number of unexpected responses to save; the rest are only counted
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub unexpected_max: u64,
}

/// Parses a port of the loopback interface, or an address with a port.
fn live_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map(|port: u16| ([127, 0, 0, 1], port).into());
    port.or_else(|_| text.parse())
        .map_err(|_| "give a port, like 8090, or ADDRESS:PORT, like 192.0.2.1:8090".to_owned())
}

/// Accepts an id that a query can contain without encoding.
fn product_id(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_id = !text.is_empty() && text.bytes().all(is_plain);
    if is_id { Ok(text.to_owned()) } else { Err("give the id of a product, as in the plan of the sale".to_owned()) }
}

impl StormOptions {
    /// Returns what checkouts ask for.
    pub fn wanted(&self) -> Wanted {
        match (&self.product, self.any) {
            (Some(id), _) => Wanted::Product(id.clone()),
            (None, true) => Wanted::AnyUnit,
            (None, false) => Wanted::Item,
        }
    }

    /// Resolves the address of the server.
    ///
    /// # Errors
    /// Returns a message with the remedy if the argument is not `HOST:PORT` or the host is unknown.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let remedy = "give HOST:PORT, like 127.0.0.1:8080";
        let mut found =
            self.address.to_socket_addrs().map_err(|error| format!("{}: {error}; {remedy}", self.address))?;
        found.next().ok_or_else(|| format!("{}: no such host; {remedy}", self.address))
    }

    /// Returns the pace of arrivals: the given rate, or the default of the scenario.
    pub fn pace(&self) -> Pace {
        let default = match self.scenario {
            Scenario::Crowd => u32::try_from(self.users).unwrap_or(u32::MAX),
            Scenario::Trickle => 100,
            Scenario::Plan => 1000,
            Scenario::Chain | Scenario::Hoarders | Scenario::Retry | Scenario::SoldOut | Scenario::Opening => 0,
        };
        match self.rate.unwrap_or(default) {
            0 => Pace::Closed,
            rate => Pace::Open { rate },
        }
    }

    /// Returns a title of the run: the scenario, and the address of the server.
    pub fn title(&self) -> String {
        format!("{}, {}", self.scenario.name(), self.address)
    }

    /// Returns the time after which a request times out.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Checks the options against a sale of `items` items with a limit of `limit` items for each user, and raises the
    /// limit on open files if the connections need more.
    ///
    /// # Errors
    /// Returns a message with the option and the remedy if a chain has too few users to buy every item, if an option does
    /// not apply to the scenario, or if the limit on open files cannot be raised.
    pub fn check(&self, items: u32, limit: u32) -> Result<(), String> {
        let users_needed = i64::from(items.div_ceil(limit.max(1)));
        if self.scenario == Scenario::Chain && self.users < users_needed {
            let users = self.users;
            return Err(format!(
                "--users {users}: {items} items at {limit} for each user need at least {users_needed} users"
            ));
        }
        let has_own_choice = self.any || self.product.is_some();
        if self.scenario == Scenario::Plan && has_own_choice {
            return Err("--any, --product: the buyers of --scenario plan buy by product and by any unit".to_owned());
        }
        if self.scenario == Scenario::Opening && self.rate.is_some() {
            return Err("--rate: --scenario opening has a schedule of its own; leave the option out".to_owned());
        }
        let files_needed = u64::from(self.connections) + 64;
        let limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < files_needed) {
            let more = Rlimit { current: Some(files_needed), maximum: limit.maximum };
            let remedy = "use fewer connections, or raise the limit with ulimit -n";
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

    fn options(arguments: &[&str]) -> StormOptions {
        StormOptions::parse_from([&["storm"], arguments].concat())
    }

    #[test]
    fn rate_overrides_the_default_pace_of_each_scenario() {
        assert_eq!(options(&[]).pace(), Pace::Closed);
        assert_eq!(options(&["--scenario", "crowd", "--users", "500"]).pace(), Pace::Open { rate: 500 });
        assert_eq!(options(&["--scenario", "trickle"]).pace(), Pace::Open { rate: 100 });
        assert_eq!(options(&["--scenario", "crowd", "--rate", "0"]).pace(), Pace::Closed);
        assert_eq!(options(&["--rate", "7"]).pace(), Pace::Open { rate: 7 });
    }

    #[test]
    fn the_live_page_is_local_unless_an_address_is_given() {
        let live = |text| options(&["--live", text]).live.map(|address| address.to_string());
        assert_eq!(live("8090").as_deref(), Some("127.0.0.1:8090"));
        assert_eq!(live("0.0.0.0:8090").as_deref(), Some("0.0.0.0:8090"));
        assert_eq!(live("[::1]:0").as_deref(), Some("[::1]:0"));
        assert_eq!(options(&[]).live, None);
    }

    #[test]
    fn checkouts_ask_for_an_item_any_unit_or_a_product() {
        assert_eq!(options(&[]).wanted(), Wanted::Item);
        assert_eq!(options(&["--any"]).wanted(), Wanted::AnyUnit);
        assert_eq!(options(&["--product", "aurora-38"]).wanted(), Wanted::Product("aurora-38".to_owned()));
        for wrong in [&["--product", "a&b"][..], &["--product", ""], &["--product", "a", "--any"]] {
            let error = StormOptions::try_parse_from([&["storm"], wrong].concat()).unwrap_err().to_string();
            assert!(error.contains("--product"), "{error}");
        }
    }

    #[test]
    fn errors_name_the_option_and_the_remedy() {
        let error = options(&["--users", "99"]).check(1000, 10).unwrap_err();
        assert!(error.contains("--users 99") && error.contains("100 users"), "{error}");
        assert_eq!(options(&["--users", "100"]).check(1000, 10), Ok(()));
        for (wrong, option) in [
            (&["--scenario", "plan", "--any"][..], "--any"),
            (&["--scenario", "plan", "--product", "a"], "--product"),
            (&["--scenario", "opening", "--rate", "5"], "--rate"),
        ] {
            let error = options(wrong).check(1000, 10).unwrap_err();
            assert!(error.contains(option), "{error}");
        }
        let error = StormOptions::try_parse_from(["storm", "--live", "80800"]).unwrap_err().to_string();
        assert!(error.contains("--live") && error.contains("give a port"), "{error}");
        assert!(options(&["no address"]).address().unwrap_err().contains("HOST:PORT"));
    }
}
