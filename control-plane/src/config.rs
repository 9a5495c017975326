//! The settings of a control plane that do not change while it runs.

use std::time::Duration;

use entrepot_domain::Secret;
use ipnet::IpNet;

use crate::db;

/// The default time for which nodes may rely on records that they have read.
const HOLD_TIME: Duration = Duration::from_secs(5);

/// The default number of connections that the API serves at once. Each node has one to each control plane.
const CONNECTIONS: usize = 4096;

/// The configuration of a control plane. It does not change while it runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) database: db::Address,
    pub(crate) pool_size: usize,
    pub(crate) hold_time: Duration,
    pub(crate) connections: usize,
    pub(crate) trusted_proxies: Vec<IpNet>,
}

/// Further settings of the database, apart from its address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Login<'a> {
    /// The password, if the address contains none.
    pub password: Option<&'a Secret<String>>,
    /// Certificates of authorities in PEM. The database's certificate must be issued by one of them.
    pub ca: Option<&'a [u8]>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The database's address is invalid, or its certificate could not be checked.
    #[error("the database's address cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// With a pool of size 0, no connection is possible.
    #[error("the pool's size must be at least 1")]
    PoolSize,
}

impl Config {
    /// Reads the database's address: a `postgres://` URL, or `key=value` pairs. It may contain a password.
    ///
    /// # Errors
    /// If the address is invalid, or `pool_size` is 0.
    pub fn new(database: &Secret<String>, pool_size: usize) -> Result<Self, ConfigError> {
        Self::with(database, Login::default(), pool_size)
    }

    /// As [`Config::new`], with further settings.
    ///
    /// # Errors
    /// As [`Config::new`], and if the certificates are invalid.
    pub fn with(database: &Secret<String>, login: Login<'_>, pool_size: usize) -> Result<Self, ConfigError> {
        let database = db::Address::parse(database.expose(), login.password, login.ca);
        let database = database.map_err(|error| ConfigError::Database(error.into()))?;
        if pool_size == 0 {
            return Err(ConfigError::PoolSize);
        }
        Ok(Self { database, pool_size, hold_time: HOLD_TIME, connections: CONNECTIONS, trusted_proxies: Vec::new() })
    }

    /// Sets how long nodes may rely on records that they have read.
    #[must_use]
    pub fn with_hold_time(self, hold_time: Duration) -> Self {
        Self { hold_time, ..self }
    }

    /// Sets how many connections the API serves at once.
    #[must_use]
    pub fn with_connections(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    /// The same behind proxies whose word on who calls is believed, and whose connections are never closed for others'.
    #[must_use]
    pub fn with_trusted_proxies(self, trusted_proxies: Vec<IpNet>) -> Self {
        Self { trusted_proxies, ..self }
    }
}
