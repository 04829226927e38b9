//! The ledger of a run: every reservation that the server granted, and the responses to the requests to purchase it.

use crate::sale_calendar::ServerSeconds;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// A code as text: the 36 characters of a UUID.
pub type CodeText = [u8; 36];

/// Returns the code as a string, for requests and messages.
pub fn code_str(code: &CodeText) -> &str {
    std::str::from_utf8(code).unwrap_or("a code that is not UTF-8")
}

/// The body of a 200 to a purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseReceipt {
    /// Sale id.
    pub sale: u64,
    /// Item id.
    pub item: u32,
    /// The whole body.
    pub text: Box<str>,
}

impl PurchaseReceipt {
    /// Parses the body of a response. Returns `None` if the body is not a receipt.
    pub fn parse(body: &[u8]) -> Option<PurchaseReceipt> {
        let text = std::str::from_utf8(body).ok()?;
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        let item = u32::try_from(json["item_id"].as_u64()?).ok()?;
        (json["success"] == true).then_some(PurchaseReceipt {
            sale: json["sale_id"].as_u64()?,
            item,
            text: text.into(),
        })
    }
}

/// A response to a purchase request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurchaseResponse {
    /// Confirmed.
    Bought(PurchaseReceipt),
    /// Refused, and the last part of the problem's type, such as `code-used`.
    Refused(String),
    /// None, or 503: the purchase may have happened.
    Unknown,
}

impl Display for PurchaseResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            PurchaseResponse::Bought(receipt) => write!(f, "the receipt {}", receipt.text),
            PurchaseResponse::Refused(why) => f.write_str(why),
            PurchaseResponse::Unknown => f.write_str("no result"),
        }
    }
}

/// The sale of a reservation in a run that follows a calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalendarGrant {
    /// Sale id.
    pub sale: u64,
    /// Index of the product in its sale. `None` if the calendar has no products.
    pub product: Option<usize>,
    /// Time at which the reservation was granted, by the server's clock.
    pub seconds: ServerSeconds,
}

/// The stock that a `sold-out` is about. The default is what all checkouts of a run without a calendar ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StockScope {
    /// Sale id.
    pub sale: Option<u64>,
    /// Index of the product in its sale. `None` is the whole sale.
    pub product: Option<usize>,
}

/// A granted reservation, and the responses to its purchase requests.
#[derive(Clone, Debug)]
pub struct LedgerEntry {
    /// User id.
    pub user: i64,
    /// Item id.
    pub item: u32,
    /// Code that purchases the item.
    pub code: CodeText,
    /// Time at which the code arrived, in milliseconds since the Unix epoch.
    pub received_ms: u64,
    /// Expiry of the hold, in milliseconds since the Unix epoch, if the response contained it.
    pub expires_ms: Option<u64>,
    /// What the response says of the sale, if the run follows a calendar.
    pub grant: Option<CalendarGrant>,
    /// Responses to the purchase requests, in order. Consecutive equal responses are stored once.
    pub responses: Vec<PurchaseResponse>,
}

impl LedgerEntry {
    /// Returns the first receipt.
    pub fn receipt(&self) -> Option<&PurchaseReceipt> {
        self.responses.iter().find_map(|response| match response {
            PurchaseResponse::Bought(receipt) => Some(receipt),
            PurchaseResponse::Refused(_) | PurchaseResponse::Unknown => None,
        })
    }

    /// Returns whether the purchase was acknowledged. `code-used` counts as an acknowledgement, because no other client
    /// has the code.
    pub fn is_bought(&self) -> bool {
        self.receipt().is_some()
            || self.responses.iter().any(|response| *response == PurchaseResponse::Refused("code-used".to_owned()))
    }

    /// Returns the sale of the receipt or, without one, of the checkout, if it is known.
    pub fn sale(&self) -> Option<u64> {
        self.receipt().map(|receipt| receipt.sale).or(self.grant.map(|grant| grant.sale))
    }

    /// Returns the stocks to which the item belongs: that of its product, and that of its sale.
    fn scopes(&self) -> [StockScope; 2] {
        let sale = self.grant.map(|grant| grant.sale);
        let product = self.grant.and_then(|grant| grant.product);
        [StockScope { sale, product: None }, StockScope { sale, product }]
    }

    /// Returns whether a purchase was requested and its result is unknown.
    pub fn is_unknown(&self) -> bool {
        !self.is_bought() && self.responses.contains(&PurchaseResponse::Unknown)
    }
}

/// All reservations of a run and the responses to their purchases.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Reservations, in the order in which their codes arrived.
    pub reservations: Vec<LedgerEntry>,
    /// Time of the first `sold-out` of each stock, from the start of the run.
    pub sold_out: BTreeMap<StockScope, Duration>,
    /// Indexes of reservations that were bought by a first request which was sent after a `sold-out` had arrived, and the
    /// stock that was sold out.
    pub bought_after_sold_out: Vec<(usize, StockScope)>,
    /// Refusals that are not allowed in the phase of their sale, and how often they came.
    pub out_of_phase: BTreeMap<String, u64>,
    bought: u64,
}

impl Ledger {
    /// Adds a reservation and returns its index.
    pub fn add_reservation(&mut self, reservation: LedgerEntry) -> usize {
        self.reservations.push(reservation);
        self.reservations.len() - 1
    }

    /// Adds a response to the purchase of the reservation at this index.
    pub fn add_response(&mut self, index: usize, response: PurchaseResponse) {
        let reservation = &mut self.reservations[index];
        if reservation.responses.last() != Some(&response) {
            let was_bought = reservation.is_bought();
            reservation.responses.push(response);
            self.bought += u64::from(!was_bought && reservation.is_bought());
        }
    }

    /// Notes that a checkout was refused at this time because this stock is sold out.
    pub fn add_sold_out(&mut self, scope: StockScope, at: Duration) {
        self.sold_out.entry(scope).or_insert(at);
    }

    /// Compares a 200 to the purchase of the reservation at this index with the first `sold-out` of its stock. `due_at` is
    /// at most the time at which its request was sent. Call it before `add_response`.
    pub fn compare_with_sold_out(&mut self, index: usize, due_at: Duration) {
        let reservation = &self.reservations[index];
        // A repeated request may confirm a purchase whose first response was lost.
        if !reservation.responses.is_empty() {
            return;
        }
        let is_late = |scope: &StockScope| self.sold_out.get(scope).is_some_and(|sold_out_at| due_at > *sold_out_at);
        if let Some(scope) = reservation.scopes().into_iter().find(is_late) {
            self.bought_after_sold_out.push((index, scope));
        }
    }

    /// Returns the number of acknowledged purchases.
    pub fn bought(&self) -> u64 {
        self.bought
    }

    /// Returns the acknowledged purchases by sale id. A purchase whose sale is not known is assigned to the sale `current`.
    pub fn by_sale(&self, current: u64) -> HashMap<u64, Vec<&LedgerEntry>> {
        let mut sales: HashMap<u64, Vec<&LedgerEntry>> = HashMap::new();
        for reservation in self.reservations.iter().filter(|reservation| reservation.is_bought()) {
            sales.entry(reservation.sale().unwrap_or(current)).or_default().push(reservation);
        }
        sales
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIPT: &[u8] = br#"{"success":true,"message":"Purchase successful","sale_id":5,"item_id":42}"#;

    #[test]
    fn receipts_are_parsed_and_other_bodies_are_not() {
        let receipt = PurchaseReceipt::parse(RECEIPT).unwrap();
        assert_eq!((receipt.sale, receipt.item), (5, 42));
        for body in ["", "{}", r#"{"success":false,"sale_id":5,"item_id":42}"#, r#"{"success":true,"sale_id":5}"#] {
            assert_eq!(PurchaseReceipt::parse(body.as_bytes()), None, "{body}");
        }
    }

    fn reservation() -> LedgerEntry {
        let (received_ms, expires_ms, grant, responses) = (0, None, None, Vec::new());
        LedgerEntry { user: 1, item: 42, code: [b'a'; 36], received_ms, expires_ms, grant, responses }
    }

    #[test]
    fn a_purchase_with_several_responses_is_counted_once() {
        let mut ledger = Ledger::default();
        let index = ledger.add_reservation(reservation());
        ledger.add_response(index, PurchaseResponse::Unknown);
        assert!(ledger.reservations[index].is_unknown());
        ledger.add_response(index, PurchaseResponse::Refused("code-used".to_owned()));
        assert!(ledger.reservations[index].is_bought() && !ledger.reservations[index].is_unknown());
        let receipt = PurchaseReceipt::parse(RECEIPT).unwrap();
        ledger.add_response(index, PurchaseResponse::Bought(receipt.clone()));
        ledger.add_response(index, PurchaseResponse::Bought(receipt));
        assert_eq!((ledger.bought(), ledger.reservations[index].responses.len()), (1, 3));
        assert_eq!(ledger.by_sale(9).keys().collect::<Vec<_>>(), [&5]);
    }

    #[test]
    fn a_purchase_that_was_sent_after_a_sold_out_is_noted() {
        let mut ledger = Ledger::default();
        let ms = Duration::from_millis;
        ledger.add_reservation(reservation());
        ledger.add_reservation(LedgerEntry { responses: vec![PurchaseResponse::Unknown], ..reservation() });
        let all = StockScope::default();
        ledger.compare_with_sold_out(0, ms(1));
        ledger.add_sold_out(all, ms(5));
        ledger.add_sold_out(all, ms(9));
        ledger.compare_with_sold_out(0, ms(4));
        ledger.compare_with_sold_out(1, ms(6));
        assert_eq!((ledger.sold_out[&all], ledger.bought_after_sold_out.len()), (ms(5), 0));
        ledger.compare_with_sold_out(0, ms(6));
        assert_eq!(ledger.bought_after_sold_out, [(0, all)]);
    }

    #[test]
    fn a_sold_out_is_about_its_sale_and_product() {
        let scope = |sale, product| StockScope { sale: Some(sale), product };
        for (sold_out, is_late) in [
            (scope(5, None), true),
            (scope(5, Some(1)), true),
            (scope(5, Some(0)), false),
            (scope(6, None), false),
            (scope(6, Some(1)), false),
        ] {
            let mut ledger = Ledger::default();
            let grant = CalendarGrant { sale: 5, product: Some(1), seconds: ServerSeconds::default() };
            ledger.add_reservation(LedgerEntry { grant: Some(grant), ..reservation() });
            ledger.add_sold_out(sold_out, Duration::from_millis(5));
            ledger.compare_with_sold_out(0, Duration::from_millis(6));
            assert_eq!(!ledger.bought_after_sold_out.is_empty(), is_late, "{sold_out:?}");
        }
    }
}
