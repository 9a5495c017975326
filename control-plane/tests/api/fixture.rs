//! A control plane with everything that it needs, and its clients.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_control_plane::{Config, ControlPlane, Deps, FirstKey, Reflection};
use entrepot_domain::Secret;
use entrepot_proto::node::v1::nodes_client::NodesClient;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::access_keys_client::AccessKeysClient;
use entrepot_proto::v1::answers_client::AnswersClient;
use entrepot_proto::v1::fills_client::FillsClient;
use entrepot_proto::v1::images_client::ImagesClient;
use entrepot_proto::v1::login_tokens_client::LoginTokensClient;
use entrepot_proto::v1::nodes_client::NodesClient as LiveNodesClient;
use entrepot_proto::v1::operations_client::OperationsClient;
use entrepot_proto::v1::principals_client::PrincipalsClient;
use entrepot_proto::v1::repositories_client::RepositoriesClient;
use entrepot_proto::v1::rules_client::RulesClient;
use entrepot_proto::v1::templates_client::TemplatesClient;
use entrepot_proto::v1::upstreams_client::UpstreamsClient;
use entrepot_runtime::{Clock, Health, Metrics, Tasks};
use entrepot_store::{LocalStore, Store};
use entrepot_test_support::Postgres;
use entrepot_trust::{ClusterKey, PublicKey, SnapshotSigner, SnapshotTrust};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The key of `ENTREPOT_BOOTSTRAP_KEY` in these tests.
pub(crate) const ADMIN: &str = "admin:correct horse";
/// The limit of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// What outlives a control plane: its database, its store, its keys. A clone is the same world, for another replica.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) database: String,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) folder: Arc<TempDir>,
    /// The size of a control plane's connection pool.
    pub(crate) pool_size: usize,
    /// For how long nodes may believe what they have read.
    pub(crate) hold_time: Duration,
    /// Whose word on who calls a control plane believes.
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,
}

/// A running control plane.
pub(crate) struct Fixture {
    pub(crate) world: World,
    pub(crate) plane: ControlPlane,
    pub(crate) health: Health,
    pub(crate) channel: Channel,
    pub(crate) metrics: Metrics,
    tasks: Tasks,
}

pub(crate) type Authorized = InterceptedService<Channel, Login>;

/// Adds credentials to every call.
#[derive(Clone)]
pub(crate) struct Login(Option<MetadataValue<Ascii>>);

impl Interceptor for Login {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(Postgres::shared().await).await
    }

    pub(crate) async fn on(postgres: &Postgres) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Arc::new(LocalStore::open(folder.path().join("store")).unwrap());
        let (database, clock) = (postgres.database().await, Clock::manual(now()));
        Self {
            database,
            store,
            clock,
            folder: Arc::new(folder),
            pool_size: 8,
            hold_time: Duration::from_secs(5),
            trusted_proxies: Vec::new(),
        }
    }

    pub(crate) fn cluster_key(&self) -> ClusterKey {
        ClusterKey::load_or_generate(self.folder.path().join("cluster.key")).unwrap()
    }

    pub(crate) fn signer(&self) -> SnapshotSigner {
        SnapshotSigner::load_or_generate(self.folder.path().join("snapshot.seed")).unwrap()
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.signer().public_key()
    }

    pub(crate) fn config(&self) -> Config {
        let config = Config::new(&Secret::new(self.database.clone()), self.pool_size).unwrap();
        config.with_trusted_proxies(self.trusted_proxies.clone()).with_hold_time(self.hold_time)
    }

    /// Starts a control plane without waiting until it is ready.
    pub(crate) async fn launch(self, bootstrap_key: Option<&str>) -> Fixture {
        self.launch_with(bootstrap_key, |_| {}).await
    }

    /// As [`World::launch`], after changing something in what the control plane needs.
    pub(crate) async fn launch_with(self, bootstrap_key: Option<&str>, change: impl FnOnce(&mut Deps)) -> Fixture {
        let (tasks, health, metrics) = (Tasks::new(), Health::new(), Metrics::new("control-plane-test"));
        let mut deps = Deps {
            store: Arc::clone(&self.store),
            cluster_key: self.cluster_key(),
            snapshot_signer: self.signer(),
            snapshot_trust: SnapshotTrust::new(self.public_key(), None),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            bootstrap_key: bootstrap_key.map(|key| Secret::new(key.to_owned())),
            first_key: FirstKey::File(self.folder.path().join("first-key")),
            reflection: Reflection::Open,
        };
        change(&mut deps);
        let plane = ControlPlane::new(self.config(), deps);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = plane.clone().serve(listener);
        tasks.spawn("serve", async move { serving.await.unwrap() });
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().timeout(LIMIT).connect_lazy();
        Fixture { world: self, plane, health, channel, metrics, tasks }
    }

    /// Runs SQL, for tests that have to look or reach behind the API.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<tokio_postgres::SimpleQueryMessage> {
        let (client, connection) = tokio_postgres::connect(&self.database, tokio_postgres::NoTls).await.unwrap();
        let (rows, _) = tokio::join!(
            async move {
                let rows = client.simple_query(sql).await;
                drop(client);
                rows
            },
            connection
        );
        rows.unwrap()
    }
}

impl Fixture {
    /// A control plane that is ready, with [`ADMIN`] as its administrator.
    pub(crate) async fn start() -> Self {
        World::new().await.start().await
    }

    pub(crate) fn login(&self, key: &str) -> Login {
        Login(Some(format!("Bearer {key}").parse().unwrap()))
    }

    pub(crate) fn upstreams(&self) -> UpstreamsClient<Authorized> {
        UpstreamsClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn rules(&self) -> RulesClient<Authorized> {
        RulesClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn templates(&self) -> TemplatesClient<Authorized> {
        TemplatesClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn repositories(&self) -> RepositoriesClient<Authorized> {
        RepositoriesClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn images(&self) -> ImagesClient<Authorized> {
        ImagesClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn fills(&self) -> FillsClient<Authorized> {
        FillsClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn operations(&self) -> OperationsClient<Authorized> {
        OperationsClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn answers(&self) -> AnswersClient<Authorized> {
        AnswersClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    pub(crate) fn principals(&self) -> PrincipalsClient<Authorized> {
        self.principals_as(ADMIN)
    }

    pub(crate) fn principals_as(&self, key: &str) -> PrincipalsClient<Authorized> {
        PrincipalsClient::with_interceptor(self.channel.clone(), self.login(key))
    }

    pub(crate) fn access_keys(&self) -> AccessKeysClient<Authorized> {
        self.access_keys_as(ADMIN)
    }

    pub(crate) fn access_keys_as(&self, key: &str) -> AccessKeysClient<Authorized> {
        AccessKeysClient::with_interceptor(self.channel.clone(), self.login(key))
    }

    pub(crate) fn login_tokens(&self) -> LoginTokensClient<Authorized> {
        self.login_tokens_as(ADMIN)
    }

    pub(crate) fn login_tokens_as(&self, key: &str) -> LoginTokensClient<Authorized> {
        LoginTokensClient::with_interceptor(self.channel.clone(), self.login(key))
    }

    pub(crate) fn nodes(&self, node_id: &str) -> NodesClient<Authorized> {
        let token = self.world.cluster_key().tokens().issue_node(node_id, "entrepot.node.v1", self.world.clock.now());
        NodesClient::with_interceptor(self.channel.clone(), self.login(token.expose()))
    }

    /// An upstream that no request is sent to.
    pub(crate) async fn create_upstream(&self, id: &str) -> pb::Upstream {
        let request = pb::CreateUpstreamRequest {
            upstream_id: id.into(),
            upstream: Some(pb::Upstream { kind: pb::UpstreamKind::Quay.into(), ..Default::default() }),
            ..Default::default()
        };
        self.upstreams().create_upstream(request).await.unwrap().into_inner()
    }

    pub(crate) async fn create_rule(&self, id: &str, upstream_id: &str) -> pb::Rule {
        self.rules().create_rule(create_rule(id, id, upstream_id)).await.unwrap().into_inner()
    }

    /// Nodes as operators see them.
    pub(crate) fn live_nodes(&self) -> LiveNodesClient<Authorized> {
        LiveNodesClient::with_interceptor(self.channel.clone(), self.login(ADMIN))
    }

    /// A value from the metrics in Prometheus' text format: the sum of all lines that begin with `name` and have all
    /// these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.render();
        let lines =
            text.lines().filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Stops the control plane, and returns what outlives it.
    pub(crate) async fn stop(self) -> World {
        assert!(self.tasks.drain(LIMIT).await);
        self.world
    }
}

impl World {
    /// As [`Fixture::start`], with an existing world.
    pub(crate) async fn start(self) -> Fixture {
        let fixture = self.launch(Some(ADMIN)).await;
        fixture.plane.ready(LIMIT).await.unwrap();
        fixture
    }
}

pub(crate) fn create_rule(id: &str, prefix: &str, upstream_id: &str) -> pb::CreateRuleRequest {
    let rule = pb::Rule { prefix: prefix.into(), upstream: format!("upstreams/{upstream_id}"), ..Default::default() };
    pb::CreateRuleRequest { rule_id: id.into(), rule: Some(rule), ..Default::default() }
}

pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// The details of an error, after checking what every error must have.
pub(crate) fn details(status: &Status) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "entrepot.dev");
    assert!(info.reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{}", info.reason);
    let retry = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
    assert_eq!(details.retry_info().is_some(), retry, "{status:?}");
    assert_eq!(details.bad_request().is_some(), status.code() == Code::InvalidArgument, "{status:?}");
    details
}

/// The code and reason of an error.
pub(crate) fn kind(status: &Status) -> (Code, String) {
    (status.code(), details(status).error_info().unwrap().reason.clone())
}

/// The fields that an INVALID_ARGUMENT names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = details(status);
    details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.clone()).collect()
}
