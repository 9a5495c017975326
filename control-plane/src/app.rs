//! The parts of the control plane, and its start: it serves at once, while everything that needs Postgres or the store
//! is set up in the background, with retries until it works.

use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_runtime::{Backoff, Clock, Condition, Health, Listener, Metrics, Tasks, chain};
use entrepot_store::BlobStore;
use entrepot_trust::{ClusterKey, SecretVerifier, SnapshotSigner, SnapshotTrust};
use tokio::sync::watch;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::api::{self, ServeError};
use crate::bootstrap;
use crate::config::Config;
use crate::db::{self, Db, registry};
use crate::error::ApiError;
use crate::inquiries::Inquiries;
use crate::metrics::{self, Instruments};
use crate::plane::{FirstKey, Plane, Ready, Reflection, Stage};
use crate::recurring;
use crate::session::Sessions;
use crate::snapshot::{PublishError, Snapshots};

/// The first and the longest wait before the start is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The control plane's own condition for readiness.
///
/// It holds from the end of the start on, even while Postgres is away: operators' calls then fail with a reason, but
/// nodes still get the published snapshot and must not be turned away.
pub(crate) const CONDITION: &str = "control plane";

/// What a control plane needs.
pub struct Deps {
    pub store: Arc<dyn BlobStore>,
    /// Seals secrets, and signs tokens.
    pub cluster_key: ClusterKey,
    pub snapshot_signer: SnapshotSigner,
    /// The keys whose snapshots count as published: the signer's own, and the other one during an exchange of seeds.
    pub snapshot_trust: SnapshotTrust,
    pub clock: Clock,
    /// Runs background work. When these tasks end, so does this control plane.
    pub tasks: Tasks,
    /// Is told when the control plane is ready.
    pub health: Health,
    pub metrics: Metrics,
    /// `<key id>:<secret>` of a key that must work, from `ENTREPOT_BOOTSTRAP_KEY`.
    pub bootstrap_key: Option<Secret<String>>,
    /// What happens to a generated first key, if there is no other.
    pub first_key: FirstKey,
    pub reflection: Reflection,
}

/// The control plane. Clones share it.
#[derive(Clone)]
pub struct ControlPlane(Arc<Plane>);

/// Why a control plane is not ready.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// It is still trying.
    #[error("the control plane is not ready yet: {why}")]
    NotYet {
        /// What it waits for.
        why: String,
    },
    /// It has given up: somebody must act.
    #[error("the control plane cannot start: {why}")]
    Refused {
        /// What is wrong, and what to do about it.
        why: String,
    },
}

impl ControlPlane {
    /// Makes a control plane that starts in the background. It answers `UNAVAILABLE` until it is ready.
    pub fn new(config: Config, deps: Deps) -> Self {
        let db = Db::new(config.database, config.pool_size);
        metrics::observe_database(&deps.metrics, &db);
        let snapshots = Snapshots::new(
            db.clone(),
            Arc::clone(&deps.store),
            (deps.snapshot_signer, deps.snapshot_trust, deps.cluster_key.clone()),
            deps.clock.clone(),
            config.hold_time,
            &deps.metrics.meter("entrepot.control_plane"),
        );
        let secrets = SecretVerifier::new();
        let plane = Arc::new(Plane {
            sessions: Sessions::new(db.clone(), deps.cluster_key.clone(), secrets.clone()),
            db,
            store: deps.store,
            tokens: deps.cluster_key.tokens(),
            cluster_key: deps.cluster_key,
            secrets,
            snapshots,
            inquiries: Inquiries::default(),
            clock: deps.clock,
            tasks: deps.tasks,
            reflection: deps.reflection,
            connections: config.connections,
            trusted_proxies: config.trusted_proxies,
            instruments: Instruments::new(&deps.metrics.meter("entrepot.control_plane")),
            metrics: deps.metrics,
            stage: watch::Sender::new(Stage::Starting { why: "it has just begun".to_owned() }),
        });
        let start = Start {
            plane: Arc::clone(&plane),
            condition: deps.health.condition(CONDITION),
            bootstrap_key: deps.bootstrap_key,
            first_key: deps.first_key,
        };
        plane.tasks.spawn("control plane", start.run());
        Self(plane)
    }

    /// Serves gRPC on `listener` until the tasks are stopping.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(self, listener: impl Into<Listener>) -> Result<(), ServeError> {
        self.serve_all(vec![listener.into()]).await
    }

    /// Serves gRPC on all `listeners` until the tasks are stopping.
    ///
    /// # Errors
    /// As [`ControlPlane::serve`].
    pub async fn serve_all(self, listeners: Vec<Listener>) -> Result<(), ServeError> {
        api::serve(self.0, listeners).await
    }

    /// Waits, for at most `limit`, until the database is migrated, an administrator exists and a snapshot is published.
    ///
    /// # Errors
    /// [`StartError::NotYet`] after `limit`; [`StartError::Refused`] at once if waiting does not help.
    pub async fn ready(&self, limit: Duration) -> Result<Ready, StartError> {
        let mut stage = self.0.stage.subscribe();
        let settled = stage.wait_for(|stage| !matches!(stage, Stage::Starting { .. }));
        // Whether the start has finished or the time is over, the stage tells the result.
        drop(tokio::time::timeout(limit, settled).await);
        match self.0.stage() {
            Stage::Ready(ready) => Ok(ready),
            Stage::Starting { why } => Err(StartError::NotYet { why }),
            Stage::Refused { why } => Err(StartError::Refused { why }),
        }
    }
}

/// Starts the control plane, and keeps its background work going until the tasks are stopping.
struct Start {
    plane: Arc<Plane>,
    condition: Condition,
    bootstrap_key: Option<Secret<String>>,
    first_key: FirstKey,
}

impl Start {
    async fn run(self) {
        let stopping = self.plane.tasks.stopping();
        let Some(Some(())) = stopping.run_until_cancelled(self.start()).await else { return };
        recurring::spawn(&self.plane);
        let publish_and_listen = async {
            tokio::join!(self.plane.snapshots.keep_published(), self.plane.db.listen(|| self.plane.snapshots.wake()))
        };
        stopping.run_until_cancelled(Box::pin(publish_and_listen)).await;
    }

    /// Tries to start until it works; `None` if it has given up.
    async fn start(&self) -> Option<()> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let failure = match self.attempt().await {
                Ok(registry_id) => {
                    info!(registry.id = %registry_id, "the control plane is ready");
                    self.plane.stage.send_replace(Stage::Ready(Ready { registry_id }));
                    self.condition.ready();
                    return Some(());
                }
                Err(failure) => failure,
            };
            let why = chain(&failure).to_string();
            self.condition.not_ready(&why);
            if !failure.may_retry() {
                error!(error = why, "the control plane cannot start");
                self.plane.stage.send_replace(Stage::Refused { why });
                return None;
            }
            warn!(error = why, "the control plane has not started yet, trying again");
            self.plane.stage.send_replace(Stage::Starting { why });
            backoff.wait().await;
        }
    }

    /// One attempt to start.
    async fn attempt(&self) -> Result<Uuid, AttemptError> {
        self.plane.db.migrate().await?;
        let mut connection = self.plane.db.connect().await?;
        let tx = connection.begin("start").await?;
        let registry = registry::get(&tx).await?;
        drop(tx);
        drop(connection);
        // This comes before any change: a foreign snapshot shows that this is the wrong store or the wrong key.
        self.plane.snapshots.pass_on().await?;
        let published = self.plane.snapshots.head().await?;
        match published.filter(|published| *published > registry.version) {
            Some(published) => error!(
                "the published snapshot ({published}) is ahead of this database ({}): pulls and events go on, but the \
                 configuration cannot be changed before `entrepot admin restore` has run",
                registry.version
            ),
            None => {
                bootstrap::run(&self.plane, self.bootstrap_key.as_ref(), &self.first_key).await?;
                self.renew().await?;
            }
        }
        self.plane.snapshots.publish().await?;
        Ok(registry.registry_id)
    }

    /// Begins a revision if the published snapshot has to be replaced.
    async fn renew(&self) -> Result<(), AttemptError> {
        let Some(why) = self.plane.snapshots.why_anew().await? else { return Ok(()) };
        let mut connection = self.plane.db.connect().await?;
        let (tx, registry) = self.plane.begin_change(&mut connection, "renew_snapshot").await?;
        tx.commit().await?;
        info!("publishing the snapshot anew, as {}: {why}", registry.version);
        Ok(())
    }
}

/// Why an attempt to start failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error(transparent)]
    Db(#[from] db::Error),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::Error),
    #[error("the first key cannot be made")]
    Change(#[from] ApiError),
}

impl AttemptError {
    fn may_retry(&self) -> bool {
        match self {
            Self::Db(error) => error.may_retry(),
            Self::Publish(error) => error.may_retry(),
            Self::Bootstrap(error) => error.may_retry(),
            Self::Change(error) => error.may_retry(),
        }
    }
}
