//! The pages of items: names, states and images. Everything that a page shows is published by the shards or computed
//! from the item id.

use crate::http::bodies::{Item, Items, OneItem, PlannedUnit};
use crate::http::operation::Answer;
use crate::http::pages::{ItemChoice, ItemPage, ListPart};
use crate::http::problem::Problem;
use crate::http::response::{Freshness, Responder, Style};
use crate::http::site::Site;
use crate::operate::item_states::ItemStates;
use crate::sale::code::ITEMS_MAX;
use crate::sale::ids::{ItemId, Moment, SaleId, Terms};
use crate::sale::item_name::{ItemImage, ItemName};
use crate::sale::parts::{Parts, UnnamedSale};
use crate::sale::sale_schedule::{SaleSchedule, SaleSeries};
use crate::server::art::ItemArt;
use std::sync::LazyLock;

/// Number of items whose images determine the checksum. They have all drawings, palettes and backgrounds.
const DRAWINGS: u32 = 256;

/// Checksum of the first images of sale 0. It stands for the version of the drawings in the tag of each image, so that
/// a client that has an image, or sends HEAD, does not make the server draw it.
pub static DRAWINGS_CHECKSUM: LazyLock<u32> = LazyLock::new(|| {
    let image = |item| ItemArt(SaleId(0), ItemId(item)).to_string();
    (0..DRAWINGS).fold(0, |checksum, item| crc32c::crc32c_append(checksum, image(item).as_bytes()))
});

/// The sales of the shard that writes a page.
#[derive(Clone, Copy)]
pub struct OnSale<'a> {
    /// The sales that the shard knows.
    pub parts: &'a Parts,
    /// Published states of the items.
    pub item_states: &'a ItemStates,
    /// Which sale opens next.
    pub schedule: SaleSchedule,
    /// Time of this turn.
    pub now: Moment,
}

impl OnSale<'_> {
    /// Returns the terms of the sale that the pages show: the open one that has opened last. If none is open, the next one,
    /// or the last one if none follows.
    pub fn terms(&self) -> Terms {
        let newest = self.parts.newest().terms;
        let next = || self.schedule.next(newest.sale).unwrap_or(newest);
        self.parts.open(self.now).next().copied().unwrap_or_else(next)
    }

    /// Returns whether a sale is open.
    pub fn is_open(&self, sale: SaleId) -> bool {
        self.parts.is_open(sale, self.now)
    }

    /// Returns the terms of a sale that the shard knows, or that its plan has for later.
    pub fn known(&self, sale: SaleId) -> Option<Terms> {
        let planned = match self.schedule {
            SaleSchedule::Planned(_) if sale > self.parts.newest().terms.sale => self.schedule.terms(sale),
            _ => None,
        };
        self.parts.get(sale).filter(|part| part.terms.items > 0).map(|part| part.terms).or(planned)
    }

    /// Returns the terms of the sale whose products or items a client asks for: the one that it has named, or the only one
    /// that is open. If none is open, that of [`OnSale::terms`]. Without a plan, a name has no effect.
    ///
    /// # Errors
    /// There is no such sale, or several are open and none is named, or the numbers of the sale are not known any more.
    pub fn chosen(&self, named: Option<SaleId>) -> Result<Terms, Problem> {
        let SaleSchedule::Planned(series) = self.schedule else { return Ok(self.terms()) };
        let Some(sale) = named else {
            let is_clear = self.parts.unnamed(self.now) != UnnamedSale::Several;
            return if is_clear { Ok(self.terms()) } else { Err(Problem::SaleUnnamed) };
        };
        let newest = self.parts.newest().terms.sale;
        let layer = self.schedule.layer(sale).map(|layer| layer as u8);
        // A later sale of the layer, whose numbers have replaced those of this sale.
        let is_later = |later: &SaleSeries| later.first.sale <= newest && sale < newest.min(later.last().sale);
        let is_replaced = series.iter().any(|later| Some(later.layer) == layer && is_later(later));
        match self.known(sale) {
            Some(terms) if layer.is_some() && !is_replaced => Ok(terms),
            Some(_) => Err(Problem::SaleEnded),
            None if layer.is_some() => Err(Problem::SaleEnded),
            None => Err(Problem::NoSuchSale),
        }
    }

    /// Returns whether there is a plan.
    pub fn has_plan(&self) -> bool {
        matches!(self.schedule, SaleSchedule::Planned(_))
    }

    /// Returns the terms of the sales that the shard knows, and of those that its plan has for later, in the order of their
    /// openings. Of a sale that is repeated, only the next opening is among them.
    pub fn all(&self) -> impl Iterator<Item = Terms> {
        let series = if let SaleSchedule::Planned(series) = self.schedule { series } else { &[] };
        let newest = self.parts.newest().terms;
        let next = series.iter().filter_map(move |series| series.next(newest.opens_ms));
        let known = self.parts.iter().rev().map(|part| part.terms).filter(|terms| terms.items > 0);
        known.chain(next.filter(move |next| next.sale > newest.sale))
    }

    /// Returns the sale whose item a client asks for: the one that it has named, or that of [`OnSale::terms`].
    ///
    /// # Errors
    /// There is no such sale, or it has no such item, or the numbers of the sale are not known any more.
    fn sale_with(&self, item: ItemId, named: Option<SaleId>) -> Result<SaleId, Problem> {
        let terms = match named {
            None => self.terms(),
            Some(_) => self.chosen(named).map_err(|problem| match problem {
                Problem::NoSuchSale => Problem::NotFound,
                problem => problem,
            })?,
        };
        if item.0 < terms.items { Ok(terms.sale) } else { Err(Problem::NotFound) }
    }

    fn item(&self, sale: SaleId, item: ItemId, site: Site) -> Item {
        let (unit, state) = (PlannedUnit::of(site, sale, item), self.item_states.read(sale, item));
        Item { item_id: item.0, unit, name: ItemName(sale, item), image: ItemImage(item), state }
    }

    /// Reports whether a sale has this item. The stock of a forgotten sale had at most [`ITEMS_MAX`] items, and later
    /// sales have none yet.
    fn has(&self, sale: SaleId, item: ItemId) -> bool {
        let (shown, newest) = (self.terms(), self.parts.newest().terms.sale);
        let known = if sale == shown.sale { Some(shown) } else { self.parts.get(sale).map(|part| part.terms) };
        sale <= newest.max(shown.sale) && item.0 < known.map_or(ITEMS_MAX, |terms| terms.items)
    }

    /// Returns the seconds until the pages show another sale.
    fn seconds_left(&self) -> u64 {
        let (shown, newest) = (self.terms(), self.parts.newest().terms.sale);
        let next = self.schedule.next(newest.max(shown.sale));
        let until_ms = next.map_or(shown.closes_ms, |next| next.opens_ms.min(shown.closes_ms));
        (until_ms / 1000).saturating_sub(self.now.unix_ms / 1000)
    }
}

/// Writes a page of items. `known` is the value of the client's `If-None-Match` header.
pub fn write(
    page: ItemPage,
    on_sale: &OnSale<'_>,
    known: Option<&[u8]>,
    style: Style,
    responder: &mut Responder,
    out: &mut Vec<u8>,
) -> Answer {
    let (sale, site) = (on_sale.terms().sale, responder.site());
    match page {
        ItemPage::List { of, part } => write_list(of, part, on_sale, style, responder, out),
        ItemPage::Item { item, sale: named } => match on_sale.sale_with(item, named) {
            Ok(sale) => {
                let item = || OneItem { sale_id: sale.0, item: on_sale.item(sale, item, site) };
                responder.json(Answer::Ok, item, style, out)
            }
            Err(problem) => responder.problem(problem, style, out),
        },
        ItemPage::Image { item, sale: given } if on_sale.has(given.unwrap_or(sale), item) => {
            let sale = given.unwrap_or(sale);
            // The tag includes a checksum of the drawings, because another version of Stampede may draw differently.
            let tag = format!("\"{}-{}-{:08x}\"", sale.0, item.0, *DRAWINGS_CHECKSUM);
            let is_known = known.is_some_and(|known| names(known, &tag));
            let image = (!is_known).then_some(ItemArt(sale, item));
            // Without a sale in the path, the next sale shows another image there.
            let freshness = given.map_or(Freshness::Seconds(on_sale.seconds_left()), |_| Freshness::Always);
            responder.image(image, &tag, freshness, style, out)
        }
        ItemPage::Image { .. } => responder.problem(Problem::NotFound, style, out),
    }
}

fn write_list(
    of: ItemChoice,
    part: ListPart,
    on_sale: &OnSale<'_>,
    style: Style,
    responder: &mut Responder,
    out: &mut Vec<u8>,
) -> Answer {
    let site = responder.site();
    // Without a parameter, the list belongs to `GET /sale`, also while several sales are open.
    let chosen = if of == ItemChoice::default() { Ok(on_sale.terms()) } else { on_sale.chosen(of.sale) };
    let terms = match chosen {
        Ok(terms) => terms,
        Err(problem) => return responder.problem(problem, style, out),
    };
    let in_sale = || Some(&site.catalogue?.sale(terms.sale)?.products);
    let product = of.product.map(|id| in_sale()?.iter().find(|product| product.number == id));
    let items = match product {
        Some(Some(product)) => product.numbers(),
        Some(None) => return responder.problem(Problem::NoSuchProduct, style, out),
        None => 0..terms.items,
    };
    let list = || {
        let (sale, ListPart { offset, limit }) = (terms.sale, part);
        let (items_total, product_id) = (items.len() as u32, product.flatten().map(|product| product.id.as_str()));
        let shown = part.of(items_total).map(|number| on_sale.item(sale, ItemId(items.start + number), site));
        Items { sale_id: sale.0, product_id, items_total, offset, limit, items: shown.collect() }
    };
    responder.json(Answer::Ok, list, style, out)
}

/// Returns whether an `If-None-Match` value contains this tag (RFC 9110 §13.1.2). Splitting at commas is correct,
/// because no tag of this server contains one.
pub fn names(known: &[u8], tag: &str) -> bool {
    let mut tags = known.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::ids::ShardId;
    use crate::sale::part::Part;
    use crate::sale::partition::Partition;
    use std::collections::BTreeSet;

    /// Looks at the sales of `schedule` as a shard does that has begun these.
    fn look<T>(
        schedule: SaleSchedule,
        begun: impl Iterator<Item = u32>,
        unix_ms: u64,
        at: impl FnOnce(&OnSale<'_>) -> T,
    ) -> T {
        let partition = Partition::new(1);
        let part = |id| Part::empty(schedule.terms(SaleId(id)).unwrap(), partition, ShardId(0));
        let parts = Parts::new(ShardId(0), partition, begun.map(part).collect());
        let item_states = ItemStates::new(partition, schedule, &[]);
        let now = Moment { monotonic_ms: 1, unix_ms };
        at(&OnSale { parts: &parts, item_states: &item_states, schedule, now })
    }

    #[test]
    fn the_sale_that_is_shown_is_not_always_the_newest() {
        let terms = |id, opens_s: u64, closes_s: u64| Terms {
            sale: SaleId(id),
            items: 5,
            opens_ms: opens_s * 1000,
            closes_ms: closes_s * 1000,
            ..Terms::NONE
        };
        let all = [terms(3, 100, 900), terms(4, 200, 400), terms(5, 600, 700)];
        let series = all.map(|first| SaleSeries { first, every_ms: 0, count: 1, layer: 0 });
        let schedule = SaleSchedule::planned(series.to_vec());
        let at = |now_s: u64| {
            let begun = all.iter().filter(|terms| terms.opens_ms <= now_s * 1000).map(|terms| terms.sale.0);
            look(schedule, begun, now_s * 1000, |on_sale| {
                let has = [3, 4, 5].map(|sale| on_sale.has(SaleId(sale), ItemId(4)));
                (on_sale.terms().sale.0, on_sale.seconds_left(), has)
            })
        };
        // Another sale is shown as soon as it opens.
        assert_eq!(at(150), (3, 50, [true, false, false]));
        assert_eq!(at(300), (4, 100, [true, true, false]));
        assert_eq!(at(450), (3, 150, [true, true, false]), "sale 4 is newer, and has closed");
        assert_eq!(at(750), (3, 150, [true, true, true]));
        assert_eq!(at(950), (5, 0, [true, true, true]));
    }

    #[test]
    fn the_checksum_covers_every_drawing_and_palette() {
        let names = (0..DRAWINGS).map(|item| ItemName(SaleId(0), ItemId(item)));
        let pairs: BTreeSet<_> = names.map(|name| (name.quality(), name.thing())).collect();
        let qualities: BTreeSet<_> = pairs.iter().map(|pair| pair.0).collect();
        let things: BTreeSet<_> = pairs.iter().map(|pair| pair.1).collect();
        assert_eq!((qualities.len(), things.len()), (16, 16));
    }

    /// Sales 1, 3 and 4 follow each other, and sale 2 is open beside sale 1. The states of sale 3 replace those of sale 1.
    #[test]
    fn products_are_shown_until_a_later_sale_takes_their_place() {
        let series = |id, opens_ms, closes_ms| {
            let first = Terms { sale: SaleId(id), items: 1, opens_ms, closes_ms, ..Terms::NONE };
            SaleSeries { first, every_ms: 0, count: 1, layer: 0 }
        };
        let series = vec![series(1, 0, 1_000), series(2, 500, 1_500), series(3, 1_200, 2_000), series(4, 2_000, 3_000)];
        let schedule = SaleSchedule::planned(series);
        let chosen = |known: u32, named: Option<u32>, unix_ms| {
            let choose = |on_sale: &OnSale<'_>| on_sale.chosen(named.map(SaleId)).map(|terms| terms.sale.0);
            look(schedule, 1..=known, unix_ms, choose)
        };
        assert_eq!([chosen(1, None, 499), chosen(2, None, 600)], [Ok(1), Err(Problem::SaleUnnamed)]);
        assert_eq!([1, 2, 3, 4].map(|sale| chosen(2, Some(sale), 600)), [Ok(1), Ok(2), Ok(3), Ok(4)]);
        assert_eq!(
            [1, 2, 3, 4].map(|sale| chosen(3, Some(sale), 1_300)),
            [Err(Problem::SaleEnded), Ok(2), Ok(3), Ok(4)]
        );
        assert_eq!(chosen(3, Some(5), 1_300), Err(Problem::NoSuchSale));
    }

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
