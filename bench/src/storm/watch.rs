//! Looks at the sale while the storm goes on: `GET /sale` on a connection of its own, again and again.

use crate::connection::Connection;
use crate::verify::Sale;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// The least time between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// So many looks are kept: after that, every other one is forgotten, and it looks half as often.
const LOOKS_MAX: usize = 2000;

/// What was seen, and when since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Duration,
    /// What.
    pub sale: Sale,
}

/// Somebody who watches.
pub struct Watch {
    address: SocketAddr,
    connection: Option<Connection>,
    is_waiting: bool,
    next: Duration,
    every: Duration,
    /// What was seen.
    pub looks: Vec<Look>,
}

impl Watch {
    /// Begins with how the sale stood at the start.
    pub fn new(address: SocketAddr, sale: Sale) -> Watch {
        let looks = vec![Look { at: Duration::ZERO, sale }];
        Watch { address, connection: None, is_waiting: false, next: Duration::ZERO, every: EVERY, looks }
    }

    /// Asks, if it is time. Returns the connection if it is a new one. A server that does not answer is asked again;
    /// buyers notice what is wrong with it.
    pub fn ask(&mut self, now: Duration) -> Option<&Connection> {
        if now < self.next {
            return None;
        }
        self.next = now + self.every;
        match &mut self.connection {
            Some(connection) => {
                if !self.is_waiting {
                    self.is_waiting = connection.send(b"GET /sale HTTP/1.1\r\nHost: storm\r\n\r\n").is_ok();
                }
                None
            }
            none => {
                self.is_waiting = false;
                *none = Connection::open(self.address).ok();
                none.as_ref()
            }
        }
    }

    /// Takes what came.
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
                    self.note(Look { at: now, sale });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(_) => self.connection = None,
        }
    }

    fn note(&mut self, look: Look) {
        self.looks.push(look);
        if self.looks.len() >= LOOKS_MAX {
            let mut place = 0;
            self.looks.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// What was seen last.
    pub fn latest(&self) -> Sale {
        self.looks.last().map(|look| look.sale).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_is_remembered_by_fewer_looks_over_all_of_it() {
        let mut watch = Watch::new(([127, 0, 0, 1], 1).into(), Sale::default());
        let day = Duration::from_secs(86_400);
        while watch.looks.last().unwrap().at < day {
            let at = watch.looks.last().unwrap().at + watch.every;
            watch.note(Look { at, sale: Sale::default() });
        }
        assert!(watch.looks.len() < LOOKS_MAX && watch.looks.len() >= LOOKS_MAX / 2 - 1);
        assert_eq!(watch.looks[0].at, Duration::ZERO);
        assert!(watch.looks.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert!(watch.every > EVERY);
    }
}
