//! A blocking client of the server, for the requests before and after the run.

use crate::buyer_socket::parse;
use crate::ledger::{LedgerEntry, PurchaseReceipt, PurchaseResponse, code_str};
use crate::recorder::problem_type;
use crate::verification::SaleSnapshot;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time limit for connecting and for each read.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A blocking connection to the server.
pub struct ServerClient {
    stream: TcpStream,
}

impl ServerClient {
    /// Connects to the server.
    ///
    /// # Errors
    /// Returns an I/O error if the connection fails.
    pub fn connect(address: SocketAddr) -> io::Result<ServerClient> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(ServerClient { stream })
    }

    /// Returns the state of the sale, from `GET /sale`.
    ///
    /// # Errors
    /// Returns an I/O error if the request fails or the body is not the state of a sale.
    pub fn sale(&mut self) -> io::Result<SaleSnapshot> {
        let (_, body) = self.request("GET /sale", "")?;
        serde_json::from_slice(&body).map_err(|error| {
            let text = String::from_utf8_lossy(&body);
            io::Error::new(
                ErrorKind::InvalidData,
                format!("the body of GET /sale is not the state of a sale ({error}): {text}"),
            )
        })
    }

    /// Returns the version of the server, from `GET /livez`, if the response contains one.
    pub fn version(&mut self) -> Option<String> {
        let (_, body) = self.request("GET /livez", "").ok()?;
        let json: serde_json::Value = serde_json::from_slice(&body).ok()?;
        json["version"].as_str().map(str::to_owned)
    }

    /// Repeats the purchase request of a reservation.
    ///
    /// # Errors
    /// Returns an I/O error if the request fails.
    pub fn purchase(&mut self, reservation: &LedgerEntry, has_key: bool) -> io::Result<PurchaseResponse> {
        let code = code_str(&reservation.code);
        let key = if has_key { format!("Idempotency-Key: {code}\r\n") } else { String::new() };
        let (status, body) = self.request(&format!("POST /purchase?code={code}"), &key)?;
        Ok(match (PurchaseReceipt::parse(&body), problem_type(&body)) {
            (Some(receipt), _) if status == 200 => PurchaseResponse::Bought(receipt),
            (_, Some(problem)) if status != 503 => PurchaseResponse::Refused(problem.to_owned()),
            _ => PurchaseResponse::Unknown,
        })
    }

    fn request(&mut self, line: &str, fields: &str) -> io::Result<(u16, Vec<u8>)> {
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
