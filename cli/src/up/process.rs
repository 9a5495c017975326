//! Both planes side by side, from start to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use entrepot_control_plane::{self as control_plane, ControlPlane, FirstKey, Reflection, StartError};
use entrepot_data_plane::{self as data_plane, Capacity, DamageTimes, DataPlane};
use entrepot_domain::Secret;
use entrepot_records::layout;
use entrepot_runtime::program::Signals;
use entrepot_runtime::{Clock, Condition, Health, Listener, Metrics, Tasks, chain, memory, operations};
use entrepot_trust::SnapshotTrust;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use url::Url;

use super::listeners::{Addresses, Listeners};
use super::place::Place;
use super::postgres::Postgres;
use super::welcome::Welcome;
use crate::error::Error;
use crate::output;

/// How long readiness waits for the control plane when pulls could be served already.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a first start may take to make its database.
const FIRST_START_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(20);
/// How long open answers and fills may go on; the data plane bounds itself a little tighter.
const NODE_DRAIN_LIMIT: Duration = Duration::from_secs(30);
const CONTROL_DRAIN_LIMIT: Duration = Duration::from_secs(10);
const OPERATIONS_DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What is told at the start, besides where.
pub(super) struct Options {
    pub(super) external_url: Option<Url>,
    pub(super) largest_blob: u64,
    pub(super) damaged_kept: Duration,
    pub(super) bootstrap_key: Option<Secret<String>>,
    pub(super) reflection: Reflection,
    /// The authority that clients have to trust, if it was made here.
    pub(super) authority: Option<PathBuf>,
}

/// A registry that runs.
pub(super) struct Process {
    /// What has not been started yet.
    control: Option<(control_plane::Config, control_plane::Deps, Vec<Listener>)>,
    node: Option<(DataPlane, Listener)>,
    postgres: Option<Postgres>,
    /// Whether nodes have something to start from without the control plane.
    published: bool,
    health: Health,
    /// Holds once everything is up, or cannot be waited for any longer.
    started: Condition,
    node_tasks: Tasks,
    control_tasks: Tasks,
    operations_tasks: Tasks,
    welcome: Welcome,
}

impl Process {
    /// Prepares everything, and answers probes from now on.
    pub(super) async fn new(
        place: Place,
        listeners: Listeners,
        options: Options,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let Options { external_url, largest_blob, damaged_kept, bootstrap_key, reflection, authority } = options;
        let failed = |error: &(dyn std::error::Error + 'static)| Error::Failed(chain(error).to_string());
        let Addresses { registry, api, .. } = listeners.addresses;
        let (clock, health) = (Clock::system(), Health::new());
        let (node_tasks, control_tasks, operations_tasks) = (Tasks::new(), Tasks::new(), Tasks::new());
        let started = health.condition("start");
        operations::serve(listeners.operations, health.clone(), metrics.clone(), &operations_tasks).await;
        let published = place.store.head(&layout::snapshot_head()).await.map_err(|error| failed(&error))?.is_some();
        let first_key = place.folder.join("first-key");
        let welcome = Welcome {
            addresses: listeners.addresses,
            registry: external_url.as_ref().map_or_else(|| registry.to_string(), host_and_port),
            folder: place.folder.clone(),
            first_key: first_key.clone(),
            chosen_key: bootstrap_key.is_some(),
            is_tls: listeners.registry.is_tls(),
            authority,
        };
        let inner =
            listeners.inner_api.as_ref().map_or(Ok(api), Listener::local_addr).map_err(|error| failed(&error))?;
        let apis = [listeners.api].into_iter().chain(listeners.inner_api).collect();
        listeners.tls.into_iter().for_each(|tls| tls.keep_current(&operations_tasks));
        let control = format!("http://{inner}").parse().expect("an address makes a URL");
        let node = data_plane::Config {
            external_url,
            largest_blob,
            damage: DamageTimes { kept: damaged_kept, ..DamageTimes::default() },
            // The control plane and Postgres are on the same machine.
            capacity: memory::limit_bytes().map_or_else(Capacity::default, |bytes| Capacity::of_memory(bytes / 2)),
            is_alone: true,
            ..data_plane::Config::new(place.node_id.as_str(), vec![control], place.folder.join("spool"))
        };
        let deps = data_plane::Deps {
            store: Arc::clone(&place.store),
            cluster_key: place.cluster_key.clone(),
            snapshot_trust: SnapshotTrust::new(place.snapshot_signer.public_key(), None),
            clock: clock.clone(),
            tasks: node_tasks.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            leases: data_plane::Leases::local(),
        };
        let node = DataPlane::new(node, deps).map_err(|error| failed(&error))?;
        let deps = control_plane::Deps {
            store: place.store,
            cluster_key: place.cluster_key,
            snapshot_trust: SnapshotTrust::new(place.snapshot_signer.public_key(), None),
            snapshot_signer: place.snapshot_signer,
            clock,
            tasks: control_tasks.clone(),
            // Pulls go on without it, so the registry's readiness is not its own.
            health: Health::new(),
            metrics,
            bootstrap_key,
            first_key: FirstKey::File(first_key.clone()),
            reflection,
        };
        Ok(Self {
            control: Some((place.control, deps, apis)),
            node: Some((node, listeners.registry)),
            postgres: place.postgres,
            published,
            health,
            started,
            node_tasks,
            control_tasks,
            operations_tasks,
            welcome,
        })
    }

    /// Starts everything, says when it is ready, and stays until something breaks for good.
    pub(super) async fn run(&mut self) -> Result<(), Error> {
        if self.published {
            self.start_node();
        }
        self.wait_for_postgres().await?;
        let Some((config, deps, listeners)) = self.control.take() else { return Ok(()) };
        let control = ControlPlane::new(config, deps);
        let mut broken = serve_api(control.clone(), listeners, &self.control_tasks);
        tokio::select! {
            outcome = self.say_when_ready(&control) => outcome?,
            _ = broken.wait_for(Option::is_some) => {}
        }
        let why = broken.wait_for(Option::is_some).await.map_or(None, |why| why.clone());
        Err(Error::Failed(why.unwrap_or_else(|| "the API has ended".to_owned())))
    }

    /// Starts the data plane, once.
    fn start_node(&mut self) {
        if let Some((node, listener)) = self.node.take() {
            self.node_tasks.spawn("registry", node.serve(listener));
        }
    }

    /// Waits for the embedded Postgres. Without it, pulls go on where there is a published snapshot.
    async fn wait_for_postgres(&self) -> Result<(), Error> {
        let Some(postgres) = &self.postgres else { return Ok(()) };
        let limit = if self.published { START_LIMIT } else { FIRST_START_LIMIT };
        match postgres.settled(limit).await {
            Err(error) if !self.published => Err(Error::Failed(error.to_string())),
            Err(_) | Ok(()) => Ok(()),
        }
    }

    async fn say_when_ready(&mut self, control: &ControlPlane) -> Result<(), Error> {
        let ready = loop {
            match control.ready(START_LIMIT).await {
                Ok(ready) => break ready,
                Err(StartError::Refused { why }) => return Err(Error::Failed(why)),
                Err(StartError::NotYet { why }) => {
                    let meanwhile = if self.published { "pulls are served meanwhile" } else { "nothing works before" };
                    warn!("the control plane is still starting ({why}); {meanwhile}");
                    self.start_node();
                    self.started.ready();
                }
            }
        };
        self.start_node();
        self.started.ready();
        let mut told = Instant::now();
        while !self.health.is_ready() {
            if told.elapsed() > START_LIMIT {
                told = Instant::now();
                warn!("the data plane is still starting: {:?}", self.health.not_ready());
            }
            sleep(POLL).await;
        }
        info!(registry.id = %ready.registry_id, "ready");
        Ok(output::print(|out| self.welcome.write(out))?)
    }

    /// Stops everything, the database last; each part gets its time, unless another signal comes.
    pub(super) async fn stop(self, mut signals: Signals) {
        info!("stopping: open answers may finish; another signal cuts them off");
        self.health.drain();
        let drain = async {
            self.node_tasks.drain(NODE_DRAIN_LIMIT).await;
            self.control_tasks.drain(CONTROL_DRAIN_LIMIT).await;
            self.operations_tasks.drain(OPERATIONS_DRAIN_LIMIT).await;
        };
        tokio::select! {
            () = drain => {}
            () = signals.received() => warn!("stopping at once"),
        }
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
    }
}

/// Serves the API; the answer says when that has ended although nobody asked for it.
fn serve_api(control: ControlPlane, listeners: Vec<Listener>, tasks: &Tasks) -> watch::Receiver<Option<String>> {
    let (broken, receiver) = watch::channel(None);
    tasks.spawn("api", async move {
        if let Err(error) = control.serve_all(listeners).await {
            broken.send_replace(Some(chain(&error).to_string()));
        }
    });
    receiver
}

/// What clients write before a repository's name.
fn host_and_port(url: &Url) -> String {
    url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
}
