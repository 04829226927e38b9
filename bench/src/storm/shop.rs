//! The server, before and after the storm: questions one at a time, each waited for.

use crate::books::problem;
use crate::connection::parse;
use crate::ledger::{Receipt, Reservation, Told, spell};
use crate::verify::Sale;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that can be asked.
pub struct Shop {
    stream: TcpStream,
}

impl Shop {
    /// Connects.
    ///
    /// # Errors
    /// Of the network.
    pub fn visit(address: SocketAddr) -> io::Result<Shop> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Shop { stream })
    }

    /// How the sale stands.
    ///
    /// # Errors
    /// Of the network, or it does not say.
    pub fn sale(&mut self) -> io::Result<Sale> {
        let (_, body) = self.ask("GET /sale", "")?;
        serde_json::from_slice(&body).map_err(|error| {
            let text = String::from_utf8_lossy(&body);
            io::Error::new(
                ErrorKind::InvalidData,
                format!("GET /sale does not tell how the sale stands ({error}): {text}"),
            )
        })
    }

    /// Its version, if it says one.
    pub fn version(&mut self) -> Option<String> {
        let (_, body) = self.ask("GET /livez", "").ok()?;
        let json: serde_json::Value = serde_json::from_slice(&body).ok()?;
        json["version"].as_str().map(str::to_owned)
    }

    /// Asks once more for what was bought.
    ///
    /// # Errors
    /// Of the network.
    pub fn purchase(&mut self, reservation: &Reservation, has_key: bool) -> io::Result<Told> {
        let code = spell(&reservation.code);
        let key = if has_key { format!("Idempotency-Key: {code}\r\n") } else { String::new() };
        let (status, body) = self.ask(&format!("POST /purchase?code={code}"), &key)?;
        Ok(match (Receipt::read(&body), problem(&body)) {
            (Some(receipt), _) if status == 200 => Told::Bought(receipt),
            (_, Some(problem)) if status != 503 => Told::Refused(problem.to_owned()),
            _ => Told::Unknown,
        })
    }

    fn ask(&mut self, line: &str, fields: &str) -> io::Result<(u16, Vec<u8>)> {
        self.stream.write_all(format!("{line} HTTP/1.1\r\nHost: storm\r\n{fields}\r\n").as_bytes())?;
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => received.extend_from_slice(&buffer[..length]),
            }
            if let Some(response) = parse(&received)? {
                return Ok((response.status, response.body.to_vec()));
            }
        }
    }
}
