//! What a control plane reads from its configuration. All mistakes are told together.

#![warn(missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use entrepot_runtime::chain;
use entrepot_runtime::config::{Problems, Reader, Reported, Section};
use entrepot_runtime::tls::Alpn;
use entrepot_settings::{
    AccountSettings, ControlKeys, DrainSettings, ListenerSettings, OperationsSettings, StoreSettings,
    TelemetrySettings, ca_file, required_secret, secret, trusted_proxies,
};
use ipnet::IpNet;

use crate::config::{Config, ConfigError, Login};
use crate::plane::Reflection;

/// The sections that only nodes read.
pub const FOREIGN: &[&str] = &["registry", "peer", "node", "control", "fill", "redis"];

/// The longest that a node believes what it has read.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// Everything that a control plane is told before it starts, but the key of its first administrator.
#[derive(Debug)]
pub struct Settings {
    /// Where the API is served.
    pub api: ApiSettings,
    /// The database.
    pub database: Config,
    /// Where probes and Prometheus connect.
    pub operations: OperationsSettings,
    /// The bucket.
    pub store: StoreSettings,
    /// What it shares with nodes, and what it signs with.
    pub keys: ControlKeys,
    /// Logs, traces, metrics.
    pub telemetry: TelemetrySettings,
    /// How it ends.
    pub drain: DrainSettings,
    /// Whose registry this is.
    pub account: AccountSettings,
}

/// `[api]`
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The listener.
    pub listener: ListenerSettings,
    /// Whether callers may ask for the API's description.
    pub reflection: Reflection,
    /// How many connections are served at once.
    pub connections: usize,
    /// Whose word on who calls is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where a generated first key is written to.
    pub first_key_file: Option<PathBuf>,
}

impl Settings {
    /// Reads everything.
    ///
    /// # Errors
    /// All mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Problems> {
        let api = ApiSettings::read(reader);
        let database = database(&mut reader.section("postgres"));
        let hold_time = hold_time(&mut reader.section("records"));
        let operations = OperationsSettings::read(reader);
        let store = StoreSettings::read(reader);
        let keys = ControlKeys::read(reader);
        let telemetry = TelemetrySettings::read(reader);
        let drain = DrainSettings::read(reader);
        let account = AccountSettings::read(reader);
        reader.finish(FOREIGN)?;
        Ok(Self {
            api: api?,
            database: database?.with_hold_time(hold_time?),
            operations: operations?,
            store: store?,
            keys: keys?,
            telemetry: telemetry?,
            drain: drain?,
            account: account?,
        })
    }
}

impl ApiSettings {
    fn read(reader: &mut Reader) -> Result<Self, Reported> {
        const LISTEN: &str = "listen";
        let mut section = reader.section("api");
        let listener = ListenerSettings::read(&mut section, "127.0.0.1:5001", Alpn::Http2);
        let allow_plain = section.get::<bool>("allow_plain_api", "false");
        let reflection = section.get::<bool>("reflection", "true");
        let connections = connections(&mut section);
        let trusted_proxies = trusted_proxies(&mut section);
        let first_key_file = section.optional::<PathBuf>("first_key_file");
        let listener = listener?;
        if listener.is_open_clear_text() && !allow_plain? {
            let what = format!(
                "{} is not loopback, and access keys would cross the network readable: set tls_certificate_file and \
                 tls_key_file, or allow_plain_api = true where nobody listens",
                listener.listen
            );
            return Err(section.problem(LISTEN, what));
        }
        let reflection = if reflection? { Reflection::Open } else { Reflection::Closed };
        Ok(Self {
            listener,
            reflection,
            connections: connections?,
            trusted_proxies: trusted_proxies?,
            first_key_file: first_key_file?,
        })
    }
}

fn connections(section: &mut Section<'_>) -> Result<usize, Reported> {
    const CONNECTIONS: &str = "connections";
    match section.get::<usize>(CONNECTIONS, "4096")? {
        0 => Err(section.problem(CONNECTIONS, "must be at least 1")),
        connections => Ok(connections),
    }
}

/// `[records]`
fn hold_time(section: &mut Section<'_>) -> Result<Duration, Reported> {
    const HOLD_TIME: &str = "hold_time";
    let hold_time = section.get::<Duration>(HOLD_TIME, "5s")?;
    if hold_time > LONGEST_HOLD {
        return Err(section.problem(HOLD_TIME, format!("must be at most {} s", LONGEST_HOLD.as_secs())));
    }
    Ok(hold_time)
}

/// `[postgres]`
fn database(section: &mut Section<'_>) -> Result<Config, Reported> {
    const URL: &str = "url";
    const POOL_SIZE: &str = "pool_size";
    let url = required_secret(section, URL);
    let password = secret(section, "password");
    let ca = ca_file(section);
    let pool_size = section.get::<usize>(POOL_SIZE, "16");
    let (url, password, ca) = (url?, password?, ca?);
    let login = Login { password: password.as_ref(), ca: ca.as_deref().map(str::as_bytes) };
    Config::with(&url, login, pool_size?).map_err(|error| match error {
        ConfigError::Database(source) => section.problem(URL, chain(&*source).to_string()),
        ConfigError::PoolSize => section.problem(POOL_SIZE, "must be at least 1"),
    })
}
