//! The settings of a node. All mistakes in them are reported together.

#![warn(missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::config::{ByteSize, Parsed, Problems, Reader, Reported, Section};
use entrepot_runtime::tls::Alpn;
use entrepot_settings::{
    AccountSettings, DrainSettings, ListenerSettings, NodeKeys, OperationsSettings, StoreSettings, TelemetrySettings,
    ca_file, secret, trusted_proxies,
};
use ipnet::IpNet;
use tonic::transport::Uri;
use url::Url;

use crate::lease::{RedisConfig, RedisMode, RedisServer};

/// The sections that only the control plane reads.
pub const FOREIGN: &[&str] = &["api", "postgres", "records"];

/// All settings of a node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The listener for clients.
    pub registry: RegistrySettings,
    /// The listener for other nodes.
    pub peer: PeerSettings,
    /// The node's id, and its limits on this machine.
    pub node: NodeSettings,
    /// The addresses of the control plane.
    pub control: ControlSettings,
    /// Limits of fills.
    pub fill: FillSettings,
    /// Redis, which keeps leases; without it, this node leads all of its fills.
    pub redis: Option<RedisConfig>,
    /// The listener for probes and Prometheus.
    pub operations: OperationsSettings,
    /// The bucket.
    pub store: StoreSettings,
    /// The keys that it shares with the control plane.
    pub keys: NodeKeys,
    /// Logs, traces, metrics.
    pub telemetry: TelemetrySettings,
    /// How it stops.
    pub drain: DrainSettings,
    /// The account that the registry belongs to.
    pub account: AccountSettings,
}

/// `[registry]`
#[derive(Clone, Debug)]
pub struct RegistrySettings {
    /// The listener.
    pub listener: ListenerSettings,
    /// The URL at which clients reach it, if there is a proxy.
    pub external_url: Option<Url>,
    /// The proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// `[peer]`
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// The listener.
    pub listener: ListenerSettings,
    /// The URL at which other nodes reach it.
    pub address: Option<Url>,
    /// The authorities for other nodes' certificates, as PEM.
    pub ca: Option<String>,
}

/// `[node]`
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's id.
    pub id: ResourceId,
    /// The folder for spools and the cache.
    pub data_dir: PathBuf,
    /// How much disk verified blobs may take.
    pub cache_bytes: u64,
    /// How much memory records may take.
    pub memory_bytes: u64,
    /// How much memory the node may use, if not as much as its control group or its machine has.
    pub memory_limit_bytes: Option<u64>,
    /// How many children of an index are linked, reported and fetched ahead.
    pub index_children: usize,
    /// How long damaged objects are kept.
    pub damaged_kept: Duration,
}

/// `[fill]`
#[derive(Clone, Debug)]
pub struct FillSettings {
    /// The largest blob that is kept.
    pub largest_blob: u64,
}

/// `[control]`
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// The URLs of its replicas, or of a load balancer in front of them.
    pub apis: Vec<Uri>,
    /// The authorities for its certificate, as PEM.
    pub ca: Option<String>,
}

impl Settings {
    /// Reads all settings.
    ///
    /// # Errors
    /// All mistakes in them.
    pub fn read(reader: &mut Reader) -> Result<Self, Problems> {
        let registry = RegistrySettings::read(reader);
        let peer = PeerSettings::read(reader);
        let node = NodeSettings::read(reader);
        let control = ControlSettings::read(reader);
        let fill = FillSettings::read(reader);
        let redis = redis(reader);
        let operations = OperationsSettings::read(reader);
        let store = StoreSettings::read(reader);
        let keys = NodeKeys::read(reader);
        let telemetry = TelemetrySettings::read(reader);
        let drain = DrainSettings::read(reader);
        let account = AccountSettings::read(reader);
        reader.finish(FOREIGN)?;
        Ok(Self {
            registry: registry?,
            peer: peer?,
            node: node?,
            control: control?,
            fill: fill?,
            redis: redis?,
            operations: operations?,
            store: store?,
            keys: keys?,
            telemetry: telemetry?,
            drain: drain?,
            account: account?,
        })
    }
}

impl RegistrySettings {
    fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("registry");
        let listener = ListenerSettings::read(&mut section, "127.0.0.1:5000", Alpn::Http1And2);
        let allow_plain = section.get::<bool>("allow_plain", "false");
        let external_url = own_url(&mut section, "external_url", "https://registry.example");
        let trusted = trusted_proxies(&mut section);
        let listener = listener?;
        if listener.is_open_clear_text() && !allow_plain? {
            let what = format!(
                "{} is not loopback, and logins and content would cross the network readable: set \
                 tls_certificate_file and tls_key_file, or allow_plain = true where nobody listens, as behind a load \
                 balancer that has TLS",
                listener.listen
            );
            return Err(section.problem("listen", what));
        }
        Ok(Self { listener, external_url: external_url?, trusted_proxies: trusted? })
    }
}

impl PeerSettings {
    fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("peer");
        let listener = ListenerSettings::read(&mut section, "0.0.0.0:5003", Alpn::Http1);
        let address = own_url(&mut section, "address", "http://10.0.0.5:5003");
        let ca = ca_file(&mut section);
        Ok(Self { listener: listener?, address: address?, ca: ca? })
    }
}

impl NodeSettings {
    fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("node");
        let id = node_id(&mut section);
        let data_dir = section.get("data_dir", "/var/lib/entrepot");
        let cache = section.get::<ByteSize>("cache_size", "10GiB");
        let memory = section.get::<ByteSize>("memory_size", "64MiB");
        let limit = section.optional::<ByteSize>("memory_limit");
        let index_children = section.get::<usize>("index_children", "1000");
        let damaged_kept = section.get::<Duration>("damaged_kept", "7d");
        Ok(Self {
            id: id?,
            data_dir: data_dir?,
            cache_bytes: cache?.0,
            memory_bytes: memory?.0,
            memory_limit_bytes: limit?.map(|size| size.0),
            index_children: index_children?,
            damaged_kept: damaged_kept?,
        })
    }
}

impl FillSettings {
    fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let largest = reader.section("fill").get::<ByteSize>("largest_blob", "100GiB")?;
        Ok(Self { largest_blob: largest.0 })
    }
}

impl ControlSettings {
    fn read(reader: &mut Reader) -> Result<Self, Reported> {
        const APIS: &str = "apis";
        let mut section = reader.section("control");
        let apis = section.get::<Vec<Url>>(APIS, "http://127.0.0.1:5001");
        let ca = ca_file(&mut section);
        let apis = apis?;
        let uris: Option<Vec<Uri>> = apis.iter().map(bare).collect();
        match uris {
            Some(apis) if !apis.is_empty() => Ok(Self { apis, ca: ca? }),
            Some(_) | None => Err(section.problem(
                APIS,
                "must be scheme, host and port of each replica, such as [\"https://control.example:5001\"]",
            )),
        }
    }
}

fn redis(reader: &mut Reader) -> Result<Option<RedisConfig>, Reported> {
    const URLS: &str = "urls";
    let mut section = reader.section("redis");
    let section = &mut section;
    let mode = section.get::<Parsed<RedisMode>>("mode", "single");
    let urls = section.get::<Vec<Parsed<RedisServer>>>(URLS, "");
    let username = section.optional::<String>("username");
    let password = secret(section, "password");
    let sentinel_master = section.optional::<String>("sentinel_master");
    let sentinel_password = secret(section, "sentinel_password");
    let ca = ca_file(section);
    let config = RedisConfig {
        mode: mode?.0,
        servers: urls?.into_iter().map(|Parsed(server)| server).collect(),
        username: username?,
        password: password?,
        sentinel_master: sentinel_master?,
        sentinel_password: sentinel_password?,
        ca: ca?.map(String::into_bytes),
    };
    if config.servers.is_empty() {
        return Ok(None);
    }
    match config.check() {
        Ok(()) => Ok(Some(config)),
        Err(error) => Err(section.problem(URLS, error.to_string())),
    }
}

/// Parses a URL with a scheme, a host and perhaps a port.
fn own_url(section: &mut Section<'_>, key: &'static str, example: &str) -> Result<Option<Url>, Reported> {
    let Some(url) = section.optional::<Url>(key)? else { return Ok(None) };
    if bare(&url).is_some() {
        return Ok(Some(url));
    }
    Err(section.problem(key, format!("must be scheme, host and perhaps port, such as `{example}`")))
}

/// A URL with a scheme, a host, perhaps a port, and nothing else.
fn bare(url: &Url) -> Option<Uri> {
    let is_bare = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_bare { url.as_str().parse().ok() } else { None }
}

/// The node's id: the configured one, or the machine's name.
fn node_id(section: &mut Section<'_>) -> Result<ResourceId, Reported> {
    const KEY: &str = "id";
    if let Some(Parsed(id)) = section.optional(KEY)? {
        return Ok(id);
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    legal(&name)
        .ok_or_else(|| section.problem(KEY, format!("must be set: of the machine's name, `{name}`, none can be made")))
}

/// A machine's name, such as `Node-1.example`, as an id.
fn legal(name: &str) -> Option<ResourceId> {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let id: String = name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).chars().map(legal).take(63).collect();
    id.trim_end_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_name_becomes_an_id() {
        for (name, id) in [
            ("node-1", Some("node-1")),
            ("Node_1.rack.example", Some("node-1-rack-example")),
            ("3f2a9c", Some("3f2a9c")),
            ("(none)", Some("none")),
            ("", None),
            ("---", None),
        ] {
            assert_eq!(legal(name).as_ref().map(ResourceId::as_str), id, "{name}");
        }
        assert_eq!(legal(&format!("{}-b", "a".repeat(62))).unwrap().as_str(), "a".repeat(62));
    }
}
