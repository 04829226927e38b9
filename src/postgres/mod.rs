//! Every flushed record in Postgres, exactly once. Never here: rules of the sale.
//!
//! A record passes through in this order: a shard offers it to [`feed`]; [`shipper`], the persistence thread, gathers
//! the records of each [`stream_tail`], turns them into rows by [`copy_rows`], and sends them by [`ship`] and
//! [`copy_in`]: rows and positions in one transaction. [`product_rows`] adds the products of a plan. Before that,
//! [`claim`] makes this run the owner of the database, by the row in [`owner_row`].
//!
//! [`session`] is a connection, [`schema`] its migrations, [`limits`] its time limits, [`failure`] its errors,
//! [`replication`] whether a commit is on a standby, [`snapshot`] a read-only look. [`owner_watch`] says whether the
//! owner is alive, [`sale_rows`] whether a plan fits the sales. [`maintenance`] makes partitions ahead, and drops old
//! ones. [`restore`] fills a new data directory from the database. [`tls`] and [`pgpass`] do what
//! libpq does.

pub mod claim;
pub mod copy_in;
pub mod copy_rows;
pub mod failure;
pub mod feed;
pub mod limits;
pub mod maintenance;
pub mod owner_row;
pub mod owner_watch;
pub mod pgpass;
pub mod product_rows;
pub mod replication;
pub mod restore;
pub mod sale_rows;
pub mod schema;
pub mod session;
pub mod ship;
pub mod shipper;
pub mod snapshot;
pub mod stream_tail;
pub mod tls;
