//! The configuration files of a cluster's members.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_store::Prefix;
use entrepot_store::bucket::{AccessKey, BucketConfig, Service};
use entrepot_test_support::program::Host;

/// What all names in the bucket begin with.
const PREFIX: &str = "registry";
const REGION: &str = "us-east-1";
/// What clients pull from.
const REGISTRY: u16 = 15_000;
/// What administrators and nodes call.
const API: u16 = 15_001;
/// Where a member says how it is.
const OPERATIONS: u16 = 15_002;
/// What nodes say to each other.
const PEER: u16 = 15_003;
/// Where the links of a member begin; see [`crate::links`].
const LINKS: u16 = 15_020;

/// What all members of a cluster share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    /// Where keys and configuration files are.
    pub(crate) folder: PathBuf,
    /// `postgres://…`, without the password.
    pub(crate) postgres_url: String,
    pub(crate) postgres_password: String,
    /// `redis://…`; empty for none.
    pub(crate) redis_url: String,
    pub(crate) redis_password: String,
    /// Where the bucket is.
    pub(crate) store: StoreSettings,
    /// Where the control planes' APIs are.
    pub(crate) apis: Vec<SocketAddr>,
    /// Where traces and metrics go.
    pub(crate) otlp_endpoint: String,
    /// How long a member that was told to stop goes on as if it had not been.
    pub(crate) drain_notice: Duration,
    /// How much a node keeps on its disk.
    pub(crate) cache_size: &'static str,
    /// Which part of the pulls is traced.
    pub(crate) trace_ratio: &'static str,
}

/// Where one member finds the others, and they find it: as they are, or through links.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    pub(crate) redis_url: String,
    pub(crate) store_endpoint: String,
    pub(crate) apis: Vec<SocketAddr>,
    /// How other nodes reach this one.
    pub(crate) peer: SocketAddr,
}

/// Where the bucket is.
#[derive(Clone, Debug)]
pub(crate) struct StoreSettings {
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

impl StoreSettings {
    /// How a test gets at the same objects as the members.
    pub(crate) fn config(&self) -> anyhow::Result<BucketConfig> {
        let credentials =
            AccessKey { id: self.access_key_id.clone(), secret: Secret::new(self.secret_access_key.clone()) };
        Ok(BucketConfig {
            bucket: self.bucket.clone(),
            prefix: Prefix::below(PREFIX)?,
            endpoint: Some(self.endpoint.parse()?),
            allow_plain_http: true,
            trusted_certificates: None,
            proxy: None,
            service: Service::S3 { region: REGION.to_owned(), path_style: true, credentials: Some(credentials) },
        })
    }
}

/// Where one member is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses(pub(crate) Host);

impl Addresses {
    pub(crate) fn registry(self) -> SocketAddr {
        self.0.at(REGISTRY)
    }

    pub(crate) fn api(self) -> SocketAddr {
        self.0.at(API)
    }

    pub(crate) fn operations(self) -> SocketAddr {
        self.0.at(OPERATIONS)
    }

    pub(crate) fn peer(self) -> SocketAddr {
        self.0.at(PEER)
    }

    /// Where one of its links is.
    pub(crate) fn link(self, number: u16) -> SocketAddr {
        self.0.at(LINKS + number)
    }
}

impl Shared {
    /// Where the keys are.
    pub(crate) fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// Writes the configuration file of the member `name`. It is whole, as the one file of a small installation is:
    /// either program finds what it needs in it.
    pub(crate) fn write(&self, name: &str, at: Addresses, ways: &Ways) -> PathBuf {
        let file = self.folder.join(format!("{name}.toml"));
        std::fs::write(&file, self.text(name, at, ways)).expect("the folder can be written to");
        file
    }

    /// The ways without any links.
    pub(crate) fn ways(&self, at: Addresses) -> Ways {
        Ways {
            redis_url: self.redis_url.clone(),
            store_endpoint: self.store.endpoint.clone(),
            apis: self.apis.clone(),
            peer: at.peer(),
        }
    }

    /// What stands below `[redis]`.
    fn redis(&self, url: &str) -> String {
        if url.is_empty() {
            return String::new();
        }
        let password_file = secret_file(&self.folder, "redis-password", &self.redis_password);
        format!("urls = [\"{url}\"]\npassword_file = \"{}\"", password_file.display())
    }

    fn text(&self, name: &str, at: Addresses, ways: &Ways) -> String {
        let secret = |what: &str, secret: &str| secret_file(&self.folder, what, secret).display().to_string();
        let apis: Vec<_> = ways.apis.iter().map(|api| format!("\"http://{api}\"")).collect();
        format!(
            r#"
[registry]
listen = "{registry}"
trusted_proxies = ["127.0.0.0/8"]

[peer]
listen = "{peer}"
address = "http://{peer_address}"

[node]
id = "{name}"
data_dir = "{data_dir}"
cache_size = "{cache_size}"

[control]
apis = [{apis}]

[redis]
{redis}

[api]
listen = "{api}"

[postgres]
url = "{postgres_url}"
password_file = "{postgres_password_file}"

[operations]
listen = "{operations}"

[store]
kind = "s3"
endpoint = "{endpoint}"
bucket = "{bucket}"
prefix = "{PREFIX}"
region = "{REGION}"
access_key_id = "{access_key_id}"
secret_access_key_file = "{secret_access_key_file}"
allow_plain_http = true

[keys]
cluster_key_file = "{keys}/cluster.key"
snapshot_seed_file = "{keys}/snapshot.key"
snapshot_public_key_files = ["{keys}/snapshot.pub"]

[telemetry]
log_format = "json"
log_filter = "info,deadpool=error,refinery_core=off,tokio_postgres=warn,entrepot_data_plane=debug,entrepot_control_plane=debug"
otlp_endpoint = "{otlp_endpoint}"
otlp_interval = "1s"
trace_ratio = {trace_ratio}

[drain]
notice = "{notice}ms"
limit = "60s"
"#,
            registry = at.registry(),
            peer = at.peer(),
            peer_address = ways.peer,
            data_dir = self.folder.join(format!("{name}-data")).display(),
            cache_size = self.cache_size,
            apis = apis.join(", "),
            redis = self.redis(&ways.redis_url),
            api = at.api(),
            postgres_url = self.postgres_url,
            postgres_password_file = secret("postgres-password", &self.postgres_password),
            operations = at.operations(),
            endpoint = ways.store_endpoint,
            bucket = self.store.bucket,
            access_key_id = self.store.access_key_id,
            secret_access_key_file = secret("secret-access-key", &self.store.secret_access_key),
            keys = self.keys().display(),
            otlp_endpoint = self.otlp_endpoint,
            trace_ratio = self.trace_ratio,
            notice = self.drain_notice.as_millis(),
        )
    }
}

/// A file with a secret in it, for nobody else's eyes.
fn secret_file(folder: &Path, name: &str, secret: &str) -> PathBuf {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = folder.join(name);
    let opened = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&file);
    opened.and_then(|mut opened| writeln!(opened, "{secret}")).expect("the folder can be written to");
    file
}
