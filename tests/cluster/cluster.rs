//! A whole cluster: its members, and everything that they stand on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use entrepot_store::BucketStore;
use entrepot_test_support::haproxy::{Mode, Service};
use entrepot_test_support::program::{self, Host, Probed, probe};
use entrepot_test_support::{HaProxy, OtlpCollector, Postgres, Program, Redis, Seaweed, wait_until};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::Api;
use crate::client::{Client, Credential, LIMIT};
use crate::links::Links;
use crate::settings::{Addresses, Shared, StoreSettings};

/// The administrator's key of every cluster, in its two parts.
pub(crate) const ADMIN: (&str, &str) = ("admin", "correct-horse-battery-7319");
const POSTGRES_PASSWORD: &str = "postgres-password-60221";
const REDIS_PASSWORD: &str = "redis-password-44813";
/// Where HAProxy has the registry and the API.
const REGISTRY: u16 = 15_000;
const API: u16 = 15_001;

/// How many clusters run at once, besides one that may run beside all others. They wait for much of their time: for
/// leases, drains and health checks.
const PLACES: u32 = 2;
static FREE_PLACES: Semaphore = Semaphore::const_new(PLACES as usize);
static PLACE_BESIDE_ALL: Semaphore = Semaphore::const_new(1);

/// Which other clusters may run meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Company {
    /// None but one of [`Self::Any`]: this cluster has much to do, or its test fails where something is late.
    Alone,
    /// One more.
    #[default]
    Pair,
    /// Any: this cluster has little to do, and nothing in its test can come too late.
    Any,
}

impl Company {
    async fn place(self) -> Result<SemaphorePermit<'static>> {
        Ok(match self {
            Self::Alone => FREE_PLACES.acquire_many(PLACES).await?,
            Self::Pair => FREE_PLACES.acquire().await?,
            Self::Any => PLACE_BESIDE_ALL.acquire().await?,
        })
    }
}

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// How many control planes it has.
    pub(crate) control_planes: usize,
    /// How many nodes it has.
    pub(crate) nodes: usize,
    /// How long a member that is told to stop goes on as if it had not been.
    pub(crate) drain_notice: Duration,
    /// How much each node keeps on its disk.
    pub(crate) cache_size: &'static str,
    /// Whether members reach each other, and what they stand on, through links that a test can cut.
    pub(crate) links: bool,
    /// Which part of the pulls is traced; much of it costs tests of throughput more than the pulls.
    pub(crate) trace_ratio: &'static str,
    /// Which other clusters may run meanwhile.
    pub(crate) company: Company,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            control_planes: 2,
            nodes: 2,
            drain_notice: Duration::from_millis(200),
            cache_size: "1GiB",
            links: false,
            trace_ratio: "1.0",
            company: Company::default(),
        }
    }
}

/// A running cluster. Dropping it ends everything.
pub(crate) struct Cluster {
    /// The control planes, `control-1` and so on.
    pub(crate) control_planes: Vec<Member>,
    /// The nodes, `node-1` and so on.
    pub(crate) nodes: Vec<Member>,
    pub(crate) haproxy: HaProxy,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) seaweed: Seaweed,
    pub(crate) otlp: OtlpCollector,
    pub(crate) shared: Shared,
    /// What the database is called.
    pub(crate) database: String,
    folder: TempDir,
    _place: SemaphorePermit<'static>,
}

/// A control plane or a node.
pub(crate) struct Member {
    pub(crate) program: Program,
    pub(crate) at: Addresses,
    links: Option<Links>,
}

impl Member {
    /// A member `name` that does not run yet.
    fn new(name: &str, file: &str, at: Addresses, links: Option<Links>, shared: &Shared) -> Self {
        let ways = links.as_ref().map_or_else(|| shared.ways(at), Links::ways);
        let configuration = shared.write(name, at, &ways);
        // Another release's, where a test of upgrades says so.
        let other = std::env::var_os("ENTREPOT_OLD_CONTROL_PLANE").filter(|_| name == "control-1");
        let file = other.map_or_else(|| program::built(file), PathBuf::from);
        let program = Program::new(name, file, &shared.folder);
        Self { program: program.arg("--config").arg(configuration), at, links }
    }

    /// Its links.
    ///
    /// # Panics
    /// If its cluster was set up without.
    pub(crate) fn links(&self) -> &Links {
        self.links.as_ref().expect("the cluster was set up with links")
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        self.program.name()
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(&self) {
        self.program.start();
        self.until_ready().await;
    }

    /// Waits until it is ready.
    pub(crate) async fn until_ready(&self) {
        self.program.until_ready(self.at.operations()).await;
    }

    pub(crate) async fn metrics(&self) -> Result<Probed> {
        Ok(probe(self.at.operations(), "/metrics").await?)
    }

    /// A value from its metrics; see [`Probed::metric`].
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(self.metrics().await?.metric(name, labels))
    }

    /// Where clients pull from it directly.
    pub(crate) fn registry_url(&self) -> String {
        format!("http://{}", self.at.registry())
    }

    /// A client of this node alone, with the administrator's password.
    pub(crate) fn client(&self) -> Client {
        Client::of(&self.registry_url(), admin())
    }
}

impl Cluster {
    /// A running cluster of two control planes and two nodes. `None` if tests with a bucket are to be skipped.
    pub(crate) async fn start() -> Result<Option<Self>> {
        Self::start_with(Setup::default()).await
    }

    /// The same, beside any other cluster.
    pub(crate) async fn start_beside_all() -> Result<Option<Self>> {
        Self::start_with(Setup { company: Company::Any, ..Setup::default() }).await
    }

    /// A running cluster.
    pub(crate) async fn start_with(setup: Setup) -> Result<Option<Self>> {
        let place = setup.company.place().await?;
        let folder = TempDir::new()?;
        let (postgres, redis, seaweed, otlp) = tokio::join!(
            Postgres::start(),
            Redis::start_with_password(REDIS_PASSWORD),
            Seaweed::start(),
            OtlpCollector::start()
        );
        let Some(seaweed) = seaweed else { return Ok(None) };
        let database = name_of(&postgres.database().await)?;
        let control_planes = addresses(setup.control_planes);
        let nodes = addresses(setup.nodes);
        let shared = Shared {
            folder: folder.path().to_owned(),
            postgres_url: url_of(&postgres, &database),
            postgres_password: POSTGRES_PASSWORD.to_owned(),
            redis_url: redis.url(),
            redis_password: REDIS_PASSWORD.to_owned(),
            store: StoreSettings {
                endpoint: seaweed.endpoint(),
                bucket: seaweed.bucket().await,
                access_key_id: Seaweed::ACCESS_KEY_ID.to_owned(),
                secret_access_key: Seaweed::SECRET_ACCESS_KEY.to_owned(),
            },
            apis: control_planes.iter().map(|at| at.api()).collect(),
            otlp_endpoint: otlp.url(),
            drain_notice: setup.drain_notice,
            cache_size: setup.cache_size,
            trace_ratio: setup.trace_ratio,
        };
        let keys = shared.keys();
        let keys = keys.to_str().context("a path that is text")?;
        program::run(program::built("entrepot"), &["keys", "generate", "--out", keys], &[]);
        let link_to = setup.links.then_some((redis.address(), seaweed.address()));
        let member = async |kind: &str, program: &str, places: &[Addresses]| {
            let mut made = Vec::new();
            for (number, at) in (1..).zip(places) {
                let links = match link_to {
                    Some((redis, store)) => Some(Links::start(*at, redis, store, &shared.apis).await),
                    None => None,
                };
                made.push(Member::new(&format!("{kind}-{number}"), program, *at, links, &shared));
            }
            made
        };
        let control_planes_made = member("control", "entrepot-control-plane", &control_planes).await;
        let nodes_made = member("node", "entrepot-data-plane", &nodes).await;
        let haproxy = HaProxy::start(&services(&control_planes_made, &nodes_made), folder.path()).await;
        let cluster = Self {
            control_planes: control_planes_made,
            nodes: nodes_made,
            haproxy,
            postgres,
            redis,
            seaweed,
            otlp,
            shared,
            database,
            folder,
            _place: place,
        };
        cluster.start_all().await;
        Ok(Some(cluster))
    }

    /// Starts all members at once, and waits until HAProxy uses each of them.
    async fn start_all(&self) {
        for control_plane in &self.control_planes {
            control_plane.program.set_env("ENTREPOT_BOOTSTRAP_KEY", Some(&admin_key()));
        }
        let members = || self.control_planes.iter().chain(&self.nodes);
        members().for_each(|member| member.program.start());
        for member in members() {
            member.until_ready().await;
        }
        for control_plane in &self.control_planes {
            self.haproxy.until_sees("api", control_plane.name(), true).await;
        }
        for node in &self.nodes {
            self.haproxy.until_sees("registry", node.name(), true).await;
        }
    }

    /// A node that was not there before, under a new name. It does not run yet, and HAProxy does not know it.
    pub(crate) fn further_node(&self, name: &str) -> Member {
        Member::new(name, "entrepot-data-plane", Addresses(Host::free()), None, &self.shared)
    }

    pub(crate) fn api_of(&self, control_plane: &Member) -> Api {
        Api::at(control_plane.at.api(), &admin_key())
    }

    /// The API of `control-1`.
    pub(crate) fn api(&self) -> Api {
        self.api_of(&self.control_planes[0])
    }

    /// The API as HAProxy balances it.
    pub(crate) fn balanced_api(&self) -> Api {
        Api::at(self.haproxy.at(API), &admin_key())
    }

    /// A client that pulls through HAProxy, with the administrator's password.
    pub(crate) fn client(&self) -> Client {
        Client::of(&self.registry_url(), admin())
    }

    /// Where clients pull through HAProxy.
    pub(crate) fn registry_url(&self) -> String {
        format!("http://{}", self.haproxy.at(REGISTRY))
    }

    /// Which node leads the fill of a blob, as Redis knows it; `None` if no node does, or Redis does not say.
    pub(crate) async fn leader_of(&self, digest: &str) -> Option<usize> {
        let keys = self.redis.try_command(&["KEYS", "f:*"]).await.ok()?;
        let key = keys.lines().find(|key| key.contains(digest))?;
        // `<node id>.<start of the node>.<number>`; it may be gone by now.
        let holder = self.redis.try_command(&["GET", key]).await.ok()?;
        self.nodes.iter().position(|node| Some(node.name()) == holder.split('.').next())
    }

    /// A node that leads any fill.
    pub(crate) async fn any_leader(&self) -> Option<usize> {
        self.leader_of("").await
    }

    /// Waits until a node leads the fill of a blob.
    pub(crate) async fn until_led(&self, digest: &str) -> usize {
        let leader = parking_lot::Mutex::new(None);
        self.until("a node leads the fill", async || {
            let found = self.leader_of(digest).await;
            *leader.lock() = found;
            found.is_some()
        })
        .await;
        leader.into_inner().expect("it was waited for")
    }

    /// The bucket as the members see it.
    pub(crate) async fn store(&self) -> Result<BucketStore> {
        Ok(BucketStore::open(self.shared.store.config()?, "tests".parse()?).await?)
    }

    /// A folder that is gone with the cluster.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a program of Postgres, such as `pg_dump`, on the cluster's server.
    pub(crate) fn postgres_program(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let folder = self.postgres.socket_folder();
        let folder = folder.to_str().expect("a path that is text");
        program::run(program, arguments, &[("PGHOST", folder), ("PGUSER", "postgres")])
    }

    /// Runs SQL by hand.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let output = self.postgres_program("psql", &["-v", "ON_ERROR_STOP=1", "-Atqc", sql, &self.database]);
        String::from_utf8_lossy(&output).trim().to_owned()
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        wait_until(LIMIT, what, condition).await;
    }
}

/// The administrator's key as one text.
pub(crate) fn admin_key() -> String {
    format!("{}:{}", ADMIN.0, ADMIN.1)
}

/// The administrator as a registry client.
pub(crate) fn admin() -> Credential {
    Credential::Password(ADMIN.0.to_owned(), ADMIN.1.to_owned())
}

fn addresses(count: usize) -> Vec<Addresses> {
    (0..count).map(|_| Addresses(Host::free())).collect()
}

fn services(control_planes: &[Member], nodes: &[Member]) -> [Service; 2] {
    let servers = |members: &[Member], at: fn(Addresses) -> SocketAddr| {
        let server = |member: &Member| (member.name().to_owned(), at(member.at), member.at.operations());
        members.iter().map(server).collect()
    };
    let registry = servers(nodes, Addresses::registry);
    let api = servers(control_planes, Addresses::api);
    [
        Service { name: "registry".to_owned(), mode: Mode::Http, port: REGISTRY, servers: registry },
        Service { name: "api".to_owned(), mode: Mode::Tcp, port: API, servers: api },
    ]
}

/// The database's name in what the fixture says how to connect.
fn name_of(url: &str) -> Result<String> {
    Ok(url.rsplit_once("dbname=").context("a database has a name")?.1.to_owned())
}

/// `postgres://…` of a database that is reached through a socket.
fn url_of(postgres: &Postgres, database: &str) -> String {
    let folder = postgres.socket_folder().display().to_string().replace('/', "%2F");
    format!("postgres://postgres@{folder}/{database}")
}
