//! The one row with the registry's identity and the version of its configuration.

use tokio_postgres::Row;
use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};
use crate::version::Version;

/// The row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registry {
    pub(crate) registry_id: Uuid,
    pub(crate) version: Version,
}

impl Registry {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let version = Version { epoch: column(row, "epoch")?, revision: column(row, "revision")? };
        Ok(Self { registry_id: column(row, "registry_id")?, version })
    }
}

/// The current row.
pub(crate) async fn get(tx: &Tx<'_>) -> Result<Registry, Error> {
    const SQL: &str = "-- registry.get
        SELECT registry_id, epoch, revision FROM registry";
    Registry::from_row(&tx.query_one(SQL, &[]).await?)
}

/// The current row, locked until this transaction ends.
pub(crate) async fn lock(tx: &Tx<'_>) -> Result<Registry, Error> {
    const SQL: &str = "-- registry.lock
        SELECT registry_id, epoch, revision FROM registry FOR UPDATE";
    Registry::from_row(&tx.query_one(SQL, &[]).await?)
}

/// Begins a change of configuration: no other one proceeds until this transaction has ended.
pub(crate) async fn bump(tx: &Tx<'_>) -> Result<Registry, Error> {
    const SQL: &str = "-- registry.bump
        UPDATE registry SET revision = revision + 1 RETURNING registry_id, epoch, revision";
    Registry::from_row(&tx.query_one(SQL, &[]).await?)
}

/// Begins a new epoch, for the registry with this id.
pub(crate) async fn begin_epoch(tx: &Tx<'_>, epoch: i64, registry_id: Uuid) -> Result<Registry, Error> {
    const SQL: &str = "-- registry.begin_epoch
        UPDATE registry SET epoch = $1, registry_id = $2, revision = revision + 1
        RETURNING registry_id, epoch, revision";
    Registry::from_row(&tx.query_one(SQL, &[&epoch, &registry_id]).await?)
}
