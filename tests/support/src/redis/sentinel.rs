//! A master, a replica, and Sentinels that replace the master by the replica when it is gone.

use std::net::SocketAddr;

use tempfile::TempDir;

use super::process::{self, LIMIT, Role, Server};
use super::{Login, Options};
use crate::wait_until;

/// The master's name at the Sentinels.
const MASTER: &str = "leases";

/// Two servers and their Sentinels. A master that does not answer for a second is replaced.
pub struct RedisSentinels {
    servers: [Server; 2],
    sentinels: Vec<Server>,
    _folder: TempDir,
}

impl RedisSentinels {
    /// Starts them, with `count` Sentinels, more than half of which must agree. The servers require `password`, and the
    /// Sentinels require [`RedisSentinels::password_of_sentinels`].
    ///
    /// # Panics
    /// If Redis is not installed, or one of them does not start.
    pub async fn start(count: usize, password: &str) -> Self {
        let folder = process::folder();
        let at = [process::place(), process::place()];
        let options = Options { login: Some(Login::Password(password.to_owned())), tls: None };
        // Others see another address on a server's connections, so the server announces its own.
        let extra = |at: SocketAddr| {
            format!("masterauth {password}\nreplica-announce-ip {}\nreplica-announce-port {}\n", at.ip(), at.port())
        };
        let master = Server::new("server-1", Role::Server, at[0], folder.path(), &options, &extra(at[0]));
        master.start().await;
        let replica = format!("replicaof {} {}\n", at[0].ip(), at[0].port()) + &extra(at[1]);
        let replica = Server::new("server-2", Role::Server, at[1], folder.path(), &options, &replica);
        replica.start().await;

        let options = Options { login: Some(Login::Password(Self::password_of_sentinels(password))), tls: None };
        let sentinels = (1..=count).map(|number| {
            let (here, quorum) = (process::place(), count / 2 + 1);
            let extra = format!(
                "sentinel announce-ip {}\nsentinel announce-port {}\nsentinel sentinel-pass {}\n\
                 sentinel monitor {MASTER} {} {} {quorum}\nsentinel auth-pass {MASTER} {password}\n\
                 sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 5000\n",
                here.ip(),
                here.port(),
                Self::password_of_sentinels(password),
                at[0].ip(),
                at[0].port(),
            );
            Server::new(&format!("sentinel-{number}"), Role::Sentinel, here, folder.path(), &options, &extra)
        });
        let sentinels: Vec<_> = sentinels.collect();
        for sentinel in &sentinels {
            sentinel.start().await;
        }
        let this = Self { servers: [master, replica], sentinels, _folder: folder };
        this.until_settled().await;
        this
    }

    /// Waits until all Sentinels know each other and a replica that could take over.
    async fn until_settled(&self) {
        let others = self.sentinels.len() - 1;
        wait_until(LIMIT, "the Sentinels know all servers", async || {
            for sentinel in &self.sentinels {
                let master = sentinel.command(&["SENTINEL", "MASTER", MASTER]).await;
                let field = |name: &str| master.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                let replicas = sentinel.command(&["SENTINEL", "REPLICAS", MASTER]).await;
                let linked = replicas.lines().skip_while(|line| *line != "master-link-status").nth(1) == Some("ok");
                if field("num-other-sentinels") != Some(others.to_string()) || !linked {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// The master's name at the Sentinels.
    pub fn master_name(&self) -> &'static str {
        MASTER
    }

    /// The URLs of the Sentinels.
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Server::url).collect()
    }

    /// The password of the Sentinels, given the servers' `password`.
    pub fn password_of_sentinels(password: &str) -> String {
        format!("{password}-of-sentinels")
    }

    /// The master's address, according to the first Sentinel.
    pub async fn master(&self) -> SocketAddr {
        let answer = self.sentinels[0].command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).await;
        let mut lines = answer.lines();
        let address = (lines.next(), lines.next());
        let (Some(ip), Some(port)) = address else { panic!("Sentinel names no master: {answer}") };
        format!("{ip}:{port}").parse().expect("Sentinel answers an address")
    }

    /// Kills the master. The Sentinels notice by themselves.
    pub async fn kill_master(&self) {
        let master = self.master().await;
        let server = self.servers.iter().find(|server| server.address() == master);
        server.expect("the master is one of the two").program().kill().await;
    }

    /// Waits until a server other than `old` is the master.
    pub async fn until_master_is_not(&self, old: SocketAddr) {
        wait_until(LIMIT, "there is another master", async || self.master().await != old).await;
    }
}

impl std::fmt::Debug for RedisSentinels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSentinels").field("urls", &self.urls()).finish_non_exhaustive()
    }
}
