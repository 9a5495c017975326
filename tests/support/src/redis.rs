//! The Redis of this machine: one server, a master with a replica and Sentinels, or a cluster.

mod cluster;
mod process;
mod sentinel;

use std::net::SocketAddr;

use tempfile::TempDir;

pub use cluster::RedisCluster;
pub use sentinel::RedisSentinels;

use crate::tls::Authority;
use process::{Role, Server};

/// A running Redis on its own address. Dropping it ends it; if this process dies, it ends, too.
pub struct Redis {
    server: Server,
    _folder: TempDir,
}

/// The login and encryption of a Redis.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who may log in; if this is only a password, everybody who knows it.
    pub login: Option<Login>,
    /// Its certificate. If set, it accepts only TLS.
    pub tls: Option<(String, String)>,
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Everybody with this password.
    Password(String),
    /// This user, with permissions such as `~f:* ~t:* +set +get`. Nobody else may do anything.
    User {
        name: String,
        password: String,
        /// The user's permissions.
        rules: String,
    },
}

impl Redis {
    /// Starts one without a login.
    ///
    /// # Panics
    /// If Redis is not installed, or does not start.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts one that requires a password.
    pub async fn start_with_password(password: &str) -> Self {
        Self::start_with(Options { login: Some(Login::Password(password.to_owned())), tls: None }).await
    }

    /// Starts one that accepts only TLS, with a certificate of `authority` for its address.
    pub async fn start_tls(authority: &Authority) -> Self {
        let at = process::place();
        let certificate = authority.certificate_for(&[&at.ip().to_string()]);
        Self::start_at(at, Options { login: None, tls: Some(certificate) }).await
    }

    /// Starts one with these options.
    pub async fn start_with(options: Options) -> Self {
        Self::start_at(process::place(), options).await
    }

    async fn start_at(at: SocketAddr, options: Options) -> Self {
        let folder = process::folder();
        let server = Server::new("redis", Role::Server, at, folder.path(), &options, "");
        server.start().await;
        Self { server, _folder: folder }
    }

    /// Its host and port.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its URL, such as `redis://127.0.0.1:6379`, without any secret.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Freezes it: it keeps its connections, and answers nothing.
    pub fn pause(&self) {
        self.server.program().freeze();
    }

    /// Lets it continue.
    pub fn resume(&self) {
        self.server.program().thaw();
    }

    /// Ends it as an operator would. Its content is lost.
    pub async fn stop(&self) {
        self.server.program().stop().await;
    }

    /// Kills it. Its content is lost.
    pub async fn kill(&self) {
        self.server.program().kill().await;
    }

    /// Starts it again at the same address, empty.
    pub async fn start_again(&self) {
        self.server.start().await;
    }

    /// Deletes everything in it.
    pub async fn flush(&self) {
        self.command(&["FLUSHALL"]).await;
    }

    /// Makes it execute a command, such as `["PTTL", "key"]`, and returns the answer, with one line per value.
    ///
    /// # Panics
    /// If it does not answer, or answers with an error.
    pub async fn command(&self, command: &[&str]) -> String {
        self.server.command(command).await
    }

    /// As [`Redis::command`], for a Redis that may be away.
    ///
    /// # Errors
    /// If it does not answer, or answers with an error: the message of `redis-cli`.
    /// If it does not answer, or with an error: what `redis-cli` says of it.
    pub async fn try_command(&self, command: &[&str]) -> Result<String, String> {
        self.server.try_command(command).await
    }

    /// All its keys and values, as text to search in.
    pub async fn dump(&self) -> String {
        let mut text = String::new();
        for key in self.command(&["KEYS", "*"]).await.lines() {
            text += &format!("{key} = {}\n", self.command(&["GET", key]).await);
        }
        text
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("url", &self.url()).finish_non_exhaustive()
    }
}
