//! Makes the index agree with the store's records: in a recurring pass for what events have missed, and on demand for
//! an operator who has restored a database.
//!
//! A run goes through the store's list. Each row remembers the version of the record that it was compared with, until
//! the row changes. So only records with another version are read, and a run over an unchanged store reads none. Rows
//! between the listed ones are looked up one by one: their records are gone, or about to be written. Finally the run
//! goes through the repositories of the index that the store has not listed at all.
//!
//! So a lost event delays a listing by one run, and loses nothing. Any number of runs may go on at once, while nodes
//! serve: every repair is decided under the locks under which events are applied, or by the row that it changes. Rows
//! younger than a minute may be ahead of their records, and are never removed. A restored database remembers what its
//! own rows say, so it needs no special care.

mod index;
mod listing;
mod mend;
mod records;
mod store;

use std::collections::HashSet;

use entrepot_domain::RepositoryName;
use entrepot_runtime::{Clock, chain};
use entrepot_store::{BlobStore, Error, Key};
use serde::de::DeserializeOwned;
use tracing::warn;
use uuid::Uuid;

use crate::db::Db;
use crate::error::ApiError;

/// The result of a run over the whole index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reindexed {
    pub repositories: Repaired,
    pub images: Repaired,
    pub tags: Repaired,
}

/// The repairs of one kind of row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// How many the store has.
    pub found: u64,
    /// How many of these the index lacked.
    pub added: u64,
    /// How many the index had but the store has not.
    pub removed: u64,
    /// How many differed from the store.
    pub corrected: u64,
}

impl Repaired {
    /// Counts a row: whether its record shows something, whether the row did, and how many rows have changed.
    fn note(&mut self, shows: bool, showed: bool, changed: u64) {
        self.found += u64::from(shows);
        match (shows, showed) {
            (true, true) => self.corrected += changed,
            (true, false) => self.added += changed,
            (false, true) => self.removed += changed,
            // The index does not lack a tombstone.
            (false, false) => {}
        }
    }
}

/// Which records a run reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Those that have changed since they were compared with their rows.
    Changed,
    /// All of them.
    All,
}

/// A run and its progress.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    stage: Stage,
    /// The incarnations whose repositories the store lists.
    listed: HashSet<Uuid>,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Going through the store; all keys up to this one are done.
    Store(Option<Key>),
    /// Going through the index; all repositories up to this name are done.
    Index(Option<RepositoryName>),
}

impl Default for Stage {
    fn default() -> Self {
        Self::Store(None)
    }
}

/// The index and the store side by side. Nothing here waits for the store with a connection to the database in its
/// hands: others need it meanwhile.
pub(crate) struct Books<'a> {
    db: &'a Db,
    store: &'a dyn BlobStore,
    clock: &'a Clock,
    reads: Reads,
}

impl<'a> Books<'a> {
    pub(crate) fn new(db: &'a Db, store: &'a dyn BlobStore, clock: &'a Clock, reads: Reads) -> Self {
        Self { db, store, clock, reads }
    }

    /// Does a limited part of a run. Returns whether there is more to do. A failed part is repeated.
    pub(crate) async fn step(&self, run: &mut Comparison, counts: &mut Reindexed) -> Result<bool, ApiError> {
        let next = match run.stage.clone() {
            Stage::Store(after) => match self.check_store(after.as_ref(), &mut run.listed, counts).await? {
                Some(last) => Some(Stage::Store(Some(last))),
                None => Some(Stage::Index(None)),
            },
            Stage::Index(after) => {
                let last = self.check_index(after.as_ref(), &run.listed, counts).await?;
                last.map(|last| Stage::Index(Some(last)))
            }
        };
        let goes_on = next.is_some();
        run.stage = next.unwrap_or_default();
        Ok(goes_on)
    }

    /// Does a whole run.
    pub(crate) async fn run(&self) -> Result<Reindexed, ApiError> {
        let (mut run, mut counts) = (Comparison::default(), Reindexed::default());
        while self.step(&mut run, &mut counts).await? {}
        Ok(counts)
    }

    async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Read<T>, ApiError> {
        match entrepot_records::read::<T>(self.store, key).await {
            Ok(Some((record, _))) => Ok(Read::Record(record)),
            Ok(None) => Ok(Read::Absent),
            // One broken record must not stop the rest of the run.
            Err(error @ (Error::BadRecord { .. } | Error::TooLarge { .. })) => {
                warn!(error = %chain(&error), "skipping the record `{key}`, which cannot be read");
                Ok(Read::Unreadable)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What was read at a record's key.
enum Read<T> {
    Record(T),
    Absent,
    /// Something that this release, or any release, cannot read.
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
