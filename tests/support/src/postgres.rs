//! The Postgres of this machine, in a folder that is gone when the test is.

mod process;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_postgres::NoTls;
use uuid::Uuid;

use process::{Cluster, Server, Tls};

use crate::tls::Authority;

/// A running Postgres, reachable through a Unix socket only. Dropping it stops it and removes its data; if the process
/// dies without dropping it, a small shell that waits for that does the same.
pub struct Postgres {
    server: Mutex<Option<Server>>,
    cluster: Cluster,
}

static SHARED: OnceCell<Postgres> = OnceCell::const_new();

impl Postgres {
    /// The one that all tests of a process share: started by whoever asks first. Take a [`Postgres::database`] of it.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Starts one for a test that stops or kills it.
    ///
    /// # Panics
    /// If Postgres is not installed, or does not start.
    pub async fn start() -> Self {
        let cluster = blocking(|| Cluster::create(None)).await;
        let postgres = Self { server: Mutex::new(None), cluster };
        postgres.resume().await;
        postgres
    }

    /// As [`Postgres::start`], reachable over TCP too: with TLS, a certificate of `authority` for `127.0.0.1`, and
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

    /// How to connect to the database `name` over TLS, but for the password.
    ///
    /// # Panics
    /// If this one was not started with TLS.
    pub fn tls_url(&self, name: &str) -> String {
        let port = self.cluster.tls_port().expect("this Postgres was started with TLS");
        format!("postgres://{}@127.0.0.1:{port}/{name}", process::SUPERUSER)
    }

    /// Makes an empty database and says how to connect to it.
    pub async fn database(&self) -> String {
        self.database_from("template1").await
    }

    /// Makes a database that is a copy of `template`, to which nobody may be connected, and says how to connect to it.
    pub async fn database_from(&self, template: &str) -> String {
        let name = format!("test_{}", Uuid::new_v4().simple());
        self.create(&name, template).await;
        self.url(&name)
    }

    /// Makes the database `name`, to be filled and then used as a template, and says how to connect to it.
    pub async fn template(&self, name: &str) -> String {
        self.create(name, "template1").await;
        self.url(name)
    }

    /// How to connect to the database `name`.
    pub fn url(&self, name: &str) -> String {
        let port = self.cluster.tls_port().map(|port| format!(" port={port}")).unwrap_or_default();
        format!("host={}{port} user={} dbname={name}", self.socket_folder().display(), process::SUPERUSER)
    }

    /// Where its socket is.
    pub fn socket_folder(&self) -> PathBuf {
        self.cluster.socket_folder()
    }

    /// Stops it as an operator would: connections are closed, everything is written.
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
                // What a killed one has left behind needs a moment to notice and go.
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

    /// What its log says, if it has ended.
    fn epitaph(&self) -> Option<String> {
        self.lock().as_mut().and_then(Server::epitaph)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
