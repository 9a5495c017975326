//! The Postgres of this machine, in a folder that is removed with the test.

mod process;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;
use uuid::Uuid;

use process::{Cluster, Server, Tls};

use crate::tls::Authority;

/// A running Postgres that can be reached only through a Unix socket. Dropping it stops it and removes its data. If the
/// process dies without dropping it, a small shell that waits for that does the same.
pub struct Postgres {
    server: Mutex<Option<Server>>,
    cluster: Cluster,
}

static SHARED: OnceCell<Postgres> = OnceCell::const_new();

impl Postgres {
    /// The server that all tests of a process share, started on first use. Use a [`Postgres::database`] of it.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a server for a test that stops or kills it.
    ///
    /// # Panics
    /// If Postgres is not installed, or does not start.
    pub async fn start() -> Self {
        let cluster = blocking(|| Cluster::create(None)).await;
        let postgres = Self { server: Mutex::new(None), cluster };
        postgres.resume().await;
        postgres
    }

    /// As [`Postgres::start`], but also reachable over TCP: with TLS, a certificate of `authority` for `127.0.0.1`, and
    /// `password`. See [`Postgres::tls_url`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub async fn start_with_tls(authority: &Authority, password: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("there is a free port").port();
        let tls = Tls { port, certificate: authority.certificate_for(&["127.0.0.1"]) };
        let cluster = blocking(move || Cluster::create(Some(&tls))).await;
        let postgres = Self { server: Mutex::new(None), cluster };
        postgres.resume().await;
        postgres.execute(&format!("ALTER USER {} PASSWORD '{password}'", process::SUPERUSER)).await;
        postgres
    }

    /// How to connect to the database `name` over TLS, without the password.
    ///
    /// # Panics
    /// If this server was not started with TLS.
    pub fn tls_url(&self, name: &str) -> String {
        let port = self.cluster.tls_port().expect("this Postgres was started with TLS");
        format!("postgres://{}@127.0.0.1:{port}/{name}", process::SUPERUSER)
    }

    /// Creates an empty database, and returns how to connect to it.
    pub async fn database(&self) -> String {
        self.database_from("template1").await
    }

    /// Creates a copy of the database `template`, to which nobody may be connected, and returns how to connect to it.
    pub async fn database_from(&self, template: &str) -> String {
        let name = format!("test_{}", Uuid::new_v4().simple());
        self.create(&name, template).await;
        self.url(&name)
    }

    /// Creates the database `name`, to be filled and used as a template, and returns how to connect to it.
    pub async fn template(&self, name: &str) -> String {
        self.create(name, "template1").await;
        self.url(name)
    }

    /// How to connect to the database `name`.
    pub fn url(&self, name: &str) -> String {
        let port = self.cluster.tls_port().map(|port| format!(" port={port}")).unwrap_or_default();
        format!("host={}{port} user={} dbname={name}", self.socket_folder().display(), process::SUPERUSER)
    }

    /// The folder of its socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.cluster.socket_folder()
    }

    /// Stops it as an operator would: connections are closed, and everything is written.
    pub async fn stop(&self) {
        self.end(Server::stop).await;
    }

    /// Kills it and all its connections at once.
    pub async fn kill(&self) {
        self.end(Server::kill).await;
    }

    /// Starts it again over the same data.
    pub async fn resume(&self) {
        self.launch().await;
        let mut launches = 1;
        crate::wait_until(Duration::from_secs(60), "Postgres takes connections", async || {
            if let Some(log) = self.epitaph() {
                // After a kill, remaining processes need a moment to notice and end.
                assert!(launches < 100, "Postgres does not start:\n{log}");
                launches += 1;
                self.launch().await;
            }
            tokio_postgres::connect(&self.url("postgres"), NoTls).await.is_ok()
        })
        .await;
    }

    async fn launch(&self) {
        let cluster = self.cluster.clone();
        let server = blocking(move || Server::start(&cluster)).await;
        *self.lock() = Some(server);
    }

    async fn create(&self, name: &str, template: &str) {
        self.execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\"")).await;
    }

    async fn execute(&self, sql: &str) {
        let (client, connection) =
            tokio_postgres::connect(&self.url("postgres"), NoTls).await.expect("Postgres takes connections");
        let executed = async {
            let executed = client.batch_execute(sql).await;
            drop(client);
            executed
        };
        let (executed, _) = tokio::join!(executed, connection);
        executed.unwrap_or_else(|error| panic!("`{sql}` failed: {error:?}"));
    }

    async fn end(&self, how: fn(Server)) {
        let server = self.lock().take();
        if let Some(server) = server {
            blocking(move || how(server)).await;
        }
    }

    /// The end of its log, if it has ended.
    fn epitaph(&self) -> Option<String> {
        self.lock().as_mut().and_then(Server::epitaph)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Option<Server>> {
        self.server.lock()
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("socket_folder", &self.socket_folder()).finish_non_exhaustive()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the fixture does not panic")
}
