//! A node as a program: it opens everything that it needs, however long that takes, and serves until it is told to
//! stop.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use entrepot_runtime::{Clock, Condition, Drain, Health, Metrics, Program, Tasks, chain, memory};
use entrepot_settings::open_store;
use entrepot_store::cache::OpenError;
use entrepot_store::{CacheConfig, NodeCache, Store};
use tracing::{error, info};

use crate::config::{DamageTimes, limits};
use crate::measured::{self, Measured};
use crate::settings::{NodeSettings, Settings};
use crate::{Capacity, Config, DataPlane, Deps, Leases};

/// The service name in telemetry.
pub const SERVICE: &str = "entrepot-data-plane";

/// The folder for spools, inside the node's own.
const SPOOL: &str = "spool";
/// The folder for cached blobs, beside it.
const CACHE: &str = "cache";

type Failure = Box<dyn Error + Send + Sync>;

/// Runs a node until its end.
pub async fn run(settings: Settings) -> ExitCode {
    let program = match Program::start(settings.telemetry.config(SERVICE, settings.node.id.to_string())) {
        Ok(program) => program,
        Err(error) => {
            eprintln!("{}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let around = Around {
        clock: program.clock(),
        tasks: program.tasks(),
        health: program.health(),
        metrics: program.metrics(),
        // Added before anybody can ask: without any condition the program would seem ready.
        store: program.health().condition("store"),
    };
    match settings.operations.listener.bind(&around.tasks) {
        // Probes are answered while everything else is being set up.
        Ok(listener) => program.serve_operations(listener).await,
        Err(error) => {
            error!("{error}");
            return ExitCode::FAILURE;
        }
    }
    // Open work may take the limit; the node's own shutdown comes after it.
    let Drain { notice, limit } = settings.drain.drain;
    let drain = Drain { notice, limit: limit + limits::FAREWELL + Duration::from_secs(1) };
    program.run(drain, Box::pin(node(settings, around))).await
}

/// The program's parts that a node needs.
struct Around {
    clock: Clock,
    tasks: Tasks,
    health: Health,
    metrics: Metrics,
    /// Whether the store is available.
    store: Condition,
}

/// Opens what the node needs, and serves.
async fn node(settings: Settings, around: Around) -> Result<(), Failure> {
    let Around { clock, tasks, health, metrics, store: condition } = around;
    let stopping = tasks.stopping();
    let opening = open_store(&settings.store.bucket, &settings.node.id, &condition);
    let Some(bucket) = stopping.run_until_cancelled(opening).await else {
        return Ok(());
    };
    let measured: Store = Arc::new(Measured::new(Arc::new(bucket?), &metrics));
    let store = in_front_of(measured, &settings.node, &metrics).await?;
    let node_id = settings.node.id;
    let leases = match &settings.redis {
        Some(config) => Leases::redis(config, &node_id, &tasks, &metrics).await?,
        None => Leases::local(),
    };
    // Before the store is open, connections are refused, so that a load balancer uses another node.
    settings.registry.listener.warn_of_clear_text();
    let (registry, peer) = (settings.registry.listener.bind(&tasks)?, settings.peer.listener.bind(&tasks)?);
    if settings.peer.address.is_none() {
        info!("other nodes do not reach this one, since peer.address is not set");
    }
    let config = Config {
        external_url: settings.registry.external_url,
        trusted_proxies: settings.registry.trusted_proxies,
        control_ca: settings.control.ca,
        peer_address: settings.peer.address,
        peer_ca: settings.peer.ca,
        drain_limit: settings.drain.drain.limit,
        memory_bytes: settings.node.memory_bytes,
        capacity: capacity(settings.node.memory_limit_bytes),
        largest_blob: settings.fill.largest_blob,
        damage: DamageTimes { kept: settings.node.damaged_kept, ..DamageTimes::default() },
        index_children: settings.node.index_children,
        ..Config::new(node_id.as_str(), settings.control.apis, settings.node.data_dir.join(SPOOL))
    };
    let deps = Deps {
        store,
        cluster_key: settings.keys.cluster_key,
        snapshot_trust: settings.keys.snapshot_trust,
        clock,
        tasks,
        health,
        metrics,
        leases,
    };
    let plane = DataPlane::new(config, deps)?.with_peer_listener(peer);
    // Not before the node has conditions of its own, since the program would seem ready in between.
    condition.ready();
    plane.serve(registry).await;
    Ok(())
}

/// How much the node may do at once. This is logged, since it decides when pulls are refused.
fn capacity(limit_bytes: Option<u64>) -> Capacity {
    let bytes = limit_bytes.or_else(memory::limit_bytes);
    let capacity = bytes.map_or_else(Capacity::default, Capacity::of_memory);
    let Capacity { fills, readers, followers } = capacity;
    info!(
        memory_bytes = bytes,
        fills,
        readers,
        followers,
        "fetches {fills} blobs and sends {readers} at once, and {followers} to other nodes, at most"
    );
    capacity
}

/// The node's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("node.data_dir, {}, cannot be used", .dir.display())]
struct BadDataDir {
    dir: PathBuf,
    source: OpenError,
}

/// Puts the node's cache in front of its store.
async fn in_front_of(store: Store, node: &NodeSettings, metrics: &Metrics) -> Result<Store, BadDataDir> {
    let dir = &node.data_dir;
    let config = CacheConfig { dir: dir.join(CACHE), size_bytes: node.cache_bytes };
    let opened = NodeCache::open(store, config).await;
    let cache = Arc::new(opened.map_err(|source| BadDataDir { dir: dir.clone(), source })?);
    measured::observe(&cache, metrics);
    let held = cache.stats();
    info!(blobs = held.blobs, size_bytes = held.blob_bytes, "the cache holds {} blobs from before", held.blobs);
    Ok(cache)
}
