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

/// A running Redis, on an address of its own. Dropping it ends it; if the process dies, it ends, too.
pub struct Redis {
    server: Server,
    _folder: TempDir,
}

/// Who may log in to a Redis, and how one talks to it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whom it lets in: with only a password, everybody who knows it.
    pub login: Option<Login>,
    /// Whose certificate it shows. It speaks TLS, then, and nothing else.
    pub tls: Option<(String, String)>,
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Everybody with this password.
    Password(String),
    /// This user, who may do what the rules say, such as `~f:* ~t:* +set +get`. Nobody else may do anything.
    User {
        /// The name.
        name: String,
        /// The password.
        password: String,
        /// What the user may do.
        rules: String,
    },
}

impl Redis {
    /// Starts one that lets everybody in.
    ///
    /// # Panics
    /// If Redis is not installed, or does not start.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts one that wants a password.
    pub async fn start_with_password(password: &str) -> Self {
        Self::start_with(Options { login: Some(Login::Password(password.to_owned())), tls: None }).await
    }

    /// Starts one that speaks TLS only, with a certificate of `authority` for its address.
    pub async fn start_tls(authority: &Authority) -> Self {
        let at = process::place();
        let certificate = authority.certificate_for(&[&at.ip().to_string()]);
        Self::start_at(at, Options { login: None, tls: Some(certificate) }).await
    }

    /// Starts one as the options say.
    pub async fn start_with(options: Options) -> Self {
        Self::start_at(process::place(), options).await
    }

    async fn start_at(at: SocketAddr, options: Options) -> Self {
        let folder = process::folder();
        let server = Server::new("redis", Role::Server, at, folder.path(), &options, "");
        server.start().await;
        Self { server, _folder: folder }
    }

    /// Where it is: host and port.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where it is, such as `redis://127.0.0.1:6379`; nothing secret is in it.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// It keeps its connections, and answers nothing.
    pub fn pause(&self) {
        self.server.program().freeze();
    }

    /// It goes on as if nothing had been.
    pub fn resume(&self) {
        self.server.program().thaw();
    }

    /// Ends it as an operator would. What it holds is gone.
    pub async fn stop(&self) {
        self.server.program().stop().await;
    }

    /// Kills it. What it holds is gone.
    pub async fn kill(&self) {
        self.server.program().kill().await;
    }

    /// Starts it again at the same address, empty.
    pub async fn start_again(&self) {
        self.server.start().await;
    }

    /// Makes it forget everything.
    pub async fn flush(&self) {
        self.command(&["FLUSHALL"]).await;
    }

    /// Has it do a command, such as `["PTTL", "key"]`, and answers what it says, a line for each value.
    ///
    /// # Panics
    /// If it does not answer, or with an error.
    pub async fn command(&self, command: &[&str]) -> String {
        self.server.command(command).await
    }

    /// As [`Redis::command`], of one that may be away.
    ///
    /// # Errors
    /// If it does not answer, or with an error: what `redis-cli` says of it.
    pub async fn try_command(&self, command: &[&str]) -> Result<String, String> {
        self.server.try_command(command).await
    }

    /// Everything that it holds, keys and values, as text to search in.
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
