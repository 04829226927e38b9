//! The pages that can be read, except `/events`: the sale, liveness, readiness and health. Pages of items are in
//! `item_pages`, those of products in `product_pages`.

use crate::http::bodies::{
    CurrentSale, Health, Live, OneSale, Ready, Sale, SaleInPlan, SaleList, SalePhase, ShardHealth,
};
use crate::http::operation::Answer;
use crate::http::pages::{ListPart, Page};
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::http::route::rfc3339;
use crate::http::site::Site;
use crate::log::block::LogKind;
use crate::operate::counters::Counter;
use crate::operate::shard_status::Sales;
use crate::operate::status::{Phase, Status};
use crate::sale::ids::Terms;
use crate::server::item_pages::{self, OnSale};
use crate::server::product_pages;
use std::sync::atomic::{AtomicU64, Ordering};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The input of a page. Before recovery has ended, `sale` is `None`.
pub struct Facts<'a> {
    /// The published numbers of all shards.
    pub status: &'a Status,
    /// The sale of the shard that writes the page.
    pub sale: Option<OnSale<'a>>,
    /// The value of the client's `If-None-Match` header.
    pub known: Option<&'a [u8]>,
}

/// Writes a page to `out`, and returns the kind of answer.
pub fn write(page: Page, facts: &Facts<'_>, style: Style, responder: &mut Responder, out: &mut Vec<u8>) -> Answer {
    let phase = facts.status.phase();
    let is_ready = phase == Phase::Serving;
    let answer = if is_ready { Answer::Ok } else { Answer::Unready };
    let site = responder.site();
    match page {
        Page::Live => responder.json(Answer::Ok, || Live { live: true, version: VERSION }, style, out),
        Page::Ready => {
            let ready = || Ready {
                ready: is_ready,
                status: phase.into(),
                kind: (phase == Phase::Standby).then(|| Problem::Standby.details().kind),
                postgres: facts.status.postgres(),
            };
            responder.json(answer, ready, style, out)
        }
        Page::Sale => match facts.sale {
            Some(_) => responder.json(Answer::Ok, || current_sale(facts), style, out),
            None => responder.problem(phase.refusal(), style, out),
        },
        Page::Sales(part) => match facts.sale {
            Some(on_sale) => responder.json(Answer::Ok, || sales(facts.status, on_sale, site, part), style, out),
            None => responder.problem(phase.refusal(), style, out),
        },
        Page::OneSale(id) => match facts.sale.map(|on_sale| (on_sale, on_sale.known(id))) {
            Some((on_sale, Some(terms))) => {
                responder.json(Answer::Ok, || one_sale(facts.status, on_sale, site, terms), style, out)
            }
            Some((_, None)) => responder.problem(Problem::NotFound, style, out),
            None => responder.problem(phase.refusal(), style, out),
        },
        Page::Products(page) => match &facts.sale {
            Some(on_sale) => product_pages::write(page, facts.status, on_sale, style, responder, out),
            None => responder.problem(phase.refusal(), style, out),
        },
        Page::Items(page) => match &facts.sale {
            Some(on_sale) => item_pages::write(page, on_sale, facts.known, style, responder, out),
            None => responder.problem(phase.refusal(), style, out),
        },
        Page::Api => responder.api(style, out),
        Page::Shop(file) => {
            let is_known = facts.known.is_some_and(|known| item_pages::names(known, &file.tag));
            responder.shop_file(file, is_known, style, out)
        }
        Page::Health => responder.json(answer, || health(facts, phase), style, out),
    }
}

/// Returns the state of the sale that the pages show, or `None` before recovery has ended.
pub fn current_sale(facts: &Facts<'_>) -> Option<CurrentSale> {
    let on_sale = &facts.sale?;
    let terms = on_sale.terms();
    let counts = facts.status.sales(terms.sale);
    let phase = on_sale.has_plan().then(|| phase_of(on_sale, terms, counts));
    Some(CurrentSale { sale: sale(terms, counts), phase })
}

fn sales(status: &Status, on_sale: OnSale<'_>, site: Site, part: ListPart) -> SaleList {
    let ListPart { offset, limit } = part;
    let sales = part.take(on_sale.all()).map(|terms| one_sale(status, on_sale, site, terms)).collect();
    SaleList { sales_total: on_sale.all().count() as u32, offset, limit, sales }
}

fn one_sale(status: &Status, on_sale: OnSale<'_>, site: Site, terms: Terms) -> OneSale {
    let counts = status.sales(terms.sale);
    let planned = site.catalogue.and_then(|catalogue| catalogue.sale(terms.sale));
    let plan = SaleInPlan {
        name: planned.map(|planned| planned.name.as_str()),
        paused: on_sale.has_plan().then_some(terms.is_paused),
    };
    OneSale { phase: phase_of(&on_sale, terms, counts), sale: sale(terms, counts), plan }
}

/// Returns the phase of a sale of which this many items are sold and reserved.
pub fn phase_of(on_sale: &OnSale<'_>, terms: Terms, counts: Sales) -> SalePhase {
    let newest = on_sale.parts.newest().terms;
    match counts.reserved {
        _ if on_sale.is_open(terms.sale) => SalePhase::Open,
        _ if terms.sale > newest.sale => SalePhase::Next,
        0 => SalePhase::Closed,
        _ => SalePhase::Closing,
    }
}

/// Returns a sale of which this many items are sold and reserved.
pub fn sale(terms: Terms, Sales { sold, reserved }: Sales) -> Sale {
    // Shards publish one after the other, so the sums are not a snapshot of one moment and must not underflow here.
    let available = terms.items.saturating_sub(sold + reserved);
    Sale {
        sale_id: terms.sale.0,
        starts_at: rfc3339(terms.opens_ms),
        ends_at: rfc3339(terms.closes_ms),
        items_total: terms.items,
        sold,
        reserved,
        available,
        user_limit: terms.user_limit,
    }
}

fn health(facts: &Facts<'_>, phase: Phase) -> Health {
    let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let shards = facts.status.shards.iter().enumerate().map(|(shard, status)| ShardHealth {
        shard,
        connections: read(&status.connections.open),
        log_records: read(&status.appended),
        log_records_durable: read(&status.log(LogKind::Purchases).flushed),
        log_blocks_free: read(&status.log_room),
        attempts_durable: read(&status.log(LogKind::Attempts).flushed),
        attempts_unrecorded: status.unrecorded.iter().map(Counter::get).sum(),
    });
    Health {
        status: phase.into(),
        version: VERSION,
        live: true,
        ready: phase == Phase::Serving,
        sale: current_sale(facts),
        postgres: facts.status.postgres(),
        owner: facts.status.watched.owner().filter(|_| phase == Phase::Standby),
        shards: shards.collect(),
    }
}
