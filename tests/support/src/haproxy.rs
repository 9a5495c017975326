//! HAProxy as a program: the load balancer in front of nodes and control planes, with the settings of the compose file.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::program::{Host, Program, probe};
use crate::wait_until;

/// The port of its own statistics page, on its own host.
const STATS_PORT: u16 = 15_010;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// A service that HAProxy balances.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name in HAProxy's log.
    pub name: String,
    /// How it is balanced.
    pub mode: Mode,
    /// The port for clients, on HAProxy's own host.
    pub port: u16,
    /// The servers, each with its name, its address, and the address of its `/readyz`.
    pub servers: Vec<(String, SocketAddr, SocketAddr)>,
}

/// How a service is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By request. Requests that no server has answered are repeated at another server.
    Http,
    /// By connection, as gRPC needs it.
    Tcp,
}

/// A running HAProxy.
#[derive(Debug)]
pub struct HaProxy {
    program: Program,
    host: Host,
}

impl HaProxy {
    /// Starts one that balances `services`.
    ///
    /// # Panics
    /// If HAProxy is not installed, or does not start.
    pub async fn start(services: &[Service], folder: &Path) -> Self {
        let host = Host::free();
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, configuration(host, services)).expect("the folder can be written to");
        let program = Program::new("haproxy", installed(), folder).arg("-db").arg("-f").arg(&file);
        program.start();
        let haproxy = Self { program, host };
        wait_until(LIMIT, "HAProxy runs", async || {
            assert!(haproxy.program.is_running(), "HAProxy has ended:\n{}", haproxy.program.log());
            haproxy.stats().await.is_some()
        })
        .await;
        haproxy
    }

    /// The address of the service with this port, for clients.
    pub fn at(&self, port: u16) -> SocketAddr {
        self.host.at(port)
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Waits until it sends requests to this server, or no longer does.
    ///
    /// # Panics
    /// If this takes more than 30 s.
    pub async fn until_sees(&self, service: &str, server: &str, up: bool) {
        let what = format!("HAProxy sees `{server}` of `{service}` {}", if up { "up" } else { "down" });
        wait_until(LIMIT, &what, async || self.sees(service, server).await == Some(up)).await;
    }

    /// Whether it sends requests to this server; `None` if it knows no server with this name.
    async fn sees(&self, service: &str, server: &str) -> Option<bool> {
        let stats = self.stats().await?;
        let mut lines = stats.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let line = lines.find(|fields| fields.first() == Some(&service) && fields.get(1) == Some(&server))?;
        line.get(17).map(|state| state.starts_with("UP"))
    }

    async fn stats(&self) -> Option<String> {
        let page = probe(self.host.at(STATS_PORT), "/stats;csv").await.ok()?;
        (page.status == 200).then_some(page.text)
    }
}

/// The settings of the compose file, with checks that are fast enough for a test.
const DEFAULTS: &str = "
global
    log stderr format raw local0 notice
    hard-stop-after 5m
defaults
    log global
    timeout connect 2s
    timeout check 2s
    timeout queue 10s
    retries 3
    option redispatch 1
    default-server inter 500ms fastinter 200ms downinter 200ms fall 2 rise 1
";

/// The settings for balancing by request.
const HTTP: &str = "
    mode http
    timeout http-request 10s
    timeout http-keep-alive 75s
    timeout client 130s
    timeout server 60s
    http-request del-header X-Forwarded-For
    option forwardfor
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto http
    http-request disable-l7-retry unless { method GET HEAD OPTIONS }
    retry-on conn-failure empty-response response-timeout 503
    balance leastconn
";

/// The settings for balancing by connection.
const TCP: &str = "
    mode tcp
    timeout client 10m
    timeout server 10m
    balance roundrobin
";

fn configuration(host: Host, services: &[Service]) -> String {
    let mut text = String::from(DEFAULTS);
    let stats = host.at(STATS_PORT);
    let times = "timeout client 10s\n    timeout server 10s";
    let _ = write!(
        text,
        "frontend stats\n    mode http\n    bind {stats}\n    {times}\n    stats enable\n    stats uri /stats\n"
    );
    for service in services {
        let (name, bind) = (&service.name, host.at(service.port));
        let mode = match service.mode {
            Mode::Http => HTTP,
            Mode::Tcp => TCP,
        };
        let _ = write!(text, "listen {name}\n    bind {bind}\n{mode}    option httpchk\n");
        text.push_str("    http-check send meth GET uri /readyz\n    http-check expect status 200\n");
        for (name, address, operations) in &service.servers {
            let (check, port) = (operations.ip(), operations.port());
            let _ = writeln!(text, "    server {name} {address} check addr {check} port {port}");
        }
    }
    text
}

fn installed() -> PathBuf {
    let places = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy", "/usr/bin/haproxy"].map(PathBuf::from);
    let found = places.into_iter().find(|place| place.exists());
    found.expect("HAProxy is not installed: `apt-get install haproxy` installs it")
}
