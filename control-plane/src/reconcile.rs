//! Makes the index say what the store's records show: a recurring pass for what events have missed, and at once for an
//! operator who has restored a database.
//!
//! A run first goes through the index and looks up each row's record, then through the store and looks for each
//! record's row. So a lost event delays a listing by one run, and loses nothing. Any number of runs may go on at once,
//! while nodes serve: every repair is decided under the locks that events are applied under, or by the row that it
//! changes. Rows that are not older than a minute may be ahead of their records, and are never removed.

mod index;
mod store;

use entrepot_domain::RepositoryName;
use entrepot_records as records;
use entrepot_runtime::{Clock, chain};
use entrepot_store::{BlobStore, Error, Key};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::db::Db;
use crate::db::tags::Moved;
use crate::error::ApiError;

/// What a run over the whole index has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reindexed {
    /// Of repositories.
    pub repositories: Repaired,
    /// Of images.
    pub images: Repaired,
    /// Of tags.
    pub tags: Repaired,
}

/// What was done to one kind of row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// How many the store shows.
    pub found: u64,
    /// How many of these the index lacked.
    pub added: u64,
    /// How many the index had and the store does not show.
    pub removed: u64,
    /// How many said something else than the store.
    pub corrected: u64,
}

/// How far a run has come.
#[derive(Clone, Debug, Default)]
pub(crate) enum Position {
    /// Nothing is done yet.
    #[default]
    Begin,
    /// Going through the index; the repositories up to this name are done.
    Index(RepositoryName),
    /// Going through the store; the keys up to this one are done.
    Store(Option<Key>),
}

impl Position {
    pub(crate) fn is_begin(&self) -> bool {
        matches!(self, Self::Begin)
    }
}

/// The index and the store, side by side.
pub(crate) struct Books<'a> {
    db: &'a Db,
    store: &'a dyn BlobStore,
    clock: &'a Clock,
}

impl<'a> Books<'a> {
    pub(crate) fn new(db: &'a Db, store: &'a dyn BlobStore, clock: &'a Clock) -> Self {
        Self { db, store, clock }
    }

    /// Does a bounded part of a run, and says where the next one begins.
    pub(crate) async fn step(&mut self, position: &Position, counts: &mut Reindexed) -> Result<Position, ApiError> {
        match position {
            Position::Begin => self.check_index(None, counts).await,
            Position::Index(after) => self.check_index(Some(after), counts).await,
            Position::Store(after) => self.check_store(after.as_ref(), counts).await,
        }
    }

    /// Does a whole run.
    pub(crate) async fn run(&mut self) -> Result<Reindexed, ApiError> {
        let mut counts = Reindexed::default();
        let mut position = Position::Begin;
        loop {
            position = self.step(&position, &mut counts).await?;
            if position.is_begin() {
                return Ok(counts);
            }
        }
    }

    async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Read<T>, ApiError> {
        match records::read::<T>(self.store, key).await {
            Ok(Some((record, _))) => Ok(Read::Record(record)),
            Ok(None) => Ok(Read::Absent),
            // One broken record must not keep the rest from being looked at.
            Err(error @ (Error::BadRecord { .. } | Error::TooLarge { .. })) => {
                warn!(error = %chain(&error), "passing over the record `{key}`, which cannot be read");
                Ok(Read::Unreadable)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What there is in place of a record.
enum Read<T> {
    Record(T),
    Absent,
    /// Something that is not for this release, or for nobody.
    Unreadable,
}

impl<T> Read<T> {
    fn record(self) -> Option<T> {
        match self {
            Self::Record(record) => Some(record),
            Self::Absent | Self::Unreadable => None,
        }
    }
}

/// What a tag's record says to the index.
fn moved<'r>(tag: &'r entrepot_domain::Tag, record: &'r records::TagRecord) -> Moved<'r> {
    Moved { tag, digest: record.digest.as_ref(), revision: record.revision, validate_time: record.validate_time }
}
