//! `storm`: a crowd for a sale, on one thread. Buyers come one after the other over a set of connections: closed loop,
//! as fast as they are answered, or open loop at a set rate, where latency counts from when a buyer meant to ask.

mod connection;
mod scenario;
mod tally;

use clap::Parser;
use connection::Connection;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use scenario::{Buyers, Scenario, Step};
use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tally::Tally;

/// Sends a crowd to a flash sale, measures it, and verifies what it was told.
#[derive(Parser)]
struct Settings {
    /// Where the sale is
    #[arg(default_value = "127.0.0.1:8080")]
    address: String,
    /// What buyers do
    #[arg(long, value_enum, default_value = "chain")]
    scenario: Scenario,
    /// Connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Names that buyers come under
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(i64).range(1..))]
    users: i64,
    /// Seconds, at most
    #[arg(long, default_value_t = 10)]
    duration: u64,
    /// Buyers a second; as fast as they are answered if 0
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// The same seed, the same buyers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    match Storm::start(&settings).and_then(|storm| storm.run(&settings)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: {error}");
            ExitCode::from(2)
        }
    }
}

/// A request in flight, and when it was wanted.
struct Wanted {
    step: Step,
    at: Instant,
}

struct Storm {
    address: SocketAddr,
    poll: OwnedFd,
    connections: Vec<(Connection, Option<Wanted>)>,
    idle: Vec<usize>,
    /// Buyers who wait for a connection.
    waiting: VecDeque<Wanted>,
    buyers: Buyers,
    has_buyers: bool,
    sold_before: u64,
    tally: Tally,
}

impl Storm {
    fn start(settings: &Settings) -> Result<Storm, Box<dyn Error>> {
        let address = settings.address.to_socket_addrs()?.next().ok_or("the address has no meaning")?;
        let sale = sale(address)?;
        let items = sale["items_total"].as_u64().ok_or("GET /sale does not say how many items there are")? as u32;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::new();
        for number in 0..settings.connections {
            let connection = Connection::open(address)?;
            epoll::add(&poll, connection.fd(), EventData::new_u64(number.into()), EventFlags::IN | EventFlags::ET)?;
            connections.push((connection, None));
        }
        Ok(Storm {
            address,
            poll,
            idle: (0..connections.len()).collect(),
            connections,
            waiting: VecDeque::new(),
            buyers: Buyers::new(settings.scenario, settings.users, items, settings.seed),
            has_buyers: true,
            sold_before: sale["sold"].as_u64().unwrap_or(0),
            tally: Tally::new(),
        })
    }

    /// Runs to the end, and reports. Returns whether everything is as it must be.
    fn run(mut self, settings: &Settings) -> Result<bool, Box<dyn Error>> {
        let start = Instant::now();
        let end = start + Duration::from_secs(settings.duration);
        let mut events = Vec::with_capacity(512);
        let mut arrived = 0u64;
        loop {
            let now = Instant::now();
            if now < end {
                arrived = self.let_in(settings.rate, start, now, arrived);
            } else {
                self.has_buyers = false;
                self.waiting.clear();
            }
            self.send_waiting()?;
            if !self.has_buyers && self.waiting.is_empty() && self.idle.len() == self.connections.len() {
                break;
            }
            events.clear();
            let timeout = Timespec { tv_sec: 0, tv_nsec: if settings.rate > 0 { 200_000 } else { 20_000_000 } };
            epoll::wait(&self.poll, spare_capacity(&mut events), Some(&timeout))?;
            let now = Instant::now();
            for event in &events {
                self.receive(event.data.u64() as usize, start, now)?;
            }
        }
        self.report(settings, start.elapsed())
    }

    /// Lets buyers in: at a rate those whose time has come, else as many as there are connections for.
    fn let_in(&mut self, rate: u32, start: Instant, now: Instant, mut arrived: u64) -> u64 {
        while self.has_buyers {
            let at = if rate == 0 { now } else { start + Duration::from_secs_f64(arrived as f64 / f64::from(rate)) };
            if at > now || (rate == 0 && self.waiting.len() >= self.idle.len()) {
                break;
            }
            match self.buyers.arrive() {
                Some(step) => self.waiting.push_back(Wanted { step, at }),
                None => self.has_buyers = false,
            }
            arrived += 1;
        }
        arrived
    }

    fn send_waiting(&mut self) -> Result<(), Box<dyn Error>> {
        while let (Some(&place), Some(_)) = (self.idle.last(), self.waiting.front()) {
            self.idle.pop();
            let wanted = self.waiting.pop_front().expect("there is a front");
            self.send(place, wanted)?;
        }
        Ok(())
    }

    fn send(&mut self, place: usize, wanted: Wanted) -> Result<(), Box<dyn Error>> {
        let request = format!("POST {} HTTP/1.1\r\nHost: sale\r\n\r\n", wanted.step.target());
        let (connection, flying) = &mut self.connections[place];
        *flying = Some(wanted);
        Ok(connection.send(request.as_bytes())?)
    }

    fn receive(&mut self, place: usize, start: Instant, now: Instant) -> Result<(), Box<dyn Error>> {
        let (connection, flying) = &mut self.connections[place];
        let Some(response) = connection.receive()? else { return Ok(()) };
        let wanted = flying.take().ok_or("an answer to nothing")?;
        self.tally.count(&wanted.step, &response, now - start, now - wanted.at);
        match self.buyers.answered(wanted.step, response.status, &response.body) {
            Some(step) => self.send(place, Wanted { step, at: now }),
            None => {
                self.idle.push(place);
                Ok(())
            }
        }
    }

    fn report(mut self, settings: &Settings, took: Duration) -> Result<bool, Box<dyn Error>> {
        let sale = sale(self.address)?;
        let sold = sale["sold"].as_u64().unwrap_or(0) - self.sold_before;
        if sold != self.tally.bought.len() as u64 {
            let told = self.tally.bought.len();
            self.tally.violations.push(format!("{told} purchases were acknowledged, and GET /sale counts {sold}"));
        }
        let Tally { outcomes, latencies, violations, last_purchase, bought } = &self.tally;
        let percentiles: BTreeMap<_, _> = latencies
            .iter()
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(kind, histogram)| {
                let at = |quantile| histogram.value_at_quantile(quantile);
                (kind, serde_json::json!({ "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": histogram.max() }))
            })
            .collect();
        let rate = self.tally.answers() as f64 / took.as_secs_f64();
        let report = serde_json::json!({
            "scenario": format!("{:?}", settings.scenario), "connections": settings.connections, "rate": settings.rate,
            "seconds": took.as_secs_f64(), "answers_per_second": rate.round(), "bought": bought.len(),
            "last_purchase_s": last_purchase.as_secs_f64(), "outcomes": outcomes, "latencies": percentiles,
            "violations": violations,
        });
        if settings.json {
            println!("{report}");
        } else {
            println!("{report:#}");
        }
        Ok(violations.is_empty())
    }
}

/// How the sale stands.
fn sale(address: SocketAddr) -> Result<serde_json::Value, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /sale HTTP/1.1\r\nHost: sale\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").ok_or("GET /sale has no answer")?.1;
    Ok(serde_json::from_str(body)?)
}
