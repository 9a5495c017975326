//! The shared base of the edges, the recurring work and the start. It knows none of them.

use std::path::PathBuf;
use std::sync::Arc;

use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::BlobStore;
use entrepot_trust::{ClusterKey, SecretVerifier, Tokens};
use ipnet::IpNet;
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
    /// How many connections the API serves at once; further ones wait.
    pub(crate) connections: usize,
    /// Whose word on who calls is believed.
    pub(crate) trusted_proxies: Vec<IpNet>,
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
    /// Begins it in an open transaction. No other change proceeds until that transaction has ended.
    ///
    /// # Errors
    /// [`ApiError::Behind`] if the published snapshot is newer than this database.
    pub(crate) async fn begin(&self, tx: &Tx<'_>) -> Result<Registry, ApiError> {
        let registry = registry::bump(tx).await?;
        match self.published {
            Some(published) if published >= registry.version => Err(ApiError::Behind { published }),
            Some(_) | None => Ok(registry),
        }
    }
}

/// The stage of the start.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// It is under way.
    Starting { why: String },
    /// It is done.
    Ready(Ready),
    /// It was given up.
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

    /// Reads the published version, which a change must not fall behind. This comes before any lock, since the store
    /// may be slow.
    pub(crate) async fn prepare_change(&self) -> Result<Change, ApiError> {
        Ok(Change { published: self.snapshots.head().await? })
    }

    /// Begins a change of configuration. No other one can overtake it.
    ///
    /// # Errors
    /// [`ApiError::Behind`] if the published snapshot is newer than this database.
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

/// The facts that are known once a control plane has started.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The id of the registry, which is the audience of its tokens.
    pub registry_id: Uuid,
}

/// What to do if the first administrator's key has to be generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstKey {
    /// Write it to this file, readable only by its owner.
    File(PathBuf),
    /// Generate none: the start is refused.
    None,
}

/// Whether callers may read the API's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reflection {
    /// Everybody may.
    Open,
    /// Nobody may.
    Closed,
}
