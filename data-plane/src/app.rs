//! Puts a node together and runs it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use entrepot_domain::ResourceId;
use entrepot_runtime::{Clock, Health, Metrics, Tasks};
use entrepot_store::Store;
use entrepot_trust::{ClusterKey, SecretVerifier, SnapshotTrust};
use tokio::net::TcpListener;

use crate::auth::Auth;
use crate::config::Config;
use crate::control::{self, Control, NodeToken, Outbox, Watch};
use crate::fill::Fills;
use crate::http::server::Server;
use crate::metrics::PullMetrics;
use crate::pull::Node;
use crate::repository::Repositories;
use crate::resolve::Resolver;

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
}

/// A node of the data plane.
pub struct DataPlane {
    server: Arc<Server>,
    watch: Watch,
    outbox: Outbox,
    channel: tonic::transport::Channel,
    token: NodeToken,
    tasks: Tasks,
}

impl DataPlane {
    /// Puts a node together. Nothing runs yet.
    ///
    /// # Errors
    /// If the configuration cannot work.
    pub fn new(config: Config, deps: Deps) -> Result<Self, StartError> {
        let node: ResourceId = config.node_id.parse()?;
        let node_id: Arc<str> = node.as_str().into();
        empty_folder(&config.spool_dir)
            .map_err(|source| StartError::SpoolDir { path: config.spool_dir.display().to_string(), source })?;

        let tokens = deps.cluster_key.tokens();
        let token = NodeToken { tokens: tokens.clone(), node_id: node_id.clone(), clock: deps.clock.clone() };
        let channel = control::channel(&config);
        let control = Control::default();
        let outbox = Outbox::new(deps.store.clone(), node, deps.clock.clone());
        let repositories =
            Repositories { store: deps.store.clone(), outbox: outbox.clone(), clock: deps.clock.clone() };
        let fills = Fills::new(repositories.clone(), config.spool_dir, deps.tasks.clone());
        let resolver = Resolver::new(repositories.clone(), fills, deps.clock.clone(), deps.tasks.clone());
        let auth = Auth { tokens, secrets: SecretVerifier::new(), clock: deps.clock };
        let node = Node { control: control.clone(), auth, resolver, repositories, outbox: outbox.clone() };
        let server =
            Server { node, node_id, external_url: config.external_url, metrics: PullMetrics::new(&deps.metrics) };
        let watch = Watch {
            control,
            store: deps.store,
            trust: deps.snapshot_trust,
            cluster_key: deps.cluster_key,
            channel: channel.clone(),
            token: token.clone(),
            readiness: deps.health.condition("snapshot"),
            tasks: deps.tasks.clone(),
        };
        Ok(Self { server: Arc::new(server), watch, outbox, channel, token, tasks: deps.tasks })
    }

    /// Serves until the tasks are told to stop. Open answers and fills go on as tasks, which the process waits for.
    pub async fn serve(self, listener: TcpListener) {
        self.tasks.spawn("snapshot", self.watch.run());
        self.tasks.spawn("outbox", self.outbox.deliver(self.channel, self.token, self.tasks.clone()));
        self.server.run(listener, &self.tasks).await;
    }
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
