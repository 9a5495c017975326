//! What an operator runs after restoring the database: it begins a new epoch, and rebuilds the index.

use bytes::Bytes;
use entrepot_proto::node::v1 as wire;
use entrepot_runtime::{Clock, chain};
use entrepot_store::BlobStore;
use prost::Message as _;
use tracing::debug;
use uuid::Uuid;

use crate::config::Config;
use crate::db::{self, Db, registry};
use crate::error::ApiError;
use crate::reconcile::{Books, Reads, Reindexed};
use crate::snapshot::{Head, Version};

/// The result of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The version of the configuration now.
    pub version: Version,
    /// Whether a new epoch has begun, because the database was behind the published snapshot.
    pub raised: bool,
    /// The changes to the index.
    pub index: Reindexed,
}

/// What to do if the database belongs to another registry than the published snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Refuse: somebody has named the wrong database or the wrong bucket.
    Refused,
    /// Accept: the database was created anew because there is no backup, and its content replaces what is published.
    Adopted,
}

/// Why a restore failed, completely or halfway. It can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the database cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is not a backup of this registry.
    #[error(
        "the database is of another registry ({database}) than what is published in the bucket ({published}): look which \
         ones the configuration names; if the database is new, since no backup is left, --adopt takes it, and its \
         configuration replaces what is published"
    )]
    Foreign {
        /// The registry of the database.
        database: Uuid,
        /// The registry of the store.
        published: Uuid,
    },
    #[error("the published snapshot cannot be read from the store")]
    Store(#[from] entrepot_store::Error),
    #[error("the index cannot be rebuilt")]
    Index(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<db::Error> for RestoreError {
    fn from(error: db::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<ApiError> for RestoreError {
    fn from(error: ApiError) -> Self {
        Self::Index(error.into())
    }
}

/// Raises the epoch of a database that is behind the published snapshot, as after a restore from a backup, and rebuilds
/// the index from the store. The registry keeps its published identity, so tokens stay valid.
///
/// Control planes and nodes may keep running: they adopt the new epoch by themselves.
///
/// # Errors
/// If the database or the store is away, or if the database is [`Foreign`] and that is refused.
pub async fn restore(config: Config, store: &dyn BlobStore, foreign: Foreign) -> Result<Restored, RestoreError> {
    let db = Db::new(config.database, config.pool_size);
    db.migrate().await?;
    let (version, raised) = begin_epoch(&db, read_published(store).await?, foreign).await?;
    if raised && let Err(error) = db.tell_published().await {
        // Running control planes look by themselves every few seconds.
        debug!(error = %chain(&error), "running control planes were not told of the new epoch");
    }
    let index = Books::new(&db, store, &Clock::system(), Reads::All).run().await?;
    Ok(Restored { version, raised, index })
}

/// Begins an epoch if the database is behind the published snapshot. Returns the version, and whether it was behind.
async fn begin_epoch(
    db: &Db,
    published: Option<(Version, Option<Uuid>)>,
    foreign: Foreign,
) -> Result<(Version, bool), RestoreError> {
    let mut connection = db.connect().await?;
    let tx = connection.begin("restore").await?;
    // The row is locked, so that of two concurrent restores one finds that it is done already.
    let registry = registry::lock(&tx).await?;
    let Some((head, id)) = published.filter(|(version, _)| *version > registry.version) else {
        return Ok((registry.version, false));
    };
    let registry_id = id.unwrap_or(registry.registry_id);
    if registry_id != registry.registry_id && foreign == Foreign::Refused {
        return Err(RestoreError::Foreign { database: registry.registry_id, published: registry_id });
    }
    let raised = registry::begin_epoch(&tx, head.epoch.saturating_add(1), registry_id).await?;
    tx.commit().await?;
    Ok((raised.version, true))
}

/// Rewrites unreadable records of repositories from their rows, and then rebuilds the index from the store: rows that
/// the store does not have are removed, and missing ones are added. Only rows of the last minute are left alone if the
/// store does not have them, since nodes report content before they write its record.
///
/// Control planes and nodes may keep running.
///
/// # Errors
/// If the database or the store is away.
pub async fn reindex(config: Config, store: &dyn BlobStore) -> Result<Reindexed, RestoreError> {
    let db = Db::new(config.database, config.pool_size);
    db.migrate().await?;
    let clock = Clock::system();
    let books = Books::new(&db, store, &clock, Reads::All);
    books.mend_repositories().await?;
    Ok(books.run().await?)
}

/// The published version and its registry, as far as they can be read.
async fn read_published(store: &dyn BlobStore) -> Result<Option<(Version, Option<Uuid>)>, RestoreError> {
    let Some((version, key)) = Head::read(store).await?.published(store).await? else { return Ok(None) };
    let id = |bytes: Bytes| wire::Snapshot::decode(bytes).ok()?.registry_id.parse().ok();
    let registry_id = store.get(&key).await?.and_then(|object| id(object.bytes));
    Ok(Some((version, registry_id)))
}
