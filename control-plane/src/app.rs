//! What the control plane is made of, and how it starts: at once, with everything that needs Postgres or the store
//! coming about in the background, again and again until it has.

use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_runtime::{Clock, Condition, Health, Listener, Metrics, Tasks, chain};
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

/// How long a start waits before it tries again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What of readiness is the control plane's own.
///
/// It holds from the end of the start on, also while Postgres is away: operators' calls fail then, each with the reason,
/// but nodes go on to be streamed what is published, and must not be turned away.
pub(crate) const CONDITION: &str = "control plane";

/// What a control plane works with.
pub struct Deps {
    /// Object storage.
    pub store: Arc<dyn BlobStore>,
    /// Seals what must not be read, signs tokens.
    pub cluster_key: ClusterKey,
    /// Signs snapshots.
    pub snapshot_signer: SnapshotSigner,
    /// Whose snapshots count as published: the signer's own, and during an exchange of seeds those of the other one.
    pub snapshot_trust: SnapshotTrust,
    /// Tells the time.
    pub clock: Clock,
    /// Runs what goes on in the background; its end is this control plane's.
    pub tasks: Tasks,
    /// Learns when the control plane is ready.
    pub health: Health,
    /// Takes measurements.
    pub metrics: Metrics,
    /// `<key id>:<secret>` of a key that must work, as `ENTREPOT_BOOTSTRAP_KEY` holds it.
    pub bootstrap_key: Option<Secret<String>>,
    /// What becomes of a key that is made because there is no other one.
    pub first_key: FirstKey,
    /// Whether reflection is served.
    pub reflection: Reflection,
}

/// The control plane. Clones are the same one.
#[derive(Clone)]
pub struct ControlPlane(Arc<Plane>);

/// Why a control plane does not start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// Not yet; it goes on trying.
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
        metrics::observe_pool(&deps.metrics, &db);
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
        api::serve(self.0, listener.into()).await
    }

    /// Waits, at most for `limit`, until the database is migrated, an administrator exists and a snapshot is
    /// published.
    ///
    /// # Errors
    /// [`StartError::NotYet`] when the limit is over, [`StartError::Refused`] at once where waiting does not help.
    pub async fn ready(&self, limit: Duration) -> Result<Ready, StartError> {
        let mut stage = self.0.stage.subscribe();
        let settled = stage.wait_for(|stage| !matches!(stage, Stage::Starting { .. }));
        // Whether it settled or the limit is over, the stage says what there is to say.
        drop(tokio::time::timeout(limit, settled).await);
        match self.0.stage() {
            Stage::Ready(ready) => Ok(ready),
            Stage::Starting { why } => Err(StartError::NotYet { why }),
            Stage::Refused { why } => Err(StartError::Refused { why }),
        }
    }
}

/// A control plane that starts, and goes on until the tasks are stopping.
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

    /// Starts, however often it takes; `None` if it has given up.
    async fn start(&self) -> Option<()> {
        let mut wait = RETRY.0;
        let mut first_key = None;
        loop {
            let failure = match self.attempt(&mut first_key).await {
                Ok(registry_id) => {
                    info!(registry.id = %registry_id, "the control plane is ready");
                    self.plane.stage.send_replace(Stage::Ready(Ready { registry_id, first_key }));
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
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// One attempt to start. A key that it makes is kept in `first_key`, also if it fails after that.
    async fn attempt(&self, first_key: &mut Option<Secret<String>>) -> Result<Uuid, AttemptError> {
        self.plane.db.migrate().await?;
        let mut connection = self.plane.db.connect().await?;
        let tx = connection.begin("start").await?;
        let registry = registry::get(&tx).await?;
        drop(tx);
        drop(connection);
        // Before anything is changed: a stranger's snapshot shows that this is not the place, or not the key.
        self.plane.snapshots.pass_on().await?;
        let published = self.plane.snapshots.head().await?;
        match published.filter(|published| *published > registry.version) {
            Some(published) => error!(
                "the published snapshot ({published}) is ahead of this database ({}): pulls and events go on, but the \
                 configuration cannot be changed before `entrepot admin restore` has run",
                registry.version
            ),
            None => {
                let made = bootstrap::run(&self.plane, self.bootstrap_key.as_ref(), &self.first_key).await?;
                *first_key = made.or(first_key.take());
                self.renew().await?;
            }
        }
        self.plane.snapshots.publish().await?;
        Ok(registry.registry_id)
    }

    /// Begins a revision where what is published has to be published anew.
    async fn renew(&self) -> Result<(), AttemptError> {
        if !self.plane.snapshots.is_worn().await? {
            return Ok(());
        }
        let mut connection = self.plane.db.connect().await?;
        let (tx, registry) = self.plane.begin_change(&mut connection, "renew_snapshot").await?;
        tx.commit().await?;
        info!("publishing the snapshot anew, as {}: it was signed with another seed, or is lost", registry.version);
        Ok(())
    }
}

/// Why one attempt to start failed.
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
