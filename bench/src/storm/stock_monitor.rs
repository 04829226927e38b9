//! Samples the state of the sale during the run: `GET /sale` on a separate connection, at an interval.

use crate::buyer_socket::BuyerSocket;
use crate::verification::SaleSnapshot;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Initial interval between two samples.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Maximum number of samples. When it is reached, every other sample is dropped and the interval doubles.
const SAMPLES_MAX: usize = 2000;

/// A sample of the state of the sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StockSample {
    /// Time since the start of the run.
    pub at: Duration,
    /// State of the sale.
    pub sale: SaleSnapshot,
}

/// Samples `GET /sale`.
pub struct StockMonitor {
    address: SocketAddr,
    connection: Option<BuyerSocket>,
    is_waiting: bool,
    next: Duration,
    interval: Duration,
    /// Samples, oldest first.
    pub samples: Vec<StockSample>,
}

impl StockMonitor {
    /// Creates a monitor. Its first sample is the state of the sale before the run.
    pub fn new(address: SocketAddr, sale: SaleSnapshot) -> StockMonitor {
        let samples = vec![StockSample { at: Duration::ZERO, sale }];
        StockMonitor {
            address,
            connection: None,
            is_waiting: false,
            next: Duration::ZERO,
            interval: INTERVAL_MIN,
            samples,
        }
    }

    /// Requests a sample if one is due. Returns the connection if it is new, so that the caller can register it. Errors
    /// are ignored and the next sample is requested as usual, because the buyers' requests report errors of the server.
    pub fn poll(&mut self, now: Duration) -> Option<&BuyerSocket> {
        if now < self.next {
            return None;
        }
        self.next = now + self.interval;
        match &mut self.connection {
            Some(connection) => {
                if !self.is_waiting {
                    self.is_waiting = connection.send(b"GET /sale HTTP/1.1\r\nHost: storm\r\n\r\n").is_ok();
                }
                None
            }
            none => {
                self.is_waiting = false;
                *none = BuyerSocket::open(self.address).ok();
                none.as_ref()
            }
        }
    }

    /// Reads a response. `to_end` is set if the server may have closed the connection.
    pub fn receive(&mut self, now: Duration, to_end: bool) {
        let Some(connection) = &mut self.connection else { return };
        match connection.receive(to_end) {
            Ok(None) => {}
            Ok(Some(response)) => {
                let (sale, is_last) = (serde_json::from_slice(response.body).ok(), response.is_last);
                self.is_waiting = false;
                if is_last {
                    self.connection = None;
                }
                if let Some(sale) = sale {
                    self.add(StockSample { at: now, sale });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(_) => self.connection = None,
        }
    }

    fn add(&mut self, sample: StockSample) {
        self.samples.push(sample);
        if self.samples.len() >= SAMPLES_MAX {
            let mut place = 0;
            self.samples.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.interval *= 2;
        }
    }

    /// Returns the latest sample.
    pub fn latest(&self) -> SaleSnapshot {
        self.samples.last().map(|sample| sample.sale).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_fewer_samples_over_its_whole_time() {
        let mut monitor = StockMonitor::new(([127, 0, 0, 1], 1).into(), SaleSnapshot::default());
        let day = Duration::from_secs(86_400);
        while monitor.samples.last().unwrap().at < day {
            let at = monitor.samples.last().unwrap().at + monitor.interval;
            monitor.add(StockSample { at, sale: SaleSnapshot::default() });
        }
        assert!(monitor.samples.len() < SAMPLES_MAX && monitor.samples.len() >= SAMPLES_MAX / 2 - 1);
        assert_eq!(monitor.samples[0].at, Duration::ZERO);
        assert!(monitor.samples.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert!(monitor.interval > INTERVAL_MIN);
    }
}
