//! gRPC: one file per service, and what they share: authentication, paging, masks, filters, request ids, errors.

mod access_keys;
mod answers;
mod caller;
mod callers_fault;
mod damaged_objects;
mod deletion;
mod fills;
mod filter;
mod health;
mod images;
mod incoming;
mod live_nodes;
mod login_tokens;
mod mask;
mod node_jobs;
mod nodes;
mod observe;
mod operations;
mod page;
mod principals;
mod probe;
mod repositories;
mod request_id;
mod resource;
mod rules;
mod status;
mod templates;
mod upstreams;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use entrepot_proto::PUBLIC_DESCRIPTORS;
use entrepot_proto::node::v1::nodes_server::NodesServer;
use entrepot_proto::v1::access_keys_server::AccessKeysServer;
use entrepot_proto::v1::answers_server::AnswersServer;
use entrepot_proto::v1::damaged_objects_server::DamagedObjectsServer;
use entrepot_proto::v1::fills_server::FillsServer;
use entrepot_proto::v1::images_server::ImagesServer;
use entrepot_proto::v1::login_tokens_server::LoginTokensServer;
use entrepot_proto::v1::nodes_server::NodesServer as LiveNodesServer;
use entrepot_proto::v1::operations_server::OperationsServer;
use entrepot_proto::v1::principals_server::PrincipalsServer;
use entrepot_proto::v1::repositories_server::RepositoriesServer;
use entrepot_proto::v1::rules_server::RulesServer;
use entrepot_proto::v1::templates_server::TemplatesServer;
use entrepot_proto::v1::upstreams_server::UpstreamsServer;
use entrepot_runtime::listen::Bounds;
use entrepot_runtime::{Listener, descriptors};
use futures_util::stream::select_all;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::Service;
use tracing::warn;

use crate::plane::{Plane, Reflection, Stage};
use crate::snapshot::Version;

use callers_fault::CallersFault;
use observe::Observe;

/// How long a call may take until its answer begins. Validating a rule takes longest.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// How long a connection may take to its first call.
const FIRST_CALL: Duration = Duration::from_secs(10);
/// The share of the process's file descriptors that connections may use. A node in the same process uses others.
const DESCRIPTORS_PART: u64 = 6;
/// How often a silent connection is asked whether it lives, and how long it may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// How many calls one connection may have open.
const STREAMS: u32 = 256;
/// How long calls may continue once the process is stopping. Streams end only with their callers, so they need this
/// limit.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// The header that names nodes which do not run a changed configuration yet, separated by commas.
const LAGGING: &str = "entrepot-lagging-nodes";

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors for reflection are broken.
    #[error("reflection cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("gRPC cannot be served")]
    Transport(#[from] tonic::transport::Error),
}

/// All services. Clones share their state.
#[derive(Clone)]
pub(crate) struct Api(Arc<Plane>);

impl Api {
    /// Answers a change of configuration once the nodes follow it, or names those that do not yet.
    async fn settled<T>(&self, message: T, version: Version) -> Response<T> {
        self.0.sessions.forget();
        let lagging = self.0.snapshots.settle(version).await;
        let mut response = Response::new(message);
        if !lagging.is_empty() {
            let names = lagging.join(",");
            warn!(nodes = names, "nodes do not run {version} yet: {names}");
            if let Ok(names) = names.parse() {
                response.metadata_mut().insert(LAGGING, names);
            }
        }
        response
    }
}

/// Serves all services on all `listeners` until the process is stopping.
pub(crate) async fn serve(plane: Arc<Plane>, listeners: Vec<Listener>) -> Result<(), ServeError> {
    let stopping = plane.tasks.stopping();
    let routes = routes(&plane)?;
    let server = Server::builder()
        .timeout(CALL_LIMIT)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .max_concurrent_streams(STREAMS)
        .layer(Observe::new(&plane.metrics.meter("entrepot.control_plane")))
        .add_routes(routes);
    let bounds = Bounds {
        first_request: Some(FIRST_CALL),
        exempt: plane.trusted_proxies.clone(),
        ..Bounds::new(descriptors::connections(plane.connections, DESCRIPTORS_PART))
    };
    let connections = |listener| incoming::connections(listener, bounds.clone(), &plane.tasks);
    let incoming = select_all(listeners.into_iter().map(connections));
    let serving = server.serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned());
    tokio::select! {
        ended = serving => Ok(ended?),
        () = async { stopping.cancelled().await; tokio::time::sleep(DRAIN_LIMIT).await } => Ok(()),
    }
}

fn routes(plane: &Arc<Plane>) -> Result<Routes, ServeError> {
    let api = Api(Arc::clone(plane));
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let mut services = Services::new(CallersFault(health))
        .with(UpstreamsServer::new(api.clone()))
        .with(RulesServer::new(api.clone()))
        .with(TemplatesServer::new(api.clone()))
        .with(RepositoriesServer::new(api.clone()))
        .with(ImagesServer::new(api.clone()))
        .with(PrincipalsServer::new(api.clone()))
        .with(AccessKeysServer::new(api.clone()))
        .with(LoginTokensServer::new(api.clone()))
        .with(LiveNodesServer::new(api.clone()))
        .with(DamagedObjectsServer::new(api.clone()))
        .with(FillsServer::new(api.clone()))
        .with(AnswersServer::new(api.clone()))
        .with(OperationsServer::new(api.clone()));
    let caller = api.clone();
    // Of strangers' messages nothing is read.
    let only_nodes = move |request: Request<()>| {
        caller.node(&request)?;
        Ok(request)
    };
    services.names.push(NodesServer::<Api>::NAME);
    services.routes = services.routes.add_service(NodesServer::with_interceptor(api, only_nodes));
    if plane.reflection == Reflection::Open {
        let describe = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(PUBLIC_DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        services.routes = services.routes.add_service(describe().build_v1()?).add_service(describe().build_v1alpha()?);
    }
    plane.tasks.spawn("grpc health", report_health(Arc::clone(plane), reporter, services.names));
    Ok(services.routes)
}

/// The services, with the names under which the health service knows them.
struct Services {
    routes: Routes,
    names: Vec<&'static str>,
}

impl Services {
    /// The health service, in which the empty name stands for all services together.
    fn new(health: CallersFault<HealthServer<HealthService>>) -> Self {
        Self { routes: Routes::new(health), names: vec![""] }
    }

    fn with<S>(self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let mut names = self.names;
        names.push(S::NAME);
        Self { routes: self.routes.add_service(service), names }
    }
}

/// Updates the health service: serving from the end of the start until the process is stopping.
async fn report_health(plane: Arc<Plane>, reporter: HealthReporter, services: Vec<&'static str>) {
    let set = async |status: ServingStatus| {
        for service in &services {
            reporter.set_service_status(*service, status).await;
        }
    };
    set(ServingStatus::NotServing).await;
    let mut stage = plane.watch_stage();
    let stopping = plane.tasks.stopping();
    let is_ready = async { stage.wait_for(|stage| matches!(stage, Stage::Ready(_))).await.is_ok() };
    if stopping.run_until_cancelled(is_ready).await == Some(true) {
        set(ServingStatus::Serving).await;
    }
    stopping.cancelled().await;
    set(ServingStatus::NotServing).await;
}
