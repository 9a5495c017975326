//! Redis Cluster: three masters, each with a third of the keys.

use std::ffi::OsString;

use tempfile::TempDir;

use super::process::{self, LIMIT, Role, Server};
use super::{Login, Options};
use crate::wait_until;

/// A cluster of three masters without replicas.
pub struct RedisCluster {
    servers: Vec<Server>,
    _folder: TempDir,
}

impl RedisCluster {
    /// Starts one that requires `password`.
    ///
    /// # Panics
    /// If Redis is not installed, or the cluster cannot be formed.
    pub async fn start(password: &str) -> Self {
        let folder = process::folder();
        let options = Options { login: Some(Login::Password(password.to_owned())), tls: None };
        let servers = (1..=3).map(|number| {
            let at = process::place();
            let extra = format!(
                "masterauth {password}\ncluster-enabled yes\ncluster-config-file nodes.conf\n\
                 cluster-node-timeout 2000\ncluster-announce-ip {}\n",
                at.ip()
            );
            Server::new(&format!("member-{number}"), Role::Server, at, folder.path(), &options, &extra)
        });
        let servers: Vec<_> = servers.collect();
        for server in &servers {
            server.start().await;
        }
        let mut create: Vec<OsString> = vec!["--no-auth-warning".into(), "-a".into(), password.into()];
        create.extend(["--cluster".into(), "create".into()]);
        create.extend(servers.iter().map(|server| server.address().to_string().into()));
        create.extend(["--cluster-replicas".into(), "0".into(), "--cluster-yes".into()]);
        process::cli(create).await.unwrap_or_else(|problem| panic!("the cluster is not made: {problem}"));
        let this = Self { servers, _folder: folder };
        wait_until(LIMIT, "the cluster is whole", async || {
            for server in &this.servers {
                if !server.command(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok") {
                    return false;
                }
            }
            true
        })
        .await;
        this
    }

    /// The URLs of its members.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Server::url).collect()
    }

    /// All keys, by member.
    pub async fn keys(&self) -> Vec<Vec<String>> {
        let mut keys = Vec::new();
        for server in &self.servers {
            keys.push(server.command(&["KEYS", "*"]).await.lines().map(str::to_owned).collect());
        }
        keys
    }

    /// Ends one member, so that a third of the keys cannot be stored.
    pub async fn stop_one(&self) {
        self.servers[0].program().stop().await;
    }

    /// Starts that member again.
    pub async fn start_again(&self) {
        self.servers[0].start().await;
    }
}

impl std::fmt::Debug for RedisCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisCluster").field("urls", &self.urls()).finish_non_exhaustive()
    }
}
