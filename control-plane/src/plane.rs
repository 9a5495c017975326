//! What the edges, the recurring work and the start stand on. It knows none of them.

use std::path::PathBuf;
use std::sync::Arc;

use entrepot_domain::Secret;
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::BlobStore;
use entrepot_trust::{ClusterKey, SecretVerifier, Tokens};
use tokio::sync::watch;
use uuid::Uuid;

use crate::db::registry::{self, Registry};
use crate::db::{Connection, Db, Tx};
use crate::error::ApiError;
use crate::inquiries::Inquiries;
use crate::metrics::Instruments;
use crate::session::Sessions;
use crate::snapshot::{Snapshots, Version};

/// Everything that the services and the recurring work share.
pub(crate) struct Plane {
    pub(crate) db: Db,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) cluster_key: ClusterKey,
    pub(crate) tokens: Tokens,
    pub(crate) secrets: SecretVerifier,
    pub(crate) sessions: Sessions,
    pub(crate) snapshots: Snapshots,
    pub(crate) inquiries: Inquiries,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) reflection: Reflection,
    pub(crate) metrics: Metrics,
    pub(crate) instruments: Instruments,
    pub(crate) stage: watch::Sender<Stage>,
}

/// A change of configuration that is about to begin.
pub(crate) struct Change {
    /// What was published before.
    published: Option<Version>,
}

impl Change {
    /// Begins it in a transaction that is open already; no other change goes on until that has ended.
    ///
    /// # Errors
    /// [`ApiError::Behind`] if the published snapshot is ahead of this database.
    pub(crate) async fn begin(&self, tx: &Tx<'_>) -> Result<Registry, ApiError> {
        let registry = registry::bump(tx).await?;
        match self.published {
            Some(published) if published >= registry.version => Err(ApiError::Behind { published }),
            Some(_) | None => Ok(registry),
        }
    }
}

/// How far the start has come.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// It goes on.
    Starting { why: String },
    /// Done.
    Ready(Ready),
    /// Given up.
    Refused { why: String },
}

impl Plane {
    pub(crate) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Tells when the start is done.
    pub(crate) fn watch_stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Looks at what a change of configuration must not fall behind. Before any lock: the store can be slow.
    pub(crate) async fn prepare_change(&self) -> Result<Change, ApiError> {
        Ok(Change { published: self.snapshots.head().await? })
    }

    /// Begins a change of configuration, which no other one overtakes.
    ///
    /// # Errors
    /// [`ApiError::Behind`] if the published snapshot is ahead of this database.
    pub(crate) async fn begin_change<'c>(
        &self,
        connection: &'c mut Connection,
        name: &'static str,
    ) -> Result<(Tx<'c>, Registry), ApiError> {
        let change = self.prepare_change().await?;
        let tx = connection.begin(name).await?;
        let registry = change.begin(&tx).await?;
        Ok((tx, registry))
    }
}

/// What is known once a control plane has started.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Identifies the registry; the audience of its tokens.
    pub registry_id: Uuid,
    /// `<key id>:<secret>` of the first administrator, if this start made it. It is nowhere else.
    pub first_key: Option<Secret<String>>,
}

/// What becomes of the first administrator's key where it has to be made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstKey {
    /// [`Ready`] has it: whoever starts the control plane shows it, once.
    Shown,
    /// It is written to this file, for its owner only.
    File(PathBuf),
    /// None is made: the start is refused.
    None,
}

/// Whether callers may ask for the API's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reflection {
    /// Everybody may.
    Open,
    /// Nobody may.
    Closed,
}
