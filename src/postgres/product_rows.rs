//! The rows of `products`: what the plan says of the products of a sale that has opened.
//!
//! They are written in the first transaction of a connection that has a record of the sale and finds the row of its opening.
//! So they are there before its first purchase, also if the database was unavailable when the sale opened, after a takeover,
//! and in a database of an earlier version. Refused checkouts can arrive before the opening. A row is never changed.
//!
//! The plan may describe a sale that is over otherwise than it was sold, so its products are written only if the row of the
//! sale agrees.
//!
//! No text of a plan may keep purchases from arriving: what the database refuses, such as a character that its encoding
//! lacks, is rolled back to a savepoint, and the next connection tries again.

use crate::plan::planned_sale::{LoadedPlan, PlannedSale};
use crate::postgres::copy_in::feed;
use crate::postgres::copy_rows::CopyRows;
use crate::postgres::failure::Failure;
use crate::sale::ids::SaleId;
use bytes::Bytes;
use std::pin::pin;
use tokio_postgres::{Client, Error};

const COPY_PRODUCTS: &str = "copy stampede.products (sale_id, product_id, first_item_id, items, name, price, image, \
    units) from stdin with (format binary)";
/// The number of items of a sale, the fingerprint of its products, and whether these are there.
const OPENED: &str = "select s.items, s.products, \
    exists (select from stampede.products p where p.sale_id = s.sale_id) from stampede.sales s where s.sale_id = $1";

/// Writes the products of a sale in the open transaction, if the plan has the sale and the database lacks them. Logs why
/// the database refuses them. Returns false if the opening of the sale is not in the database yet.
///
/// # Errors
/// [`Failure::Transient`]: the connection failed, and the transaction with it.
pub async fn write_products(client: &Client, plan: LoadedPlan, sale: SaleId) -> Result<bool, Failure> {
    if plan.sale(sale).is_none() {
        return Ok(true);
    }
    client.batch_execute("savepoint products").await?;
    match write_missing(client, plan, sale).await {
        Ok(has_opened) => {
            client.batch_execute("release savepoint products").await?;
            Ok(has_opened)
        }
        Err(error) if error.as_db_error().is_some() => {
            client.batch_execute("rollback to savepoint products").await?;
            let (sale, why) = (sale.0, Failure::from(error));
            tracing::warn!(sale, %why, "the database refuses the products of the sale: its purchases arrive without them");
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

async fn write_missing(client: &Client, plan: LoadedPlan, sale: SaleId) -> Result<bool, Error> {
    let Some(row) = client.query_opt(OPENED, &[&i64::from(sale.0)]).await? else { return Ok(false) };
    let (items, products, are_there): (i32, i64, bool) = (row.get(0), row.get(1), row.get(2));
    let planned = plan.sold_as(sale, items as u32, products as u64).filter(|_| !are_there);
    let Some(PlannedSale { products, .. }) = planned else { return Ok(true) };
    let statement = client.prepare(COPY_PRODUCTS).await?;
    let mut sink = pin!(client.copy_in::<_, Bytes>(&statement).await?);
    let mut rows = CopyRows::default();
    // Row by row: the names of all units together can be hundreds of megabytes.
    for product in products {
        rows.add_product(sale, product);
        feed(sink.as_mut(), rows.take()).await?;
    }
    feed(sink.as_mut(), rows.finish()).await?;
    sink.finish().await.map(|_| true)
}
