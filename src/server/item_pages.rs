//! What can be read of items: what they are called, how they stand, what they look like.

use crate::http::bodies::{Item, Items, OneItem};
use crate::http::operation::Answer;
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::http::route::ItemPage;
use crate::operate::item_states::ItemStates;
use crate::sale::ids::{ItemId, Terms};
use crate::sale::item_name::{ItemImage, ItemName};
use crate::server::art::ItemArt;

/// The sale of the shard that writes a page.
#[derive(Clone, Copy, Debug)]
pub struct OnSale<'a> {
    /// Its terms.
    pub terms: Terms,
    /// How long it is, in seconds.
    pub period_s: u32,
    /// Where its items stand.
    pub board: &'a ItemStates,
    /// The time of this turn.
    pub unix_ms: u64,
}

impl OnSale<'_> {
    fn item(&self, item: ItemId) -> Item {
        let state = self.board.read(self.terms.sale, item);
        Item { item_id: item.0, name: ItemName(self.terms.sale, item), image: ItemImage(item), state }
    }

    fn seconds_left(&self) -> u64 {
        let ends_s = (u64::from(self.terms.sale.0) + 1) * u64::from(self.period_s);
        ends_s.saturating_sub(self.unix_ms / 1000)
    }
}

/// Writes a page. `known` is what the client's `If-None-Match` says.
pub fn write(
    page: ItemPage,
    on_sale: &OnSale<'_>,
    known: Option<&[u8]>,
    style: Style,
    responder: &mut Responder,
    out: &mut Vec<u8>,
) -> Answer {
    let Terms { sale, items: items_total, .. } = on_sale.terms;
    match page {
        ItemPage::List { offset, limit } => {
            let shown = offset..items_total.min(offset.saturating_add(limit));
            let items = shown.map(|item| on_sale.item(ItemId(item))).collect();
            responder.json(Answer::Ok, &Items { sale_id: sale.0, items_total, offset, limit, items }, style, out)
        }
        ItemPage::Item(item) | ItemPage::Image(item) if item.0 >= items_total => {
            responder.problem(Problem::NotFound, style, out)
        }
        ItemPage::Item(item) => {
            responder.json(Answer::Ok, &OneItem { sale_id: sale.0, item: on_sale.item(item) }, style, out)
        }
        ItemPage::Image(item) => {
            let image = ItemArt(sale, item).to_string();
            // Of its bytes too: another version may draw otherwise.
            let tag = format!("\"{}-{}-{:08x}\"", sale.0, item.0, crc32c::crc32c(image.as_bytes()));
            let image = if known.is_some_and(|known| names(known, &tag)) { None } else { Some(&*image) };
            responder.image(image, &tag, on_sale.seconds_left(), style, out)
        }
    }
}

/// Whether an `If-None-Match` names this tag (RFC 9110 §13.1.2). None of ours has a comma in it.
fn names(known: &[u8], tag: &str) -> bool {
    let mut tags = known.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_one_by_one() {
        for known in ["\"a\"", "W/\"a\"", "*", "\"b\", \"a\"", "\"b\",W/\"a\" , \"c\""] {
            assert!(names(known.as_bytes(), "\"a\""), "{known}");
        }
        for known in ["", "a", "\"b\"", "\"a", "\"aa\"", "w/\"a\"", "\"b\" \"a\""] {
            assert!(!names(known.as_bytes(), "\"a\""), "{known}");
        }
    }
}
