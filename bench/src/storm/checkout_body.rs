//! The body of a 200 to a checkout: the bare code, or JSON. A unit of another sale or product than the requested one counts
//! as no code.

use crate::ledger::CodeText;
use crate::sale_calendar::{SaleCalendar, UnitRequest};
use crate::scenario::Wanted;
use serde_json::Value;
use std::time::UNIX_EPOCH;

/// A granted checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckoutBody {
    /// Item id.
    pub item: u32,
    /// Code that purchases the item.
    pub code: CodeText,
    /// Expiry of the hold, in milliseconds since the Unix epoch, if the body contains it.
    pub expires_ms: Option<u64>,
    /// Sale id, and the index of the product in that sale, in a run with a calendar.
    pub sale: Option<(u64, Option<usize>)>,
}

/// Parses the response to a checkout of an item, which is the requested one, unless the server has chosen it.
pub fn of_item(wanted: &Wanted, item: u32, body: &[u8]) -> Option<CheckoutBody> {
    if let Ok(code) = CodeText::try_from(body) {
        return Some(CheckoutBody { item, code, expires_ms: None, sale: None });
    }
    let json: Value = serde_json::from_slice(body).ok()?;
    let item = if *wanted == Wanted::Item { item } else { item_id(&json)? };
    if let Wanted::Product(id) = wanted
        && json["product_id"] != **id
    {
        return None;
    }
    let (code, expires_ms) = code_and_expiry(&json)?;
    Some(CheckoutBody { item, code, expires_ms, sale: None })
}

/// Parses the response to a checkout of any unit. If the request does not name its sale, the server chooses it.
pub fn of_unit(calendar: &SaleCalendar, request: &UnitRequest, body: &[u8]) -> Option<CheckoutBody> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let (item, sale) = (item_id(&json)?, json["sale_id"].as_u64()?);
    let is_requested = sale == calendar.sales[request.sale].before.sale_id;
    if !is_requested && (request.is_named || request.product.is_some()) {
        return None;
    }
    // A sale that was not known at the start of the run has no products here.
    let products = calendar.index_of(sale).map_or(&[][..], |index| &calendar.sales[index].products);
    let product = products.iter().position(|product| product.has(item));
    let is_right = match product {
        Some(index) => {
            json["product_id"] == *products[index].product_id && request.product.is_none_or(|id| id == index)
        }
        None => products.is_empty(),
    };
    let (code, expires_ms) = code_and_expiry(&json)?;
    is_right.then_some(CheckoutBody { item, code, expires_ms, sale: Some((sale, product)) })
}

fn item_id(json: &Value) -> Option<u32> {
    u32::try_from(json["item_id"].as_u64()?).ok()
}

fn code_and_expiry(json: &Value) -> Option<(CodeText, Option<u64>)> {
    let code = CodeText::try_from(json["code"].as_str()?.as_bytes()).ok()?;
    let expires = humantime::parse_rfc3339(json["expires_at"].as_str()?).ok()?;
    Some((code, Some(expires.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale_calendar::tests::{calendar, request};

    const CODE: &str = "5217a1a2-e116-86c4-ae9f-b285fb710516";

    fn unit(sale: u64, item: u32, product: &str) -> String {
        let unit = format!(r#""sale_id":{sale},"item_id":{item},"product_id":"{product}""#);
        format!(r#"{{"code":"{CODE}",{unit},"expires_at":"1970-01-01T00:03:00.000Z"}}"#)
    }

    fn code() -> CodeText {
        CODE.as_bytes().try_into().unwrap()
    }

    #[test]
    fn a_bare_code_is_of_the_requested_item() {
        let bare = CheckoutBody { item: 42, code: code(), expires_ms: None, sale: None };
        assert_eq!(of_item(&Wanted::Item, 42, CODE.as_bytes()), Some(bare));
        let json = unit(1, 3, "a");
        let with_expiry = CheckoutBody { expires_ms: Some(180_000), ..bare };
        assert_eq!(of_item(&Wanted::Item, 42, json.as_bytes()), Some(with_expiry));
        assert_eq!(of_item(&Wanted::AnyUnit, 42, json.as_bytes()), Some(CheckoutBody { item: 3, ..with_expiry }));
        assert_eq!(of_item(&Wanted::Product("b".to_owned()), 42, json.as_bytes()), None);
        assert_eq!(of_item(&Wanted::Item, 42, b"no code"), None);
    }

    #[test]
    fn a_unit_is_of_the_requested_sale_and_product() {
        let calendar = calendar();
        let got = |request: &UnitRequest, body: &str| of_unit(&calendar, request, body.as_bytes());
        let of_b = UnitRequest { product: Some(1), ..request(0, true) };
        let chosen = got(&request(0, false), &unit(2, 4, "b")).unwrap();
        assert_eq!((chosen.item, chosen.sale, chosen.expires_ms), (4, Some((2, Some(1))), Some(180_000)));
        assert_eq!(got(&request(0, true), &unit(1, 3, "a")).unwrap().sale, Some((1, Some(0))));
        assert_eq!(got(&of_b, &unit(1, 9, "b")).unwrap().sale, Some((1, Some(1))));
        assert_eq!(got(&request(0, false), &unit(9, 3, "a")).unwrap().sale, Some((9, None)), "not in the calendar");
        for wrong in [unit(2, 9, "b"), unit(1, 3, "a"), unit(1, 3, "b"), unit(1, 9, "a"), unit(1, 10, "b")] {
            assert_eq!(got(&of_b, &wrong), None, "{wrong}");
        }
        assert_eq!(got(&request(0, true), &unit(2, 4, "b")), None);
    }
}
