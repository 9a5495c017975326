//! What the control plane is made of, and how it starts: at once, with everything that needs Postgres or the store
//! coming about in the background, again and again until it has.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_runtime::{Clock, Condition, Health, Listener, Metrics, Tasks, chain};
use entrepot_store::BlobStore;
use entrepot_trust::{ClusterKey, SecretVerifier, SnapshotSigner, SnapshotTrust, Tokens};
use tokio::sync::watch;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::api::Inquiries;
use crate::api::error::ApiError;
use crate::bootstrap;
use crate::config::Config;
use crate::db::registry::{self, Registry};
use crate::db::{Connection, Db, Tx};
use crate::metrics::{self, Instruments};
use crate::snapshot::{PublishError, Snapshots, Version};
use crate::{api, db, jobs};

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

/// The control plane. Clones are the same one.
#[derive(Clone)]
pub struct ControlPlane(Arc<Plane>);

/// What is known once a control plane has started.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Identifies the registry; the audience of its tokens.
    pub registry_id: Uuid,
    /// `<key id>:<secret>` of the first administrator, if this start made it. It is nowhere else.
    pub first_key: Option<Secret<String>>,
}

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

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that reflection serves are broken.
    #[error("reflection cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("gRPC cannot be served")]
    Transport(#[from] tonic::transport::Error),
}

/// Everything that the services and jobs share.
pub(crate) struct Plane {
    pub(crate) db: Db,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) cluster_key: ClusterKey,
    pub(crate) tokens: Tokens,
    pub(crate) secrets: SecretVerifier,
    pub(crate) snapshots: Snapshots,
    pub(crate) inquiries: Inquiries,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) reflection: Reflection,
    pub(crate) metrics: Metrics,
    pub(crate) instruments: Instruments,
    stage: watch::Sender<Stage>,
    condition: Condition,
    bootstrap_key: Option<Secret<String>>,
    first_key: FirstKey,
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
            &deps.metrics.meter("entrepot.control_plane"),
        );
        let plane = Arc::new(Plane {
            db,
            store: deps.store,
            tokens: deps.cluster_key.tokens(),
            cluster_key: deps.cluster_key,
            secrets: SecretVerifier::new(),
            snapshots,
            inquiries: Inquiries::default(),
            clock: deps.clock,
            tasks: deps.tasks,
            reflection: deps.reflection,
            instruments: Instruments::new(&deps.metrics.meter("entrepot.control_plane")),
            metrics: deps.metrics,
            stage: watch::Sender::new(Stage::Starting { why: "it has just begun".to_owned() }),
            condition: deps.health.condition(CONDITION),
            bootstrap_key: deps.bootstrap_key,
            first_key: deps.first_key,
        });
        plane.tasks.spawn("control plane", Arc::clone(&plane).run());
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

    async fn run(self: Arc<Self>) {
        let stopping = self.tasks.stopping();
        let Some(Some(())) = stopping.run_until_cancelled(self.start()).await else { return };
        jobs::spawn(&self);
        let publish_and_listen =
            async { tokio::join!(self.snapshots.keep_published(), self.db.listen(|| self.snapshots.wake())) };
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
                    self.stage.send_replace(Stage::Ready(Ready { registry_id, first_key }));
                    self.condition.ready();
                    return Some(());
                }
                Err(failure) => failure,
            };
            let why = chain(&failure).to_string();
            self.condition.not_ready(&why);
            if !failure.may_retry() {
                error!(error = why, "the control plane cannot start");
                self.stage.send_replace(Stage::Refused { why });
                return None;
            }
            warn!(error = why, "the control plane has not started yet, trying again");
            self.stage.send_replace(Stage::Starting { why });
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// One attempt to start. A key that it makes is kept in `first_key`, also if it fails after that.
    async fn attempt(&self, first_key: &mut Option<Secret<String>>) -> Result<Uuid, AttemptError> {
        self.db.migrate().await?;
        let mut connection = self.db.connect().await?;
        let tx = connection.begin("start").await?;
        let registry = registry::get(&tx).await?;
        drop(tx);
        drop(connection);
        // Before anything is changed: a stranger's snapshot shows that this is not the place, or not the key.
        self.snapshots.pass_on().await?;
        let published = self.snapshots.head().await?;
        match published.filter(|published| *published > registry.version) {
            Some(published) => error!(
                "the published snapshot ({published}) is ahead of this database ({}): pulls and events go on, but the \
                 configuration cannot be changed before `entrepot admin restore` has run",
                registry.version
            ),
            None => {
                let made = bootstrap::run(self, self.bootstrap_key.as_ref(), &self.first_key).await?;
                *first_key = made.or(first_key.take());
                self.renew().await?;
            }
        }
        self.snapshots.publish().await?;
        Ok(registry.registry_id)
    }

    /// Begins a revision where what is published has to be published anew.
    async fn renew(&self) -> Result<(), AttemptError> {
        if !self.snapshots.is_worn().await? {
            return Ok(());
        }
        let mut connection = self.db.connect().await?;
        let (tx, registry) = self.begin_change(&mut connection, "renew_snapshot").await?;
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
