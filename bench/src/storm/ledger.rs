//! What the storm was told: every reservation, and every different thing that was said about its purchase.

use std::collections::HashMap;

/// A code as it is spelt: 36 characters.
pub type Code = [u8; 36];

/// A code in words.
pub fn spell(code: &Code) -> &str {
    std::str::from_utf8(code).unwrap_or("a code that is no text")
}

/// What a purchase's 200 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The sale.
    pub sale: u64,
    /// The item.
    pub item: u32,
    /// All of it, as it came.
    pub text: Box<str>,
}

impl Receipt {
    /// From a response's body, if it is one.
    pub fn read(body: &[u8]) -> Option<Receipt> {
        let text = std::str::from_utf8(body).ok()?;
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        let item = u32::try_from(json["item_id"].as_u64()?).ok()?;
        (json["success"] == true).then_some(Receipt { sale: json["sale_id"].as_u64()?, item, text: text.into() })
    }
}

/// Something that was said about a purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It happened.
    Bought(Receipt),
    /// No, and why.
    Refused(String),
    /// Nothing, or 503: it may have happened.
    Unknown,
}

/// A checkout that was answered with a code.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// For whom.
    pub user: i64,
    /// Which item.
    pub item: u32,
    /// What buys it.
    pub code: Code,
    /// When the answer came, in milliseconds since 1970.
    pub told_ms: u64,
    /// Until when it is held, in milliseconds since 1970, where the answer says.
    pub expires_ms: Option<u64>,
    /// What was said about its purchase, without repetitions in a row.
    pub told: Vec<Told>,
}

impl Reservation {
    /// The first receipt.
    pub fn receipt(&self) -> Option<&Receipt> {
        self.told.iter().find_map(|told| if let Told::Bought(receipt) = told { Some(receipt) } else { None })
    }

    /// Whether it was said to be bought. Nobody else has the code, so `code-used` says that, too.
    pub fn is_bought(&self) -> bool {
        self.receipt().is_some() || self.told.iter().any(|told| *told == Told::Refused("code-used".to_owned()))
    }

    /// Whether it may be bought, for all that is known.
    pub fn is_unknown(&self) -> bool {
        !self.is_bought() && self.told.contains(&Told::Unknown)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Ledger {
    /// In the order in which they were told.
    pub reservations: Vec<Reservation>,
    bought: u64,
}

impl Ledger {
    /// Notes a reservation, and returns its place.
    pub fn reserve(&mut self, reservation: Reservation) -> usize {
        self.reservations.push(reservation);
        self.reservations.len() - 1
    }

    /// Notes what was said about the purchase of a reservation.
    pub fn tell(&mut self, place: usize, told: Told) {
        let reservation = &mut self.reservations[place];
        if reservation.told.last() != Some(&told) {
            let was_bought = reservation.is_bought();
            reservation.told.push(told);
            self.bought += u64::from(!was_bought && reservation.is_bought());
        }
    }

    /// How many reservations were said to be bought.
    pub fn bought(&self) -> u64 {
        self.bought
    }

    /// Those that were said to be bought, by the sale they belong to. `now` is the sale of those without a receipt.
    pub fn by_sale(&self, now: u64) -> HashMap<u64, Vec<&Reservation>> {
        let mut sales: HashMap<u64, Vec<&Reservation>> = HashMap::new();
        for reservation in self.reservations.iter().filter(|reservation| reservation.is_bought()) {
            sales.entry(reservation.receipt().map_or(now, |receipt| receipt.sale)).or_default().push(reservation);
        }
        sales
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIPT: &[u8] = br#"{"success":true,"message":"Purchase successful","sale_id":5,"item_id":42}"#;

    #[test]
    fn receipts_are_read_and_other_bodies_are_none() {
        let receipt = Receipt::read(RECEIPT).unwrap();
        assert_eq!((receipt.sale, receipt.item), (5, 42));
        for body in ["", "{}", r#"{"success":false,"sale_id":5,"item_id":42}"#, r#"{"success":true,"sale_id":5}"#] {
            assert_eq!(Receipt::read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_purchase_is_counted_once_however_it_is_told() {
        let mut ledger = Ledger::default();
        let reservation =
            Reservation { user: 1, item: 42, code: [b'a'; 36], told_ms: 0, expires_ms: None, told: Vec::new() };
        let place = ledger.reserve(reservation);
        ledger.tell(place, Told::Unknown);
        assert!(ledger.reservations[place].is_unknown());
        ledger.tell(place, Told::Refused("code-used".to_owned()));
        assert!(ledger.reservations[place].is_bought() && !ledger.reservations[place].is_unknown());
        let receipt = Receipt::read(RECEIPT).unwrap();
        ledger.tell(place, Told::Bought(receipt.clone()));
        ledger.tell(place, Told::Bought(receipt));
        assert_eq!((ledger.bought(), ledger.reservations[place].told.len()), (1, 3));
        assert_eq!(ledger.by_sale(9).keys().collect::<Vec<_>>(), [&5]);
    }
}
