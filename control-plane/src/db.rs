//! Postgres: the only SQL, a file per table, a function per query.
//!
//! Transactions are explicit: [`Connection::begin`], queries, [`Tx::commit`]; a dropped [`Tx`] rolls back. Every change
//! of configuration begins with [`registry::bump`], whose row lock makes such changes happen one after the other.
//! Connections are probed before they are handed out, so after Postgres was away everything works again by itself.

pub(crate) mod access_keys;
pub(crate) mod address;
#[cfg_attr(not(test), expect(dead_code, reason = "replication and scanning will read the log; tests do so far"))]
pub(crate) mod changes;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod images;
pub(crate) mod jobs;
pub(crate) mod migrate;
pub(crate) mod news;
pub(crate) mod operations;
pub(crate) mod principals;
pub(crate) mod registry;
pub(crate) mod repositories;
pub(crate) mod requests;
pub(crate) mod row;
pub(crate) mod rules;
pub(crate) mod runs;
pub(crate) mod tags;
pub(crate) mod templates;
mod tls;
pub(crate) mod upstreams;

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Status, Timeouts};
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row};

pub(crate) use address::Address;
use address::CONNECT_LIMIT;
pub(crate) use error::Error;

/// How long a caller waits for a connection to become free.
const WAIT_LIMIT: Duration = Duration::from_secs(1);
/// How long an idle connection may take to show that it is alive.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// The database, through a pool of connections. Nothing connects before the first [`Db::connect`].
#[derive(Clone)]
pub(crate) struct Db {
    pool: Pool,
    address: Address,
}

/// One connection, given back to the pool when it is dropped.
pub(crate) struct Connection(Object);

/// A transaction that rolls back unless it is committed.
pub(crate) struct Tx<'c>(deadpool_postgres::Transaction<'c>);

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
        Self { pool, address }
    }

    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        Ok(Connection(self.pool.get().await?))
    }

    /// How the pool stands.
    pub(crate) fn status(&self) -> Status {
        self.pool.status()
    }

    fn address(&self) -> &Address {
        &self.address
    }
}

impl Connection {
    /// Begins a transaction at READ COMMITTED: decide under a row lock.
    pub(crate) async fn begin(&mut self, name: &'static str) -> Result<Tx<'_>, Error> {
        tracing::trace!(transaction.name = name, "begin");
        Ok(Tx(self.0.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?))
    }

    /// Begins a transaction that sees one state of the database, and changes nothing.
    pub(crate) async fn begin_snapshot(&mut self, name: &'static str) -> Result<Tx<'_>, Error> {
        tracing::trace!(transaction.name = name, "begin");
        let builder = self.0.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        Ok(Tx(builder.start().await?))
    }
}

impl Tx<'_> {
    pub(crate) async fn commit(self) -> Result<(), Error> {
        Ok(self.0.commit().await?)
    }

    async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.query(&statement, parameters).await?)
    }

    async fn query_opt(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.query_opt(&statement, parameters).await?)
    }

    async fn query_one(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.query_one(&statement, parameters).await?)
    }

    async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.execute(&statement, parameters).await?)
    }
}
