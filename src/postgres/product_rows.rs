//! The rows of `products`: what the plan says of the products of a sale that has opened.
//!
//! They are written in the transaction that brings the first record of the sale on a connection, which for a new sale is
//! its opening. So they are there before its first purchase, also if the database was unavailable when the sale opened,
//! after a takeover, and in a database of an earlier version. A row is never changed.
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
/// The number of items and the fingerprint of the products of a sale whose products are missing.
const MISSING: &str = "select s.items, s.products from stampede.sales s where s.sale_id = $1 \
    and not exists (select from stampede.products p where p.sale_id = s.sale_id)";

/// Writes the products of a sale in the open transaction, if the plan has the sale and the database lacks them. Logs why
/// the database refuses them.
///
/// # Errors
/// [`Failure::Transient`]: the connection failed, and the transaction with it.
pub async fn write_products(client: &Client, plan: LoadedPlan, sale: SaleId) -> Result<(), Failure> {
    if plan.sale(sale).is_none() {
        return Ok(());
    }
    client.batch_execute("savepoint products").await?;
    match write_missing(client, plan, sale).await {
        Ok(()) => client.batch_execute("release savepoint products").await?,
        Err(error) if error.as_db_error().is_some() => {
            client.batch_execute("rollback to savepoint products").await?;
            let (sale, why) = (sale.0, Failure::from(error));
            tracing::warn!(sale, %why, "the database refuses the products of the sale: its purchases arrive without them");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn write_missing(client: &Client, plan: LoadedPlan, sale: SaleId) -> Result<(), Error> {
    let found = client.query_opt(MISSING, &[&i64::from(sale.0)]).await?;
    let opened = found.map(|row| (row.get::<_, i32>(0) as u32, row.get::<_, i64>(1) as u64));
    let planned = opened.and_then(|(items, products)| plan.sold_as(sale, items, products));
    let Some(PlannedSale { products, .. }) = planned else { return Ok(()) };
    let statement = client.prepare(COPY_PRODUCTS).await?;
    let mut sink = pin!(client.copy_in::<_, Bytes>(&statement).await?);
    let mut rows = CopyRows::default();
    // Row by row: the names of all units together can be hundreds of megabytes.
    for product in products {
        rows.add_product(sale, product);
        feed(sink.as_mut(), rows.take()).await?;
    }
    feed(sink.as_mut(), rows.finish()).await?;
    sink.finish().await.map(drop)
}
