//! The client of Redis. It reconnects by itself, and costs nothing while Redis is away.
//!
//! A command that fails, or gets no answer in time, breaks the connection. From then on commands fail at once, and a
//! task tries to reconnect at most once a second. So if Redis is away or slow, callers that wait at that moment lose
//! the time limit of one command, and others lose nothing.

use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::Trouble;
use entrepot_runtime::{Metrics, Tasks};
use opentelemetry::metrics::Gauge;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo as _, Pipeline, RedisConnectionInfo,
    RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::{RedisConfig, RedisConfigError, RedisMode, RedisServer};

/// How long a command may take: the most time that Redis can cost a pull.
const COMMAND: Duration = Duration::from_millis(250);
/// How long connecting may take. Nobody waits for it.
const CONNECT: Duration = Duration::from_secs(3);
/// How long to wait before connecting again.
const REST: Duration = Duration::from_secs(1);

/// The client of Redis. Clones share it.
#[derive(Clone)]
pub(crate) struct RedisClient(Arc<Inner>);

struct Inner {
    servers: Servers,
    /// `None` while there is none. Connections are numbered, so that a late failure of an old one does not break a new
    /// one.
    connection: watch::Sender<Option<(u64, Connection)>>,
    trouble: Trouble,
    open: Gauge<u64>,
}

impl RedisClient {
    /// Begins to connect, and waits a moment so that the first claim finds a connection.
    ///
    /// # Errors
    /// If the configuration cannot work. Redis itself may be away.
    pub(super) async fn open(config: &RedisConfig, tasks: &Tasks, metrics: &Metrics) -> Result<Self, RedisConfigError> {
        let servers = Servers::new(config)?;
        let open = metrics
            .meter("entrepot.data_plane")
            .u64_gauge("entrepot.lease.breaker.open")
            .with_description("1 while Redis is away or slow and this node goes on without leases.")
            .build();
        open.record(1, &[]);
        let connection = watch::Sender::new(None);
        let client = Self(Arc::new(Inner { servers, connection, trouble: Trouble::default(), open }));
        tasks.spawn("redis", client.clone().connect_again_and_again(tasks.stopping()));
        let mut connected = client.0.connection.subscribe();
        let _ = timeout(REST, connected.wait_for(Option::is_some)).await;
        Ok(client)
    }

    /// Runs a command within its time limit. `None` if it fails, because Redis is away or refused it.
    pub(crate) async fn run<T>(&self, command: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>) -> Option<T> {
        let (number, mut connection) = self.0.connection.borrow().clone()?;
        let failure = match timeout(COMMAND, command(&mut connection)).await {
            Ok(Ok(value)) => {
                self.say_back();
                return Some(value);
            }
            Ok(Err(error)) => in_short(&error),
            Err(_) => format!("it did not answer within {COMMAND:?}"),
        };
        let broken = self.0.connection.send_if_modified(|current| {
            let is_this = current.as_ref().is_some_and(|(current, _)| *current == number);
            if is_this {
                *current = None;
            }
            is_this
        });
        if broken {
            self.0.open.record(1, &[]);
            self.say_away(&failure);
        }
        None
    }

    async fn connect_again_and_again(self, stopping: CancellationToken) {
        let mut broken = self.0.connection.subscribe();
        let work = async {
            for number in 0.. {
                let failure = match timeout(CONNECT, self.0.servers.connect()).await {
                    Ok(Ok(connection)) => {
                        self.0.connection.send_replace(Some((number, connection)));
                        self.0.open.record(0, &[]);
                        // The sender lives as long as this task.
                        let _ = broken.wait_for(Option::is_none).await;
                        None
                    }
                    Ok(Err(error)) => Some(in_short(&error)),
                    Err(_) => Some(format!("it did not answer within {CONNECT:?}")),
                };
                if let Some(failure) = failure {
                    self.say_away(&failure);
                }
                tokio::time::sleep(REST).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stopping.cancelled() => {}
        }
    }

    fn say_away(&self, failure: &str) {
        if self.0.trouble.begin() {
            warn!("Redis is away, so this node fetches what other nodes may be fetching, too: {failure}");
        }
    }

    /// Reported by a successful command, not by a new connection, since some servers accept connections and do nothing
    /// else.
    fn say_back(&self) {
        if self.0.trouble.end() {
            info!("Redis is back");
        }
    }
}

/// How to connect. It contains passwords, so it prints nothing.
enum Servers {
    Single(Box<Client>),
    Sentinel(Box<dyn Fn() -> RedisResult<SentinelClientBuilder> + Send + Sync>),
    Cluster(Box<ClusterClient>),
}

impl Servers {
    fn new(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        config.check()?;
        let servers = match config.mode {
            RedisMode::Single => single(config).map(Box::new).map(Self::Single),
            RedisMode::Sentinel => {
                let config = config.clone();
                sentinels(&config).map(|_| Self::Sentinel(Box::new(move || sentinels(&config))))
            }
            RedisMode::Cluster => cluster(config).map(Box::new).map(Self::Cluster),
        };
        // Nothing has been sent yet, so only the certificates can be wrong.
        servers.map_err(|_| RedisConfigError::Ca)
    }

    /// A connection that has answered a command.
    async fn connect(&self) -> RedisResult<Connection> {
        // The time limits are applied here, to everything that a command or a connection does.
        let limits = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut connection = match self {
            Self::Single(client) => {
                Connection::Server(client.get_multiplexed_async_connection_with_config(&limits).await?)
            }
            // Sentinel is asked each time, since the master may just have changed.
            Self::Sentinel(client) => {
                Connection::Server(client()?.build()?.get_async_connection_with_config(&limits).await?)
            }
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        };
        redis::cmd("PING").exec_async(&mut connection).await?;
        Ok(connection)
    }
}

fn single(config: &RedisConfig) -> RedisResult<Client> {
    let server = &config.servers[0];
    let info = address(server, 6379).into_connection_info()?.set_redis_settings(login(config, server));
    match certificates(config) {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

fn sentinels(config: &RedisConfig) -> RedisResult<SentinelClientBuilder> {
    let master = config.sentinel_master.as_deref().unwrap_or_default();
    let addresses = config.servers.iter().map(|server| address(server, 26379));
    let mut client = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
        .set_client_to_redis_db(config.servers[0].database);
    if config.servers[0].tls {
        client = client.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates(config) {
        client = client.set_client_to_redis_certificates(certificates.clone());
        client = client.set_client_to_sentinel_certificates(certificates);
    }
    if let Some(username) = &config.username {
        client = client.set_client_to_redis_username(username);
    }
    if let Some(password) = &config.password {
        client = client.set_client_to_redis_password(password.expose());
    }
    if let Some(password) = &config.sentinel_password {
        client = client.set_client_to_sentinel_password(password.expose());
    }
    Ok(client)
}

fn cluster(config: &RedisConfig) -> RedisResult<ClusterClient> {
    let nodes = config
        .servers
        .iter()
        .map(|server| Ok(address(server, 6379).into_connection_info()?.set_redis_settings(login(config, server))));
    let nodes: RedisResult<Vec<_>> = nodes.collect();
    let mut client = ClusterClientBuilder::new(nodes?).connection_timeout(CONNECT).response_timeout(COMMAND);
    if let Some(certificates) = certificates(config) {
        client = client.certs(certificates);
    }
    client.build()
}

fn address(server: &RedisServer, usual_port: u16) -> ConnectionAddr {
    let (host, port) = (server.host.clone(), server.port.unwrap_or(usual_port));
    if server.tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn login(config: &RedisConfig, server: &RedisServer) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_db(server.database);
    if let Some(username) = &config.username {
        login = login.set_username(username);
    }
    if let Some(password) = &config.password {
        login = login.set_password(password.expose());
    }
    login
}

/// The certificates to trust, if they are not the machine's.
fn certificates(config: &RedisConfig) -> Option<TlsCertificates> {
    config.ca.clone().map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca) })
}

/// An error that is safe to show: a server's text may repeat what it was sent, such as a password.
fn in_short(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("it answers {code}"),
        // These are about sockets, names and certificates.
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}

/// A connection to one server, or to all servers of a cluster.
#[derive(Clone)]
pub(crate) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
