//! What an operator does after a restore of the database: begins a new epoch.

use entrepot_proto::node::v1 as wire;
use entrepot_store::records::{self, SnapshotHead};
use entrepot_store::{BlobStore, layout};
use prost::Message as _;
use uuid::Uuid;

use crate::config::Config;
use crate::db::{self, Db, registry};
use crate::snapshot::Version;

/// What a restore has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// A new epoch has begun; the next start publishes it and repairs the index.
    Raised(Version),
    /// The database is not behind what is published: nothing was done.
    NotBehind(Version),
}

/// Why a restore came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The database.
    #[error("the database cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store.
    #[error("the published snapshot cannot be read from the store")]
    Store(#[from] entrepot_store::Error),
}

impl From<db::Error> for RestoreError {
    fn from(error: db::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Raises the epoch of a database that is behind the published snapshot, as after a restore from a backup. The
/// registry keeps the identity that is published, so that tokens stay good.
///
/// # Errors
/// If the database or the store is away.
pub async fn restore(config: Config, store: &dyn BlobStore) -> Result<Restored, RestoreError> {
    let db = Db::new(config.database, config.pool_size);
    db.migrate().await?;
    let mut connection = db.connect().await?;
    let tx = connection.begin("restore").await?;
    let registry = registry::get(&tx).await?;
    let head = records::read::<SnapshotHead>(store, &layout::snapshot_head()).await?;
    let Some((head, _)) =
        head.filter(|(head, _)| Version { epoch: head.epoch, revision: head.revision } > registry.version)
    else {
        return Ok(Restored::NotBehind(registry.version));
    };
    let published = store.get(&head.key).await?.and_then(|object| wire::Snapshot::decode(object.bytes).ok());
    let published = published.and_then(|snapshot| snapshot.registry_id.parse::<Uuid>().ok());
    let registry = registry::begin_epoch(&tx, head.epoch + 1, published.unwrap_or(registry.registry_id)).await?;
    tx.commit().await?;
    Ok(Restored::Raised(registry.version))
}
