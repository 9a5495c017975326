//! What an operator does after a restore of the database: begins a new epoch, and rebuilds the index.

use bytes::Bytes;
use entrepot_proto::node::v1 as wire;
use entrepot_records::layout;
use entrepot_records::{self as records, SnapshotHead};
use entrepot_runtime::{Clock, chain};
use entrepot_store::BlobStore;
use prost::Message as _;
use tracing::debug;
use uuid::Uuid;

use crate::config::Config;
use crate::db::{self, Db, registry};
use crate::error::ApiError;
use crate::reconcile::{Books, Reindexed};
use crate::snapshot::Version;

/// What a restore has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The configuration's version now.
    pub version: Version,
    /// Whether a new epoch has begun: the database was behind what is published.
    pub raised: bool,
    /// What was done to the index.
    pub index: Reindexed,
}

/// What to do with a database that is of another registry than what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Somebody has named the wrong database or the wrong bucket.
    Refused,
    /// It is made anew, since no backup is left: what it has replaces what is published.
    Adopted,
}

/// Why a restore came to nothing, or to half of it: it can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The database.
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
    /// The store.
    #[error("the published snapshot cannot be read from the store")]
    Store(#[from] entrepot_store::Error),
    /// The index.
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
/// the index from the store. The registry keeps the identity that is published, so that tokens stay good.
///
/// Control planes and nodes may run meanwhile: they take the new epoch up by themselves.
///
/// # Errors
/// If the database or the store is away, or the database is [`Foreign`] and that is refused.
pub async fn restore(config: Config, store: &dyn BlobStore, foreign: Foreign) -> Result<Restored, RestoreError> {
    let db = Db::new(config.database, config.pool_size);
    db.migrate().await?;
    let (version, raised) = begin_epoch(&db, published(store).await?, foreign).await?;
    if raised && let Err(error) = db.tell_published().await {
        // Those that run look by themselves every few seconds.
        debug!(error = %chain(&error), "running control planes were not told of the new epoch");
    }
    let index = Books::new(&db, store, &Clock::system()).run().await?;
    Ok(Restored { version, raised, index })
}

/// Begins an epoch if the database is behind what is published; says which version it has, and whether it was.
async fn begin_epoch(
    db: &Db,
    published: Option<(Version, Option<Uuid>)>,
    foreign: Foreign,
) -> Result<(Version, bool), RestoreError> {
    let mut connection = db.connect().await?;
    let tx = connection.begin("restore").await?;
    // Locked, so that of two who restore at once one finds that it is done.
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

/// Rebuilds the index from the store: rows that the store does not show go, missing ones come. Only rows of the last
/// minute are left alone where the store does not show them, since nodes tell of content before they write its record.
///
/// Control planes and nodes may run meanwhile.
///
/// # Errors
/// If the database or the store is away.
pub async fn reindex(config: Config, store: &dyn BlobStore) -> Result<Reindexed, RestoreError> {
    let db = Db::new(config.database, config.pool_size);
    db.migrate().await?;
    Ok(Books::new(&db, store, &Clock::system()).run().await?)
}

/// Which configuration is published, and by which registry, as far as that can be read.
async fn published(store: &dyn BlobStore) -> Result<Option<(Version, Option<Uuid>)>, RestoreError> {
    let Some((head, _)) = records::read::<SnapshotHead>(store, &layout::snapshot_head()).await? else {
        return Ok(None);
    };
    let id = |bytes: Bytes| wire::Snapshot::decode(bytes).ok()?.registry_id.parse().ok();
    let registry_id = store.get(&head.key).await?.and_then(|object| id(object.bytes));
    Ok(Some((Version { epoch: head.epoch, revision: head.revision }, registry_id)))
}
