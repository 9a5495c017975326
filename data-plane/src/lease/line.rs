//! The line to Redis: found again by itself when it breaks, and no burden while it is broken.
//!
//! A command that fails, or is not answered in time, breaks the line. From then on commands fail at once, and a task
//! connects anew, at most once a second. So Redis away or slow costs those who are waiting at that moment the limit of
//! a command, and nobody else anything.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// How long a command may take: the most that Redis can cost a pull.
const COMMAND: Duration = Duration::from_millis(250);
/// How long connecting may take. Nobody waits for it.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a broken line is left alone.
const REST: Duration = Duration::from_secs(1);

/// The line to Redis. Clones share it.
#[derive(Clone)]
pub(crate) struct Line(Arc<Inner>);

struct Inner {
    servers: Servers,
    /// `None` while the line is broken. Each connection has a number, so that the end of an old one breaks no new one.
    connection: watch::Sender<Option<(u64, Connection)>>,
    /// What was said last about it, so that it is said once.
    said: Mutex<Said>,
    open: Gauge<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Away,
}

impl Line {
    /// Begins to connect, and waits a moment, so that already the first claim has a line.
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
        let line = Self(Arc::new(Inner { servers, connection, said: Mutex::new(Said::Nothing), open }));
        tasks.spawn("redis", line.clone().connect_again_and_again(tasks.stopping()));
        let mut connected = line.0.connection.subscribe();
        let _ = timeout(REST, connected.wait_for(Option::is_some)).await;
        Ok(line)
    }

    /// Runs a command within its limit. `None` if that fails: Redis is away, or did not do it.
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
        if std::mem::replace(&mut *self.said(), Said::Away) == Said::Nothing {
            warn!("Redis is away, so this node fetches what other nodes may be fetching, too: {failure}");
        }
    }

    /// Said by a command that went well, not by a new connection: some servers take connections and nothing else.
    fn say_back(&self) {
        if std::mem::replace(&mut *self.said(), Said::Nothing) == Said::Away {
            info!("Redis is back");
        }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to connect. It holds passwords, and prints nothing.
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
        // Nothing has been sent yet: all that can be wrong is what the certificates are made from.
        servers.map_err(|_| RedisConfigError::Ca)
    }

    /// A connection that has answered.
    async fn connect(&self) -> RedisResult<Connection> {
        // The limits are kept here, for all that a command or a connection takes.
        let limits = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut connection = match self {
            Self::Single(client) => {
                Connection::Server(client.get_multiplexed_async_connection_with_config(&limits).await?)
            }
            // Asked each time: which server is the master is what may just have changed.
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

/// Whose certificates to believe, where they are not those that the machine believes.
fn certificates(config: &RedisConfig) -> Option<TlsCertificates> {
    config.ca.clone().map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca) })
}

/// An error as it may be seen: what a server says may repeat what it was sent, and that may be a password.
fn in_short(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("it answers {code}"),
        // Of sockets, names and certificates.
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}

/// A connection to one server, or to all of a cluster.
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
