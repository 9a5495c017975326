//! Postgres. All SQL is here: a file per table, a function per query.
//!
//! Transactions are explicit: [`Connection::begin`], queries, [`Tx::commit`]; a dropped [`Tx`] rolls back. Every change
//! of configuration begins with [`registry::bump`], whose row lock makes such changes happen one after the other.
//! Connections are tested before they are handed out, so everything works again by itself once Postgres is back.

pub(crate) mod access_keys;
pub(crate) mod address;
#[cfg_attr(not(test), expect(dead_code, reason = "replication and scanning will read the log; tests do so far"))]
pub(crate) mod changes;
pub(crate) mod comparison;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod images;
pub(crate) mod jobs;
mod left_out;
pub(crate) mod migrate;
pub(crate) mod news;
pub(crate) mod operations;
pub(crate) mod principals;
pub(crate) mod registry;
pub(crate) mod remains;
pub(crate) mod repositories;
pub(crate) mod requests;
pub(crate) mod row;
pub(crate) mod rules;
pub(crate) mod runs;
pub(crate) mod tags;
pub(crate) mod templates;
mod tls;
pub(crate) mod upstreams;

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Status, Timeouts};
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row};

pub(crate) use address::Address;
use address::CONNECT_LIMIT;
pub(crate) use error::Error;
pub(crate) use left_out::LeftOut;

/// How long a caller waits for a free connection.
const WAIT_LIMIT: Duration = Duration::from_secs(1);
/// How long the test of an idle connection may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// The database, through a pool of connections. The first connection is made by [`Db::connect`].
#[derive(Clone)]
pub(crate) struct Db {
    pool: Pool,
    address: Address,
    left_out: Arc<LeftOut>,
}

/// A connection, which is returned to the pool when it is dropped.
pub(crate) struct Connection {
    object: Object,
    left_out: Arc<LeftOut>,
}

/// A transaction, which rolls back unless it is committed.
pub(crate) struct Tx<'c> {
    transaction: deadpool_postgres::Transaction<'c>,
    left_out: &'c LeftOut,
}

impl Db {
    pub(crate) fn new(address: Address, pool_size: usize) -> Self {
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let timeouts = Timeouts { wait: Some(WAIT_LIMIT), create: Some(CONNECT_LIMIT), recycle: Some(PROBE_LIMIT) };
        let pool = Pool::builder(Manager::from_config(address.config(), address.tls(), manager))
            .max_size(pool_size.max(1))
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with a runtime can have timeouts");
        Self { pool, address, left_out: Arc::default() }
    }

    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        Ok(Connection { object: self.pool.get().await?, left_out: Arc::clone(&self.left_out) })
    }

    /// The state of the pool.
    pub(crate) fn status(&self) -> Status {
        self.pool.status()
    }

    /// The rows that were left out because only another release understands them.
    pub(crate) fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    fn address(&self) -> &Address {
        &self.address
    }
}

impl Connection {
    /// Begins a transaction at READ COMMITTED: decide only under a row lock.
    pub(crate) async fn begin(&mut self, name: &'static str) -> Result<Tx<'_>, Error> {
        tracing::trace!(transaction.name = name, "begin");
        let builder = self.object.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
        Ok(Tx { transaction: builder.start().await?, left_out: &self.left_out })
    }

    /// Begins a read-only transaction that sees one state of the database.
    pub(crate) async fn begin_snapshot(&mut self, name: &'static str) -> Result<Tx<'_>, Error> {
        tracing::trace!(transaction.name = name, "begin");
        let builder = self.object.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        Ok(Tx { transaction: builder.start().await?, left_out: &self.left_out })
    }
}

impl Tx<'_> {
    pub(crate) async fn commit(self) -> Result<(), Error> {
        Ok(self.transaction.commit().await?)
    }

    async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let statement = self.transaction.prepare_cached(sql).await?;
        Ok(self.transaction.query(&statement, parameters).await?)
    }

    async fn query_opt(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Error> {
        let statement = self.transaction.prepare_cached(sql).await?;
        Ok(self.transaction.query_opt(&statement, parameters).await?)
    }

    async fn query_one(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        let statement = self.transaction.prepare_cached(sql).await?;
        Ok(self.transaction.query_one(&statement, parameters).await?)
    }

    async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        let statement = self.transaction.prepare_cached(sql).await?;
        Ok(self.transaction.execute(&statement, parameters).await?)
    }
}
