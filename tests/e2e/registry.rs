//! A registry with one control plane and one node, a real Postgres and a local folder, in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use entrepot_control_plane::{ControlPlane, FirstKey, Reflection};
use entrepot_data_plane::{Capacity, Config, DataPlane, UpstreamLimits};
use entrepot_domain::Secret;
use entrepot_proto::node::v1::nodes_client::NodesClient;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::access_keys_client::AccessKeysClient;
use entrepot_proto::v1::answers_client::AnswersClient;
use entrepot_proto::v1::fills_client::FillsClient;
use entrepot_proto::v1::images_client::ImagesClient;
use entrepot_proto::v1::login_tokens_client::LoginTokensClient;
use entrepot_proto::v1::operations_client::OperationsClient;
use entrepot_proto::v1::principals_client::PrincipalsClient;
use entrepot_proto::v1::repositories_client::RepositoriesClient;
use entrepot_proto::v1::rules_client::RulesClient;
use entrepot_proto::v1::templates_client::TemplatesClient;
use entrepot_proto::v1::upstreams_client::UpstreamsClient;
use entrepot_runtime::{Clock, Health, Listener, Metrics, Tasks};
use entrepot_store::{LocalStore, Prefix, Store};
use entrepot_test_support::{FakeUpstream, images, wait_until};
use entrepot_trust::{ClusterKey, SnapshotSigner, SnapshotTrust};
use http::{HeaderMap, Method, StatusCode};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use uuid::Uuid;

/// The administrator's key of every registry here.
const KEY: (&str, &str) = ("admin", "correct horse battery");
/// The limit of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The pause before a call is repeated.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// The folders below the registry's own.
const SPOOL: &str = "spool";
const STORE: &str = "store";

/// A running registry.
pub(crate) struct Registry {
    /// The registry's URL, such as `http://127.0.0.1:34567`.
    pub(crate) url: String,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) store: Store,
    pub(crate) tasks: Tasks,
    channel: Channel,
    client: reqwest::Client,
    /// The API's URL.
    api: String,
    dir: TempDir,
}

/// An answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The code of the first OCI error.
    pub(crate) fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Adds the administrator's key to every call.
#[derive(Clone)]
pub(crate) struct AsAdmin;

impl Interceptor for AsAdmin {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let value: MetadataValue<Ascii> = format!("Bearer {}:{}", KEY.0, KEY.1).parse().expect("plain text");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// Adds a key to every call.
#[derive(Clone)]
pub(crate) struct As(MetadataValue<Ascii>);

impl Interceptor for As {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Admin = InterceptedService<Channel, AsAdmin>;

impl Registry {
    /// A registry with its own database.
    pub(crate) async fn start() -> Result<Self> {
        let database = entrepot_test_support::Postgres::shared().await.database().await;
        Self::start_on(&database, Clock::system()).await
    }

    /// A registry with its own database that does not wait long for upstreams.
    pub(crate) async fn start_with_limits(upstream_limits: UpstreamLimits) -> Result<Self> {
        let database = entrepot_test_support::Postgres::shared().await.database().await;
        let clock = Clock::manual(Clock::system().now());
        Self::start_as(&database, clock, |config| Config { upstream_limits, ..config }).await
    }

    /// A registry with its own database and a manual clock.
    pub(crate) async fn start_with_manual_clock() -> Result<Self> {
        let database = entrepot_test_support::Postgres::shared().await.database().await;
        Self::start_on(&database, Clock::manual(Clock::system().now())).await
    }

    /// A registry with its own database whose fills land in `spool`.
    pub(crate) async fn start_with_spool(spool: &Path) -> Result<Self> {
        let spool_dir = spool.to_owned();
        Self::start_tuned(|config| Config { spool_dir, ..config }).await
    }

    /// A registry with its own database and this capacity.
    pub(crate) async fn start_with_capacity(capacity: Capacity) -> Result<Self> {
        Self::start_tuned(|config| Config { capacity, ..config }).await
    }

    async fn start_tuned(tune: impl FnOnce(Config) -> Config) -> Result<Self> {
        let database = entrepot_test_support::Postgres::shared().await.database().await;
        Self::start_as(&database, Clock::system(), tune).await
    }

    /// A registry with the database at `database`.
    pub(crate) async fn start_on(database: &str, clock: Clock) -> Result<Self> {
        Self::start_as(database, clock, |config| config).await
    }

    async fn start_as(database: &str, clock: Clock, tune: impl FnOnce(Config) -> Config) -> Result<Self> {
        let dir = TempDir::new()?;
        let store: Store = Arc::new(LocalStore::open(dir.path().join(STORE))?);
        let (metrics, tasks, health) = (Metrics::new("test"), Tasks::new(), Health::new());
        let cluster_key = ClusterKey::load_or_generate(dir.path().join("cluster.key"))?;
        let signer = SnapshotSigner::load_or_generate(dir.path().join("snapshot.key"))?;
        let snapshot_trust = SnapshotTrust::new(signer.public_key(), None);
        let api = TcpListener::bind("127.0.0.1:0").await?;
        // Listens like the programs do: many connections may wait to be accepted.
        let registry = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), "the test", None)?;
        let (api_addr, registry_addr) = (api.local_addr()?, registry.local_addr()?);

        let control_plane = ControlPlane::new(
            entrepot_control_plane::Config::new(&Secret::new(database.to_owned()), 8)?,
            entrepot_control_plane::Deps {
                store: store.clone(),
                cluster_key: cluster_key.clone(),
                snapshot_signer: signer,
                snapshot_trust: snapshot_trust.clone(),
                clock: clock.clone(),
                tasks: tasks.clone(),
                health: health.clone(),
                metrics: metrics.clone(),
                bootstrap_key: Some(Secret::new(format!("{}:{}", KEY.0, KEY.1))),
                first_key: FirstKey::None,
                reflection: Reflection::Open,
            },
        );
        let serving = control_plane.clone();
        tasks.spawn("api", async move { serving.serve(api).await.expect("gRPC is served") });
        control_plane.ready(LIMIT).await?;

        let control = format!("http://{api_addr}").parse()?;
        let config = tune(Config::new("node-1", vec![control], dir.path().join(SPOOL)));
        let deps = entrepot_data_plane::Deps {
            store: store.clone(),
            cluster_key,
            snapshot_trust,
            clock: clock.clone(),
            tasks: tasks.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            leases: entrepot_data_plane::Leases::local(),
        };
        let data_plane = DataPlane::new(config, deps)?;
        tasks.spawn("registry", data_plane.serve(registry));
        wait_until(LIMIT, "the registry is ready", async || health.is_ready()).await;

        let channel = Endpoint::from_shared(format!("http://{api_addr}"))?.connect().await?;
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
        let url = format!("http://{registry_addr}");
        let api = format!("http://{api_addr}");
        Ok(Self { url, clock, metrics, store, tasks, channel, client, api, dir })
    }

    pub(crate) fn upstreams(&self) -> UpstreamsClient<Admin> {
        UpstreamsClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn rules(&self) -> RulesClient<Admin> {
        RulesClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn templates(&self) -> TemplatesClient<Admin> {
        TemplatesClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn repositories(&self) -> RepositoriesClient<Admin> {
        RepositoriesClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn images(&self) -> ImagesClient<Admin> {
        ImagesClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn operations(&self) -> OperationsClient<Admin> {
        OperationsClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn principals(&self) -> PrincipalsClient<Admin> {
        PrincipalsClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn access_keys(&self) -> AccessKeysClient<Admin> {
        AccessKeysClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn login_tokens(&self) -> LoginTokensClient<Admin> {
        LoginTokensClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn fills(&self) -> FillsClient<Admin> {
        FillsClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    pub(crate) fn answers(&self) -> AnswersClient<Admin> {
        AnswersClient::with_interceptor(self.channel.clone(), AsAdmin)
    }

    /// The fills service, called with this access key.
    pub(crate) fn fills_as(&self, key: &str) -> FillsClient<InterceptedService<Channel, As>> {
        FillsClient::with_interceptor(self.channel.clone(), As(format!("Bearer {key}").parse().expect("plain text")))
    }

    /// Reports events to the control plane as another node.
    pub(crate) async fn report_events(&self, events: Vec<entrepot_proto::node::v1::Event>) -> Result<()> {
        let key = ClusterKey::load_or_generate(self.dir.path().join("cluster.key"))?;
        let token = key.tokens().issue_node("node-0", "entrepot.node.v1", self.clock.now());
        let login = As(format!("Bearer {}", token.expose()).parse()?);
        let mut nodes = NodesClient::with_interceptor(self.channel.clone(), login);
        nodes.report_events(entrepot_proto::convert::event::report("node-0", &events)).await?;
        Ok(())
    }

    /// What the node says about the answer to a request, once it has been sent.
    pub(crate) async fn explained(&self, answer: &Answer) -> Result<pb::Answer> {
        let id = answer.header("x-request-id").context("every answer has a request id")?;
        let found = parking_lot::Mutex::new(None);
        wait_until(LIMIT, "the answer has been sent", async || {
            let request = pb::GetAnswerRequest { name: format!("answers/{id}") };
            let answer = self.answers().get_answer(request).await.map(tonic::Response::into_inner);
            let is_sent = answer.as_ref().is_ok_and(|answer| answer.state() != pb::AnswerState::Sending);
            *found.lock() = answer.ok();
            is_sent
        })
        .await;
        found.into_inner().context("it was found")
    }

    /// What another node needs: everything of the first one, except its own metrics, tasks and health.
    fn deps_of_a_node(&self, tasks: &Tasks, health: &Health) -> Result<entrepot_data_plane::Deps> {
        let signer = SnapshotSigner::load_or_generate(self.dir.path().join("snapshot.key"))?;
        Ok(entrepot_data_plane::Deps {
            store: self.store.clone(),
            cluster_key: ClusterKey::load_or_generate(self.dir.path().join("cluster.key"))?,
            snapshot_trust: SnapshotTrust::new(signer.public_key(), None),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            health: health.clone(),
            metrics: Metrics::new("test"),
            leases: entrepot_data_plane::Leases::local(),
        })
    }

    /// Another node that takes jobs, in a runtime of its own. Its work ends at once with that runtime, or in order with
    /// its tasks.
    pub(crate) async fn worker(&self, id: &str) -> Result<(Runtime, Tasks)> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let spool = self.dir.path().join(format!("spool-{id}"));
        let config = entrepot_data_plane::Config::new(id, vec![self.api.parse()?], spool);
        let (tasks, health) = (Tasks::new(), Health::new());
        let deps = self.deps_of_a_node(&tasks, &health)?;
        let begin = {
            let tasks = tasks.clone();
            async move {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                tasks.spawn("registry", DataPlane::new(config, deps)?.serve(listener));
                anyhow::Ok(())
            }
        };
        runtime.spawn(begin).await??;
        wait_until(LIMIT, "the worker is ready", async || health.is_ready()).await;
        Ok((runtime, tasks))
    }

    /// A second node without a connection to the control plane: only other nodes can reach it.
    pub(crate) async fn second_node(&self, id: &str) -> Result<String> {
        let (registry, peer) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let url = format!("http://{}", registry.local_addr()?);
        let mut config = entrepot_data_plane::Config::new(id, vec![], self.dir.path().join(format!("spool-{id}")));
        config.peer_address = Some(format!("http://{}", peer.local_addr()?).parse()?);
        let health = Health::new();
        let deps = self.deps_of_a_node(&self.tasks, &health)?;
        let data_plane = DataPlane::new(config, deps)?.with_peer_listener(peer);
        self.tasks.spawn("registry", data_plane.serve(registry));
        wait_until(LIMIT, "the second node is ready", async || health.is_ready()).await;
        Ok(url)
    }

    /// A GET at another node, as the administrator.
    pub(crate) fn request_at(&self, url: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{url}{path}")).basic_auth(KEY.0, Some(KEY.1))
    }

    /// Creates an upstream for `upstream`, with loopback addresses and plain HTTP allowed.
    pub(crate) async fn upstream(&self, id: &str, upstream: &FakeUpstream) -> Result<pb::Upstream> {
        self.upstream_that_leads_to(id, upstream, &[]).await
    }

    /// The same, and private addresses are allowed for these hosts and ports.
    pub(crate) async fn upstream_that_leads_to(
        &self,
        id: &str,
        upstream: &FakeUpstream,
        allow_hosts: &[String],
    ) -> Result<pb::Upstream> {
        let request = pb::CreateUpstreamRequest {
            upstream_id: id.to_owned(),
            upstream: Some(pb::Upstream {
                kind: pb::UpstreamKind::Oci.into(),
                endpoint: upstream.url(),
                allow_plain_http: true,
                allow_private_addresses: true,
                allow_hosts: allow_hosts.to_vec(),
                ..Default::default()
            }),
            request_id: Uuid::new_v4().to_string(),
        };
        patiently(async || self.upstreams().create_upstream(request.clone()).await).await
    }

    /// Creates a rule `id` for the prefix `id`, and an upstream of the same name.
    pub(crate) async fn rule(&self, id: &str, upstream: &FakeUpstream) -> Result<pb::Rule> {
        self.upstream(id, upstream).await?;
        self.rule_to(id, id).await
    }

    /// Creates a rule `id` for the prefix `id` to an existing upstream. Its tags are not synced automatically, so that
    /// a test knows who asks.
    pub(crate) async fn rule_to(&self, id: &str, upstream: &str) -> Result<pb::Rule> {
        let (upstream, automatic_sync) = (format!("upstreams/{upstream}"), pb::AutomaticSync::Off.into());
        let rule = pb::Rule { upstream, automatic_sync, ..Default::default() };
        let request_id = Uuid::new_v4().to_string();
        let request = pb::CreateRuleRequest { rule_id: id.to_owned(), rule: Some(rule), request_id };
        patiently(async || self.rules().create_rule(request.clone()).await).await
    }

    /// Deletes the rule `id` and its upstream of the same name.
    pub(crate) async fn delete_rule(&self, id: &str) -> Result<()> {
        let request = pb::DeleteRuleRequest { name: format!("rules/{id}"), ..Default::default() };
        patiently(async || self.rules().delete_rule(request.clone()).await).await?;
        let request = pb::DeleteUpstreamRequest { name: format!("upstreams/{id}"), ..Default::default() };
        patiently(async || self.upstreams().delete_upstream(request.clone()).await).await?;
        Ok(())
    }

    /// A request as the administrator, by Basic authentication.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).basic_auth(KEY.0, Some(KEY.1))
    }

    /// The same with another client, which has its own connections.
    pub(crate) fn request_by(&self, client: &reqwest::Client, path: &str) -> reqwest::RequestBuilder {
        client.get(format!("{}{path}", self.url)).basic_auth(KEY.0, Some(KEY.1))
    }

    /// An anonymous request.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// The answer to a GET.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        send(self.request(Method::GET, path)).await
    }

    /// The manifest for `reference` in `repository`.
    pub(crate) async fn manifest(&self, repository: &str, reference: impl std::fmt::Display) -> Result<Answer> {
        self.get(&format!("/v2/{repository}/manifests/{reference}")).await
    }

    pub(crate) async fn blob(&self, repository: &str, digest: impl std::fmt::Display) -> Result<Answer> {
        self.get(&format!("/v2/{repository}/blobs/{digest}")).await
    }

    /// The names of all repositories.
    pub(crate) async fn repository_names(&self) -> Result<Vec<String>> {
        let listed = self.repositories().list_repositories(pb::ListRepositoriesRequest::default()).await?.into_inner();
        Ok(listed.repositories.into_iter().map(|repository| repository.name).collect())
    }

    pub(crate) async fn image_list(&self, repository: &str) -> Result<Vec<pb::Image>> {
        let parent = format!("repositories/{repository}");
        let request = pb::ListImagesRequest { parent, ..Default::default() };
        match self.images().list_images(request).await {
            Ok(listed) => Ok(listed.into_inner().images),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(vec![]),
            Err(status) => Err(status.into()),
        }
    }

    /// Waits until the index lists `tag` in `repository`, since events need some time.
    pub(crate) async fn listed(&self, repository: &str, tag: &str) -> pb::Image {
        let what = format!("`{repository}:{tag}` is listed");
        let found = parking_lot::Mutex::new(None);
        wait_until(LIMIT, &what, async || {
            let images = self.image_list(repository).await.unwrap_or_default();
            let image = images.into_iter().find(|image| image.tags.iter().any(|listed| listed.tag == tag));
            let is_listed = image.is_some();
            *found.lock() = image;
            is_listed
        })
        .await;
        found.into_inner().expect("it was found")
    }

    /// How many objects the store has below `folder`.
    pub(crate) async fn object_count(&self, folder: &str) -> Result<usize> {
        let prefix = Prefix::below(folder).context("a folder")?;
        Ok(self.store.list(&prefix, None, usize::MAX).await?.len())
    }

    /// How many spools there are: files in their folder, and open files without a name that were created there.
    pub(crate) fn spool_count(&self) -> usize {
        let folder = self.dir.path().join(SPOOL);
        let named = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        // A file that is closed meanwhile does not count.
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        named + open.filter(|file| file.starts_with(&folder) && file.to_string_lossy().ends_with("(deleted)")).count()
    }

    /// The file of the object that has the content of a digest.
    pub(crate) fn file_of(&self, digest: &str) -> Option<PathBuf> {
        let folders = std::fs::read_dir(self.dir.path().join(STORE).join("content")).into_iter().flatten().flatten();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
        let is_it = |file: &PathBuf| std::fs::read(file).is_ok_and(|bytes| images::sha256(&bytes) == digest);
        files.map(|file| file.path()).find(is_it)
    }

    /// How many objects are being written into the store and have no name yet.
    pub(crate) fn unfinished_count(&self) -> usize {
        std::fs::read_dir(self.dir.path().join(STORE).join(".tmp")).map_or(0, Iterator::count)
    }

    /// A value from the metrics in Prometheus' text format: the sum of all lines that begin with `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.render();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, bytes: response.bytes().await? })
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

/// Repeats a call for as long as its answer is to try again, which it is while the machine is busy.
async fn patiently<T>(call: impl AsyncFn() -> Result<Response<T>, Status>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match call().await {
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Aborted) && begun.elapsed() < LIMIT => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            answer => return Ok(answer?.into_inner()),
        }
    }
}
