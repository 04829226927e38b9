//! One transaction for the owner's row, the positions and the rows: the protocol by which each record arrives exactly
//! once.
//!
//! The *fence* is the row of `clusters` that names the run that owns the database. A *position* is the number of
//! records of one stream that are in the database; it is a row of `log_positions`.
//!
//! [`Database::send`] sends one batch. Several batches can have one transaction; those after the first begin with step 3:
//!
//! 1. `begin`.
//! 2. Update the fence, on the condition that it names this run. If it does not, another run has taken over: the
//!    transaction is not committed, and the process ends. Its lock makes a run that wants to take over wait until this
//!    transaction has ended.
//! 3. Move each position, on the condition that it has exactly the value that this run knows. If one has another value,
//!    an earlier transaction of this run was committed after all: the batch fails and nothing of it is written.
//! 4. Wait for the answers to steps 1 to 3 and to the preparation of the COPY statements, which were sent together.
//! 5. Create the partitions of sales that are new on this connection, and insert the rows of `sales` and `products`.
//! 6. Copy the rows into `checkouts`, `purchases`, `releases` and `extensions`.
//! 7. `commit`, by the caller. The database has the rows and the positions, or neither. [`crate::postgres::replication`] says when a
//!    commit counts.
//!
//! If the connection breaks, a statement fails or an answer is late, the transaction may be committed, rolled back or
//! still running. In each of these cases [`crate::postgres::shipper`] does this:
//!
//! 1. It drops the connection, the batch and the positions, waits for 0.1 to 5 s, and connects again.
//! 2. It claims the database again. The claim locks `clusters`. A transaction that can still be committed has passed
//!    step 4, so it holds a lock on this table, and the claim waits until that transaction has ended. If the wait is
//!    longer than `lock_timeout`, the attempt fails and step 1 follows.
//! 3. It reads the fence and the positions under this lock. No other transaction can change them.
//! 4. It gathers from these positions on. Records of the lost batch are sent again if the batch was rolled back, and
//!    only then.

use crate::log::block::StreamId;
use crate::log::ownership::Owner;
use crate::plan::planned_sale::LoadedPlan;
use crate::postgres::copy_in::{copy, prepare};
use crate::postgres::copy_rows::{OpenedSale, Rows};
use crate::postgres::failure::Failure;
use crate::postgres::limits::{FENCE_TIME, in_time};
use crate::postgres::owner_row::set_seen;
use crate::postgres::product_rows::write_products;
use crate::postgres::session::Database;
use crate::sale::ids::{SaleId, Seq};
use crate::sale::sale_schedule::SaleSchedule;
use std::time::{Duration, UNIX_EPOCH};
use tokio::try_join;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient};

// The columns in the order of `copy_rows`. A later schema may have more of them.
const COPY_CHECKOUTS: &str = "copy stampede.checkouts (sale_id, item_id, user_id, code, outcome, at, expires_at, \
    idempotency_key) from stdin with (format binary)";
const COPY_PURCHASES: &str =
    "copy stampede.purchases (sale_id, item_id, user_id, code, at, idempotency_key) from stdin with (format binary)";
const COPY_RELEASES: &str =
    "copy stampede.releases (sale_id, item_id, user_id, code, reason, at) from stdin with (format binary)";
const COPY_EXTENSIONS: &str =
    "copy stampede.extensions (sale_id, item_id, user_id, code, by_ms, at) from stdin with (format binary)";

/// The change of one stream's position in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionMove {
    /// Id of the stream.
    pub stream: StreamId,
    /// Position that the database must have before the transaction.
    pub from: Seq,
    /// Position after the transaction.
    pub to: Seq,
}

impl Database {
    /// Writes `rows` and moves the positions, as the steps of this file describe, up to the commit. All `moves` belong to
    /// the installation of `owner`. `is_first` is whether the transaction begins with this batch. Sales of one day of the
    /// schedule share their partitions; the plan has the products.
    ///
    /// # Errors
    /// [`Failure::Final`]: another run has taken over, or a purchase exists already. [`Failure::Transient`]: whether the
    /// transaction was committed is unknown, and it may still be open. The caller drops the connection, connects again,
    /// and reads the positions.
    pub async fn send(
        &mut self,
        owner: Owner,
        rows: Rows,
        moves: &[PositionMove],
        is_first: bool,
        (schedule, plan): (&SaleSchedule, Option<LoadedPlan>),
    ) -> Result<(), Failure> {
        let client = &self.client;
        let begin = async { if is_first { self.begin().await } else { Ok(()) } };
        // The fence. Its lock makes a run that wants to take over wait for this transaction.
        let hold = async { if is_first { set_seen(client, owner, "now").await } else { Ok(()) } };
        let fence = async {
            try_join!(
                biased;
                begin,
                hold,
                // The statement moves nothing if its transaction has written nothing before. So if `begin` has failed, the
                // positions do not move in a transaction of their own.
                move_positions(client, moves),
                prepare(client, COPY_CHECKOUTS, &rows.checkouts),
                prepare(client, COPY_PURCHASES, &rows.purchases),
                prepare(client, COPY_RELEASES, &rows.releases),
                prepare(client, COPY_EXTENSIONS, &rows.extensions),
            )
        };
        let ((), (), (), checkouts, purchases, releases, extensions) = in_time(FENCE_TIME, fence).await?;
        for sale in rows.sales.difference(&self.prepared) {
            prepare_sales(client, schedule, SaleId(*sale)).await?;
        }
        for (sale, opened) in &rows.opened {
            if !self.opened.contains(sale) {
                open_sale(client, *sale, opened).await?;
            }
        }
        let mut described = Vec::new();
        if let Some(plan) = plan {
            for sale in rows.sales.difference(&self.described) {
                if write_products(client, plan, SaleId(*sale)).await? {
                    described.push(*sale);
                }
            }
        }
        try_join!(
            biased;
            copy(client, checkouts, rows.checkouts),
            copy(client, purchases, rows.purchases),
            copy(client, releases, rows.releases),
            copy(client, extensions, rows.extensions),
        )?;
        // If the transaction fails, the connection is dropped with these sets.
        self.prepared.extend(&rows.sales);
        self.opened.extend(rows.opened.keys());
        self.described.extend(described);
        Ok(())
    }
}

/// Makes the partitions for a sale, and for those that open on the same UTC day, where there are none.
///
/// # Errors
/// [`Failure::Transient`]: the statement failed.
pub async fn prepare_sales(client: &impl GenericClient, schedule: &SaleSchedule, sale: SaleId) -> Result<(), Failure> {
    let together = schedule.of_same_day(sale);
    let values = [sale.0.into(), (*together.start()).into(), i64::from(*together.end()) + 1];
    let [sale, first, until]: &[i64; 3] = &values;
    client.execute("select stampede.prepare_sales($1, $2, $3)", &[sale, first, until]).await?;
    Ok(())
}

async fn open_sale(client: &Client, sale: u32, opened: &OpenedSale) -> Result<(), Failure> {
    let at = |unix_ms| UNIX_EPOCH + Duration::from_millis(unix_ms);
    let (opens, closes) = (opened.times.map(|times| at(times.opens_ms)), opened.times.map(|times| at(times.closes_ms)));
    let (items, user_limit, products) = (opened.items as i32, opened.user_limit as i32, opened.products as i64);
    let values: [&(dyn ToSql + Sync); 7] =
        [&i64::from(sale), &items, &user_limit, &at(opened.unix_ms), &opens, &closes, &products];
    let insert = "insert into stampede.sales (sale_id, items, user_limit, opened_at, opens_at, closes_at, products) \
        values ($1, $2, $3, $4, $5, $6, $7) on conflict (sale_id) do nothing";
    client.execute(insert, &values).await?;
    Ok(())
}

async fn move_positions(client: &Client, moves: &[PositionMove]) -> Result<(), Failure> {
    let Some(PositionMove { stream: StreamId { cluster, .. }, .. }) = moves.first() else { return Ok(()) };
    let epochs: Vec<_> = moves.iter().map(|moved| i64::from(moved.stream.epoch)).collect();
    let shards: Vec<_> = moves.iter().map(|moved| i32::from(moved.stream.shard)).collect();
    let logs: Vec<_> = moves.iter().map(|moved| moved.stream.log.name()).collect();
    let from: Vec<_> = moves.iter().map(|moved| moved.from as i64).collect();
    let to: Vec<_> = moves.iter().map(|moved| moved.to as i64).collect();
    let update = "update stampede.log_positions p set position = m.later \
        from unnest($2, $3, $4, $5, $6) m (epoch, shard, log, position, later) \
        where p.cluster = $1 and (p.epoch, p.shard, p.log, p.position) = (m.epoch, m.shard, m.log, m.position) \
        and (select pg_current_xact_id_if_assigned()) is not null";
    let values: [(&(dyn ToSql + Sync), Type); 6] = [
        (cluster, Type::UUID),
        (&epochs, Type::INT8_ARRAY),
        (&shards, Type::INT4_ARRAY),
        (&logs, Type::TEXT_ARRAY),
        (&from, Type::INT8_ARRAY),
        (&to, Type::INT8_ARRAY),
    ];
    let moved = client.execute_typed(update, &values).await?;
    if moved == moves.len() as u64 {
        return Ok(());
    }
    let why = format!("only {moved} of {} positions have the value that this run wrote last", moves.len());
    Err(Failure::Transient(why.into()))
}
