//! JSON bodies of answers, but for the receipt. serde writes them, and the OpenAPI document describes them with these comments.

use crate::http::site::Site;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::item_name::{ItemImage, ItemName};
use crate::sale::item_state::Availability;
use schemars::JsonSchema;
use serde::Serialize;

/// A reserved item, with the code to buy it.
#[derive(Serialize, JsonSchema)]
pub struct Reservation<'a> {
    /// Code that buys or releases the item.
    #[schemars(extend("format" = "uuid"))]
    pub code: &'a str,
    /// Id of the sale.
    pub sale_id: u32,
    /// Id of the item.
    pub item_id: u32,
    /// Product and name of the item.
    #[serde(flatten)]
    pub unit: PlannedUnit,
    /// End of the hold. If the item is not bought until then, it is available again.
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: String,
}

/// Product and name of an item in a plan. Without a plan, both are absent.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub struct PlannedUnit {
    /// Id of the product, if the sale is in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub product_id: Option<&'static str>,
    /// Name of the item in the plan, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub unit: Option<&'static str>,
}

impl PlannedUnit {
    /// Returns the product and the name of an item.
    pub fn of(site: Site, sale: SaleId, item: ItemId) -> Self {
        let unit = site.catalogue.and_then(|catalogue| catalogue.unit(sale, item));
        unit.map_or(PlannedUnit::default(), |unit| PlannedUnit { product_id: Some(&unit.product.id), unit: unit.name })
    }
}

/// A sale and its counts.
#[derive(Serialize, JsonSchema)]
pub struct Sale {
    /// Id of the sale, as in the plan. Without a plan: the number of whole sale periods since 1970. Later sales have higher
    /// ids.
    pub sale_id: u32,
    /// Start of the sale.
    #[schemars(extend("format" = "date-time"))]
    pub starts_at: String,
    /// End of the sale. Without a plan, also the start of the next.
    #[schemars(extend("format" = "date-time"))]
    pub ends_at: String,
    /// Stock. Items are numbered from 0.
    pub items_total: u32,
    /// Items that are bought.
    pub sold: u32,
    /// Items that are being reserved or held, or whose purchase is not acknowledged yet.
    pub reserved: u32,
    /// Items that can be reserved.
    pub available: u32,
    /// Quota: items that one user may hold and have bought together in this sale.
    pub user_limit: u32,
}

/// Phase of a sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SalePhase {
    /// The sale has not opened yet.
    Next,
    /// Items can be reserved.
    Open,
    /// The sale has ended. Reserved items can be bought until their reservations end.
    Closing,
    /// The sale has ended, and nothing is reserved any more.
    Closed,
}

/// The open sale. With a plan, and while none is open: the next one, or the last one if none follows.
#[derive(Serialize, JsonSchema)]
pub struct CurrentSale {
    /// Fields of the sale.
    #[serde(flatten)]
    pub sale: Sale,
    /// Phase of the sale. Absent without a plan, because then this sale is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SalePhase")]
    pub phase: Option<SalePhase>,
}

/// A sale with its phase.
#[derive(Serialize, JsonSchema)]
pub struct OneSale {
    /// Phase of the sale.
    pub phase: SalePhase,
    /// Fields of the sale.
    #[serde(flatten)]
    pub sale: Sale,
    /// Fields of the plan.
    #[serde(flatten)]
    pub plan: SaleInPlan,
}

/// What a plan says of a sale. Without a plan, both fields are absent.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub struct SaleInPlan {
    /// Name of the sale, if it is in the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub name: Option<&'static str>,
    /// With a plan: whether checkouts are refused for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub paused: Option<bool>,
}

/// A page of sales, in the order of their openings.
#[derive(Serialize, JsonSchema)]
pub struct SaleList {
    /// Number of sales that the server knows, and with a plan, of those that come. Of a sale that is repeated, only the next
    /// opening counts.
    pub sales_total: u32,
    /// First sale of the page.
    pub offset: u32,
    /// Maximum number of sales on the page.
    pub limit: u32,
    /// Sales of the page. Empty if `offset` is beyond the last sale.
    pub sales: Vec<OneSale>,
}

/// Data of a `stock` event: the counts of a sale.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Stock")]
pub struct StockEvent {
    /// Id of the sale.
    pub sale_id: u32,
    /// Items that are bought.
    pub sold: u32,
    /// Items that are being reserved or held, or whose purchase is not acknowledged yet.
    pub reserved: u32,
    /// Items that can be reserved.
    pub available: u32,
}

/// A product of a sale, and its counts.
#[derive(Serialize, JsonSchema)]
pub struct ListedProduct {
    /// Id of the product in the plan.
    pub product_id: &'static str,
    /// Name of the product.
    pub name: &'static str,
    /// Address of an image: `https://…`, or a path. Absent if the plan has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub image: Option<&'static str>,
    /// Price for people. Absent if the plan has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub price: Option<&'static str>,
    /// Number of items of the product.
    pub items_total: u32,
    /// Items that are bought.
    pub sold: u32,
    /// Items that are being reserved or held, or whose purchase is not acknowledged yet.
    pub reserved: u32,
    /// Items that can be reserved.
    pub available: u32,
    /// Id of the first item of the product. Its other items follow without a gap.
    pub first_item_id: u32,
    /// Whether the items have names, such as seats.
    pub units_named: bool,
}

/// A product with its counts, and its sale.
#[derive(Serialize, JsonSchema)]
pub struct OneProduct {
    /// Id of the sale.
    pub sale_id: u32,
    /// Fields of the product.
    #[serde(flatten)]
    pub product: ListedProduct,
}

/// A page of products of a sale, in the order of their items.
#[derive(Serialize, JsonSchema)]
pub struct ProductList {
    /// Id of the sale.
    pub sale_id: u32,
    /// Number of products of the sale.
    pub products_total: u32,
    /// First product of the page, from 0.
    pub offset: u32,
    /// Maximum number of products on the page.
    pub limit: u32,
    /// Products of the page. Empty if `offset` is beyond the last product.
    pub products: Vec<ListedProduct>,
}

/// An item with its state.
#[derive(Serialize, JsonSchema)]
pub struct Item {
    /// Id of the item.
    pub item_id: u32,
    /// Product and name of the item in the plan.
    #[serde(flatten)]
    pub unit: PlannedUnit,
    /// Name of the item in this sale.
    pub name: ItemName,
    /// Path of its image on this server.
    pub image: ItemImage,
    /// State of the item.
    pub state: Availability,
}

/// An item with its state, and its sale.
#[derive(Serialize, JsonSchema)]
pub struct OneItem {
    /// Id of the sale.
    pub sale_id: u32,
    /// Fields of the item.
    #[serde(flatten)]
    pub item: Item,
}

/// A page of items of a sale.
#[derive(Serialize, JsonSchema)]
pub struct Items {
    /// Id of the sale.
    pub sale_id: u32,
    /// Id of the product whose items are listed, if the request names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub product_id: Option<&'static str>,
    /// Stock of the sale, or number of items of the product.
    pub items_total: u32,
    /// First item of the page. With a product: from its first item.
    pub offset: u32,
    /// Maximum number of items on the page.
    pub limit: u32,
    /// Items of the page. Empty if `offset` is beyond the stock.
    pub items: Vec<Item>,
}

/// A sign that the process answers.
#[derive(Serialize, JsonSchema)]
pub struct Live {
    /// Always true.
    pub live: bool,
    /// Version of Stampede.
    pub version: &'static str,
}

/// Readiness of the server.
#[derive(Serialize, JsonSchema)]
pub struct Ready {
    /// Whether the server is ready. False during a stop, also while the server still sells for `--drain-delay`.
    pub ready: bool,
    /// Activity of the process.
    pub status: Doing,
    /// `/problems/standby` if another server sells, or may sell. Otherwise absent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "uri-reference"))]
    pub kind: Option<String>,
    /// State of Postgres. Null without a database.
    pub postgres: Option<Postgres>,
}

/// State of the process and of each shard.
#[derive(Serialize, JsonSchema)]
pub struct Health {
    /// Activity of the process.
    pub status: Doing,
    /// Version of Stampede.
    pub version: &'static str,
    /// Always true.
    pub live: bool,
    /// Whether the server is ready. False during a stop, also while the server still sells for `--drain-delay`.
    pub ready: bool,
    /// Current sale, as `GET /sale` shows it. Null until recovery has finished.
    pub sale: Option<CurrentSale>,
    /// State of Postgres. Null without a database.
    pub postgres: Option<Postgres>,
    /// The server that sells, as a standby sees it. Null otherwise, and until the standby has reached the database.
    pub owner: Option<OwnerHealth>,
    /// State of each shard.
    pub shards: Vec<ShardHealth>,
}

/// The server that sells, as a standby sees it.
#[derive(Serialize, JsonSchema)]
pub struct OwnerHealth {
    /// Epoch of its run, as in its log lines.
    pub epoch: u32,
    /// Time since the standby has seen a report of it in the database, in seconds.
    pub silent_seconds: f64,
}

/// Activity of the process.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Another server sells, or may sell: waiting for its end, or not known any more to be the owner of the database.
    Standby,
    /// Reading the log, or waiting for the database to restore the sale.
    Recovering,
    /// Selling.
    Serving,
    /// Handing over to the new process of an upgrade in place, or taking over from the old one.
    Paused,
    /// Stopping. The server still sells during the drain delay.
    Draining,
}

/// State of Postgres.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Postgres {
    /// Whether the server is connected to Postgres.
    pub connected: bool,
    /// Durable records that are not persisted yet. Null until Postgres has been reached once.
    pub records_behind: Option<u64>,
    /// Time since the oldest of these records became durable, in seconds.
    pub seconds_behind: f64,
}

/// State of a shard.
#[derive(Serialize, JsonSchema)]
pub struct ShardHealth {
    /// Number of the shard, from 0.
    pub shard: usize,
    /// Open connections.
    pub connections: u64,
    /// Records that this run has appended to the purchase log.
    pub log_records: u64,
    /// Records of this run that are durable in the purchase log.
    pub log_records_durable: u64,
    /// Blocks that the purchase log can take before it needs another segment.
    pub log_blocks_free: u64,
    /// Records of this run that are durable in the attempt log.
    pub attempts_durable: u64,
    /// Refused attempts that were not recorded, because the log had no space for them.
    pub attempts_unrecorded: u64,
}

/// Reason of a refusal (RFC 9457).
#[derive(Serialize, JsonSchema)]
pub struct ProblemDetails {
    /// Remedy, if the title is not sufficient.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub detail: Option<&'static str>,
    /// Status code.
    pub status: u16,
    /// Reason, as a sentence for people.
    pub title: &'static str,
    /// Type of the problem: decide by this field.
    #[serde(rename = "type")]
    #[schemars(extend("format" = "uri-reference"))]
    pub kind: String,
}
