//! What the bodies of answers say: serde writes them, and the API's description shows them.

use crate::sale::item_name::{ItemImage, ItemName};
use crate::sale::stock::Availability;
use schemars::JsonSchema;
use serde::Serialize;

/// A hold on an item.
#[derive(Serialize, JsonSchema)]
pub struct Reservation<'a> {
    /// Buys the item, or gives it back.
    #[schemars(extend("format" = "uuid"))]
    pub code: &'a str,
    /// Which sale.
    pub sale_id: u32,
    /// Which item.
    pub item_id: u32,
    /// When the item is free again, unless it is bought.
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: String,
}

/// What was bought. It is on disk.
#[derive(Serialize, JsonSchema)]
pub struct Receipt {
    /// Always true.
    pub success: bool,
    /// The same in words.
    pub message: &'static str,
    /// Which sale.
    pub sale_id: u32,
    /// Which item.
    pub item_id: u32,
    /// What it is called.
    pub item_name: ItemName,
    /// Where its image is.
    pub item_image: ItemImage,
}

/// How a sale stands.
#[derive(Serialize, JsonSchema)]
pub struct Sale {
    /// Which sale: they are numbered one after the other.
    pub sale_id: u32,
    /// When it opened.
    #[schemars(extend("format" = "date-time"))]
    pub starts_at: String,
    /// When the next one opens.
    #[schemars(extend("format" = "date-time"))]
    pub ends_at: String,
    /// The stock: items are numbered from 0.
    pub items_total: u32,
    /// How many are bought.
    pub sold: u32,
    /// How many are held.
    pub reserved: u32,
    /// How many can be had.
    pub available: u32,
    /// How many items one user may hold and buy together.
    pub user_limit: u32,
}

/// How its items stand, as events say it.
#[derive(Serialize, JsonSchema)]
pub struct StockEvent {
    /// Which sale.
    pub sale_id: u32,
    /// How many are bought.
    pub sold: u32,
    /// How many are held.
    pub reserved: u32,
    /// How many can be had.
    pub available: u32,
}

/// An item.
#[derive(Serialize, JsonSchema)]
pub struct Item {
    /// Which item.
    pub item_id: u32,
    /// What it is called in this sale.
    pub name: ItemName,
    /// Where its image is.
    pub image: ItemImage,
    /// How it stands.
    pub state: Availability,
}

/// An item, and its sale.
#[derive(Serialize, JsonSchema)]
pub struct OneItem {
    /// Which sale.
    pub sale_id: u32,
    /// The item.
    #[serde(flatten)]
    pub item: Item,
}

/// Some items of a sale.
#[derive(Serialize, JsonSchema)]
pub struct Items {
    /// Which sale.
    pub sale_id: u32,
    /// Its stock.
    pub items_total: u32,
    /// The first item asked for.
    pub offset: u32,
    /// How many were asked for.
    pub limit: u32,
    /// Those that there are.
    pub items: Vec<Item>,
}

/// The process is up.
#[derive(Serialize, JsonSchema)]
pub struct Live {
    /// Always true.
    pub live: bool,
    /// Stampede's version.
    pub version: &'static str,
}

/// Whether it is ready to sell.
#[derive(Serialize, JsonSchema)]
pub struct Ready {
    /// Whether it is.
    pub ready: bool,
    /// What it is doing.
    pub status: Doing,
    /// Null without a database.
    pub postgres: Option<Postgres>,
}

/// Everything about the process.
#[derive(Serialize, JsonSchema)]
pub struct Health {
    /// What it is doing.
    pub status: Doing,
    /// Stampede's version.
    pub version: &'static str,
    /// Always true.
    pub live: bool,
    /// Whether it is ready to sell.
    pub ready: bool,
    /// Null until it is known.
    pub sale: Option<Sale>,
    /// Null without a database.
    pub postgres: Option<Postgres>,
    /// Each of its shards.
    pub shards: Vec<ShardHealth>,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Reading the log.
    Recovering,
    /// Selling.
    Serving,
    /// Giving way to another process, or taking its place.
    Paused,
    /// Coming to its end.
    Draining,
}

/// How far Postgres is behind.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Postgres {
    /// Whether it can be reached.
    pub connected: bool,
    /// What it lacks, in records. Null until it has been reached once.
    pub records_behind: Option<u64>,
    /// For how long it has lacked the oldest of them.
    pub seconds_behind: f64,
}

/// One shard.
#[derive(Serialize, JsonSchema)]
pub struct ShardHealth {
    /// Which: they are numbered from 0.
    pub shard: usize,
    /// Open connections.
    pub connections: u64,
    /// Records of this run in the log of purchases.
    pub log_records: u64,
    /// Those that are on disk.
    pub log_records_durable: u64,
    /// Blocks that this log has left.
    pub log_blocks_free: u64,
    /// Refused attempts on disk, in records.
    pub attempts_durable: u64,
    /// Refused attempts that were not recorded, for want of room.
    pub attempts_unrecorded: u64,
}

/// Why not (RFC 9457).
#[derive(Serialize, JsonSchema)]
pub struct ProblemDetails {
    /// What to do, where that helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub detail: Option<&'static str>,
    /// The status code.
    pub status: u16,
    /// A sentence for people.
    pub title: &'static str,
    /// Which problem.
    #[serde(rename = "type")]
    #[schemars(extend("format" = "uri-reference"))]
    pub kind: String,
}
