//! A blocking client of the server, for the requests before and after the run.

use crate::buyer_socket::parse;
use crate::ledger::{LedgerEntry, PurchaseReceipt, PurchaseResponse, code_str};
use crate::recorder::problem_type;
use crate::sale_calendar::{CalendarSale, ProductSnapshot, SaleCalendar};
use crate::verification::SaleSnapshot;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time limit for connecting and for each read.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Number of sales or products that a page has at most.
const PAGE: usize = 200;

#[derive(Deserialize)]
struct SalesPage {
    sales: Vec<CalendarSale>,
}

#[derive(Deserialize)]
struct ProductsPage {
    products: Vec<ProductSnapshot>,
}

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
        self.get("/sale")
    }

    /// Returns the state of the sale with this id, from `GET /sales/{id}`.
    ///
    /// # Errors
    /// Returns an I/O error if the request fails or the server does not know the sale any more.
    pub fn sale_with_id(&mut self, sale: u64) -> io::Result<SaleSnapshot> {
        self.get(&format!("/sales/{sale}"))
    }

    /// Returns the sales that have not closed, with their products, from `GET /sales` and `GET /products`.
    ///
    /// # Errors
    /// Returns an I/O error if a request fails or a body is not a list of sales or products.
    pub fn calendar(&mut self) -> io::Result<SaleCalendar> {
        let mut sales: Vec<CalendarSale> = Vec::new();
        loop {
            let page: SalesPage = self.get(&format!("/sales?limit={PAGE}&offset={}", sales.len()))?;
            let is_last = page.sales.len() < PAGE;
            sales.extend(page.sales);
            if is_last {
                break;
            }
        }
        sales.retain(|sale| matches!(sale.phase.as_str(), "next" | "open"));
        sales.sort_by_key(|sale| sale.opens_s);
        for sale in &mut sales {
            sale.products = self.products(sale.before.sale_id)?.unwrap_or_default();
        }
        Ok(SaleCalendar { sales })
    }

    /// Returns the products of a sale, from `GET /products`. Returns `None` if the server has no plan, or has not kept the
    /// numbers of the sale.
    ///
    /// # Errors
    /// Returns an I/O error if a request fails or a body is not a list of products.
    pub fn products(&mut self, sale: u64) -> io::Result<Option<Vec<ProductSnapshot>>> {
        let mut products: Vec<ProductSnapshot> = Vec::new();
        loop {
            let path = format!("/products?sale_id={sale}&limit={PAGE}&offset={}", products.len());
            let (status, body) = self.request(&format!("GET {path}"), "")?;
            if matches!((status, problem_type(&body)), (404, Some("not-found")) | (409, Some("sale-ended"))) {
                return Ok(None);
            }
            let page: ProductsPage = parse_body(&path, &body)?;
            let is_last = page.products.len() < PAGE;
            products.extend(page.products);
            if is_last {
                return Ok(Some(products));
            }
        }
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> io::Result<T> {
        let (_, body) = self.request(&format!("GET {path}"), "")?;
        parse_body(path, &body)
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

fn parse_body<T: DeserializeOwned>(path: &str, body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        let text = String::from_utf8_lossy(body);
        io::Error::new(ErrorKind::InvalidData, format!("the body of GET {path} is not as expected ({error}): {text}"))
    })
}
