//! Puts a node together and runs it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::{Clock, Health, Listener, Metrics, Tasks};
use entrepot_store::Store;
use entrepot_trust::{ClusterKey, SecretVerifier, SnapshotTrust};
use uuid::Uuid;

use crate::auth::Auth;
use crate::budget::Budgets;
use crate::config::{Config, limits};
use crate::connection::serve;
use crate::control::{Clients, Control, Gate, Line, NodeToken, Outbox, Watch};
use crate::fill::{Fills, Places};
use crate::http::readers::Readers;
use crate::http::server::Server;
use crate::inspect::{Inspector, observe};
use crate::jobs::Jobs;
use crate::lease::Leases;
use crate::memory::{Hold, Memory};
use crate::metrics::{FillMetrics, HttpMetrics, JobMetrics, PullMetrics};
use crate::peer_api::PeerServer;
use crate::peers::{Ground, Me, PeerClient, PeerTlsError, Peers};
use crate::pull::Node;
use crate::questions::Questions;
use crate::repository::Repositories;
use crate::resolve::{Refusals, Resolver};

/// What a node is given by the process that it runs in.
pub struct Deps {
    /// Where content is.
    pub store: Store,
    /// Shared by all nodes and the control plane.
    pub cluster_key: ClusterKey,
    /// Whose snapshots to believe.
    pub snapshot_trust: SnapshotTrust,
    /// What time it is.
    pub clock: Clock,
    /// Where to spawn, and when to stop.
    pub tasks: Tasks,
    /// Where to say that it is ready.
    pub health: Health,
    /// Where to count.
    pub metrics: Metrics,
    /// Where nodes agree on which of them fills.
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
    SpoolDir {
        /// Which folder.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The way to the control plane cannot be.
    #[error("the control plane cannot be reached in this way; are its address and its authorities right?")]
    Control(#[from] tonic::transport::Error),
    /// Nor can the one to other nodes.
    #[error(transparent)]
    Peers(#[from] PeerTlsError),
}

/// A node of the data plane.
pub struct DataPlane {
    server: Arc<Server>,
    peer_server: Arc<PeerServer>,
    peer_listener: Option<Listener>,
    peers: Peers,
    watch: Watch,
    questions: Questions,
    jobs: Jobs,
    outbox: Outbox,
    line: Line,
    drain_limit: Duration,
    /// What the process knows of. It says when to stop.
    tasks: Tasks,
    /// Connections and fills: what may go on for a while then.
    work: Tasks,
}

impl DataPlane {
    /// Puts a node together. Nothing runs yet.
    ///
    /// # Errors
    /// If the configuration cannot work.
    pub fn new(config: Config, deps: Deps) -> Result<Self, StartError> {
        let (me, tokens) = (me(&config, &deps)?, deps.cluster_key.tokens());
        let (node_id, clock): (Arc<str>, Clock) = (me.id.as_str().into(), deps.clock.clone());
        empty_folder(&config.spool_dir)
            .map_err(|source| StartError::SpoolDir { path: config.spool_dir.display().to_string(), source })?;
        let token = NodeToken { tokens: tokens.clone(), node_id: node_id.clone(), clock: clock.clone() };
        let line = Line::new(&config, token, me.boot_id)?;
        let client = PeerClient::new(node_id.clone(), tokens.clone(), clock.clone(), config.peer_ca.as_deref())?;

        let (control, work) = (Control::default(), Tasks::new());
        let memory = memory(&config, &deps, &control, &work);
        memory.observe(&deps.metrics);
        let outbox = Outbox::new(deps.store.clone(), me.id.clone(), clock.clone(), &deps.metrics);
        let fill_metrics = FillMetrics::new(&deps.metrics);
        let (key, store) = (deps.cluster_key.clone(), deps.store.clone());
        let ground = Ground { store, key, clock: clock.clone(), control: control.clone(), memory: memory.clone() };
        let peers = Peers::new(me.clone(), ground, client, &deps.metrics);
        let repositories = Repositories::new(deps.store.clone(), memory, peers.clone(), outbox.clone(), clock.clone());
        let company = peers.clone();
        let budgets = Budgets::new(deps.leases.line(), move || company.live_count(), work.clone());
        let places = Places { repositories: repositories.clone(), leases: deps.leases, peers: peers.clone() };
        let fills = Fills::new(places, config.spool_dir, work.clone(), config.capacity, fill_metrics);
        let inspector = Inspector::new(fills.clone(), control.clone(), peers.clone(), clock.clone());
        observe(&control, &deps.metrics);
        let refusals = Refusals::new(clock.clone(), &deps.metrics);
        let (ours, filled, children) = (repositories.clone(), fills.clone(), config.index_children);
        let resolver = Resolver::new(ours, filled, refusals, clock.clone(), work.clone(), children);
        let job_metrics = JobMetrics::new(&deps.metrics);
        let (most, own) = (config.capacity.fills, control.clone());
        let jobs = Jobs::new(node_id.clone(), own, resolver.clone(), line.clone(), most, job_metrics);
        let auth = Auth { tokens: tokens.clone(), secrets: SecretVerifier::new(), clock: clock.clone() };
        let server = Server {
            node: Node { control: control.clone(), auth, resolver, repositories, outbox: outbox.clone() },
            node_id: node_id.clone(),
            external_url: config.external_url,
            trusted_proxies: config.trusted_proxies,
            readers: Readers::new(config.capacity.readers, &deps.metrics),
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
        let watch = Watch::new(node_id.clone(), gate, deps.store.clone(), line.clone());
        let peer_server =
            PeerServer { me, control, tokens, clock, inspector: inspector.clone(), fills, peers: peers.clone() };
        let questions = Questions { node_id, inspector, peers: peers.clone() };
        Ok(Self {
            server: Arc::new(server),
            peer_server: Arc::new(peer_server),
            peer_listener: None,
            peers,
            watch,
            questions,
            jobs,
            outbox,
            line,
            drain_limit: config.drain_limit,
            tasks: deps.tasks,
            work,
        })
    }

    /// Lets other nodes reach this one at `listener`.
    #[must_use]
    pub fn with_peer_listener(mut self, listener: impl Into<Listener>) -> Self {
        self.peer_listener = Some(listener.into());
        self
    }

    /// Serves until the tasks are told to stop, and ends in order: no new connections; open answers and fills end, as
    /// far as the limit lets them; what was learnt is delivered; the node's record is removed.
    pub async fn serve(self, listener: impl Into<Listener>) {
        let (listener, stopping) = (listener.into(), self.tasks.stopping());
        if stopping.run_until_cancelled(self.peers.begin()).await.is_none() {
            return;
        }
        // What others look for in this node goes on until its work has ended.
        let company = Tasks::new();
        self.watch.spawn(&company);
        self.peers.spawn(&company);
        self.questions.spawn(&self.line, &company);
        company.spawn("outbox", self.outbox.deliver(self.line, company.clone()));
        if let Some(listener) = self.peer_listener {
            // Others follow its fills to their end, and new ones may.
            let serving = serve(self.peer_server, listener, limits::PEER_CONNECTIONS, company.clone());
            company.spawn("peer.listener", serving);
        }
        // At the stop they are given back at once, so that others take them while answers end here.
        self.work.spawn("jobs", self.jobs.work(self.work.stopping()));
        self.work.spawn("listener", serve(self.server, listener, limits::CONNECTIONS, self.work.clone()));

        stopping.cancelled().await;
        self.work.drain(self.drain_limit).await;
        let farewell = async {
            company.drain(limits::FAREWELL).await;
            self.peers.end().await;
        };
        let _ = tokio::time::timeout(limits::FAREWELL, farewell).await;
    }
}

/// What the node may hold of records: nothing, where nobody could tell it to forget something.
fn memory(config: &Config, deps: &Deps, control: &Control, work: &Tasks) -> Memory {
    let own = control.clone();
    let wanted = move || own.current().map_or(Duration::ZERO, |snapshot| snapshot.hold_time);
    let hold = match config.peer_address {
        _ if config.is_alone => Hold::alone(wanted),
        Some(_) => Hold::announced_for(wanted),
        None => Hold::never(),
    };
    Memory::new(deps.store.clone(), deps.clock.clone(), work.clone(), config.memory_bytes, hold)
}

fn me(config: &Config, deps: &Deps) -> Result<Me, StartError> {
    let id: ResourceId = config.node_id.parse()?;
    let (boot_id, start_time) = (Uuid::now_v7(), deps.clock.now());
    Ok(Me { id, boot_id, address: config.peer_address.clone(), start_time })
}

/// Makes a folder and removes the files in it: what an earlier process left there is of no use.
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
