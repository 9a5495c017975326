//! Puts a node together and runs it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::listen::Bounds;
use entrepot_runtime::{Clock, Health, Listener, Metrics, Tasks, descriptors};
use entrepot_store::Store;
use entrepot_trust::{ClusterKey, SecretVerifier, SnapshotTrust};
use uuid::Uuid;

use crate::auth::Auth;
use crate::budget::Budgets;
use crate::config::{Config, limits};
use crate::connection::serve;
use crate::control::{Clients, Control, ControlChannels, Gate, NodeToken, Outbox, Watch};
use crate::fill::{Fills, Grants, Places};
use crate::http::server::Server;
use crate::inspect::{Inspector, observe};
use crate::jobs::Jobs;
use crate::lease::Leases;
use crate::memory::{Hold, Memory};
use crate::metrics::{FillMetrics, HttpMetrics, JobMetrics, PullMetrics};
use crate::peer_api::PeerServer;
use crate::peers::{Me, PeerClient, PeerTlsError, Peers, PeersDeps};
use crate::pull::Node;
use crate::questions::Questions;
use crate::readers::Readers;
use crate::repository::{Aside, Damaged, Repositories};
use crate::resolve::{Refusals, Resolver};

/// What a node gets from its process.
pub struct Deps {
    /// The store with the content.
    pub store: Store,
    /// The key that all nodes and the control plane share.
    pub cluster_key: ClusterKey,
    /// The keys whose snapshots are trusted.
    pub snapshot_trust: SnapshotTrust,
    pub clock: Clock,
    /// Runs the node's work, and tells it when to stop.
    pub tasks: Tasks,
    /// Is told when the node is ready.
    pub health: Health,
    pub metrics: Metrics,
    /// The leases by which nodes agree on which of them fills.
    pub leases: Leases,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's id is malformed.
    #[error("the node's id {0}")]
    NodeId(#[from] entrepot_domain::name::NameError),
    /// The folder for spools cannot be used.
    #[error("the folder for spools, `{path}`, cannot be used")]
    SpoolDir { path: String, source: io::Error },
    /// The connection to the control plane is configured wrongly.
    #[error("the control plane cannot be reached in this way; are its address and its authorities right?")]
    Control(#[from] tonic::transport::Error),
    /// The connections to other nodes are configured wrongly.
    #[error(transparent)]
    Peers(#[from] PeerTlsError),
}

/// A node of the data plane.
pub struct DataPlane {
    server: Arc<Server>,
    peer_server: Arc<PeerServer>,
    peer_listener: Option<Listener>,
    peers: Peers,
    aside: Aside,
    watch: Watch,
    questions: Questions,
    jobs: Jobs,
    outbox: Outbox,
    channels: ControlChannels,
    drain_limit: Duration,
    /// The limits of connections from clients, and from other nodes.
    bounds: (Bounds, Bounds),
    /// The tasks of the process. They tell when to stop.
    tasks: Tasks,
    /// Connections and fills, which may continue for a while after that.
    work: Tasks,
}

impl DataPlane {
    /// Builds a node. Nothing runs yet.
    ///
    /// # Errors
    /// If the configuration cannot work.
    pub fn new(config: Config, deps: Deps) -> Result<Self, StartError> {
        let (me, tokens) = (me(&config, &deps)?, deps.cluster_key.tokens());
        let (node_id, clock): (Arc<str>, Clock) = (me.id.as_str().into(), deps.clock.clone());
        empty_spool(&config.spool_dir)?;
        let token = NodeToken { tokens: tokens.clone(), node_id: node_id.clone(), clock: clock.clone() };
        let channels = ControlChannels::new(&config, token, me.boot_id)?;
        let client = PeerClient::new(node_id.clone(), tokens.clone(), clock.clone(), config.peer_ca.as_deref())?;

        let (control, work) = (Control::new(clock.clone()), Tasks::new());
        let memory = memory(&config, &deps, &control, &work);
        let outbox = Outbox::new(deps.store.clone(), me.id.clone(), clock.clone(), &deps.metrics);
        let fill_metrics = FillMetrics::new(&deps.metrics);
        let (key, store) = (deps.cluster_key.clone(), deps.store.clone());
        let known = PeersDeps { store, key, clock: clock.clone(), control: control.clone(), memory: memory.clone() };
        let peers = Peers::new(me.clone(), known, client, &deps.metrics);
        let (damaged, told) = Damaged::new(&deps.metrics);
        let repositories =
            Repositories::new(deps.store.clone(), memory, peers.clone(), outbox.clone(), clock.clone(), damaged);
        let (store, times) = (repositories.store.clone(), config.damage);
        let aside = Aside { store, peers: peers.clone(), clock: clock.clone(), times, told };
        let company = peers.clone();
        let budgets = Budgets::new(deps.leases.redis_client(), move || company.live_count(), work.clone());
        let places = Places { repositories: repositories.clone(), leases: deps.leases, peers: peers.clone() };
        let fills = Fills::new(places, Grants::of(&config), work.clone(), fill_metrics);
        let inspector = Inspector::new(fills.clone(), control.clone(), peers.clone(), clock.clone());
        observe(&control, &deps.metrics);
        let refusals = Refusals::new(clock.clone(), &deps.metrics);
        let (ours, filled, children) = (repositories.clone(), fills.clone(), config.index_children);
        let resolver = Resolver::new(ours, filled, refusals, clock.clone(), work.clone(), children);
        let (most, own, job_metrics) = (config.capacity.fills, control.clone(), JobMetrics::new(&deps.metrics));
        let jobs = Jobs::new(node_id.clone(), own, resolver.clone(), channels.clone(), most, job_metrics);
        let auth = Auth { tokens: tokens.clone(), secrets: SecretVerifier::new(), clock: clock.clone() };
        let (readers, bounds) = (Readers::new(config.capacity.readers, &deps.metrics), bounds(&config));
        let server = Server {
            node: Node { control: control.clone(), auth, resolver, repositories, outbox: outbox.clone(), readers },
            node_id: node_id.clone(),
            external_url: config.external_url,
            trusted_proxies: config.trusted_proxies,
            pulls: PullMetrics::new(&deps.metrics),
            requests: HttpMetrics::new(&deps.metrics),
            answers: inspector.answers.clone(),
        };
        let clients = Clients::new(config.upstream_limits, budgets, &deps.metrics);
        let gate = Gate::new(
            control.clone(),
            deps.snapshot_trust,
            deps.cluster_key.clone(),
            deps.health.condition("snapshot"),
            clock.clone(),
            clients,
            &deps.metrics,
        );
        let watch = Watch::new(node_id.clone(), gate, deps.store.clone(), channels.clone());
        let peer_server =
            PeerServer { me, control, tokens, clock, inspector: inspector.clone(), fills, peers: peers.clone() };
        let questions = Questions { node_id, inspector, peers: peers.clone() };
        Ok(Self {
            server: Arc::new(server),
            peer_server: Arc::new(peer_server),
            peer_listener: None,
            peers,
            aside,
            watch,
            questions,
            jobs,
            outbox,
            channels,
            drain_limit: config.drain_limit,
            bounds,
            tasks: deps.tasks,
            work,
        })
    }

    /// Accepts other nodes at `listener`.
    #[must_use]
    pub fn with_peer_listener(mut self, listener: impl Into<Listener>) -> Self {
        self.peer_listener = Some(listener.into());
        self
    }

    /// Serves until the tasks are told to stop, and then shuts down in order: no new connections are accepted; open
    /// answers and fills end, as far as the limit permits; what was learned is delivered; the node's record is removed.
    pub async fn serve(self, listener: impl Into<Listener>) {
        let (listener, stopping) = (listener.into(), self.tasks.stopping());
        if stopping.run_until_cancelled(self.peers.begin()).await.is_none() {
            return;
        }
        // The services for other nodes continue until this node's work has ended.
        let company = Tasks::new();
        self.watch.spawn(&company);
        self.peers.spawn(&company);
        company.spawn("damaged objects", self.aside.work(company.stopping()));
        self.questions.spawn(&self.channels, &company);
        company.spawn("outbox", self.outbox.deliver(self.channels, company.clone()));
        if let Some(listener) = self.peer_listener {
            // Other nodes follow its fills to their end, and new ones may join.
            let serving = serve(self.peer_server, listener, self.bounds.1, company.clone());
            company.spawn("peer.listener", serving);
        }
        // At the stop, jobs are given back at once, so that other nodes take them while answers end here.
        self.work.spawn("jobs", self.jobs.work(self.work.stopping()));
        self.work.spawn("listener", serve(self.server, listener, self.bounds.0, self.work.clone()));

        stopping.cancelled().await;
        self.work.drain(self.drain_limit).await;
        let farewell = async {
            company.drain(limits::FAREWELL).await;
            self.peers.end().await;
        };
        let _ = tokio::time::timeout(limits::FAREWELL, farewell).await;
    }
}

/// The node's memory of records. It holds nothing if nobody could tell the node to forget something.
fn memory(config: &Config, deps: &Deps, control: &Control, work: &Tasks) -> Memory {
    let own = control.clone();
    let wanted = move || own.current().map_or(Duration::ZERO, |snapshot| snapshot.hold_time);
    let hold = match config.peer_address {
        _ if config.is_alone => Hold::alone(wanted),
        Some(_) => Hold::announced_for(wanted),
        None => Hold::never(),
    };
    let memory = Memory::new(deps.store.clone(), deps.clock.clone(), work.clone(), config.memory_bytes, hold);
    memory.observe(&deps.metrics);
    memory
}

fn me(config: &Config, deps: &Deps) -> Result<Me, StartError> {
    let id: ResourceId = config.node_id.parse()?;
    let (boot_id, start_time) = (Uuid::now_v7(), deps.clock.now());
    Ok(Me { id, boot_id, address: config.peer_address.clone(), start_time })
}

fn empty_spool(path: &Path) -> Result<(), StartError> {
    empty_folder(path).map_err(|source| StartError::SpoolDir { path: path.display().to_string(), source })
}

/// Creates a folder, or removes the files in it: leftovers of an earlier process are useless.
fn empty_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// How many connections it accepts, from clients and from other nodes.
fn bounds(config: &Config) -> (Bounds, Bounds) {
    let (clients, peers) = limits::DESCRIPTORS_PARTS;
    let clients = Bounds::new(descriptors::connections(config.connections, clients));
    let peers = Bounds::new(descriptors::connections(limits::PEER_CONNECTIONS, peers));
    (Bounds { exempt: config.trusted_proxies.clone(), ..clients }, peers)
}
