//! What a control plane is told before it starts.

use std::time::Duration;

use entrepot_domain::Secret;

use crate::db;

/// For how long nodes may believe what they have read of records, unless it is said.
const HOLD_TIME: Duration = Duration::from_secs(5);

/// Where Postgres is and how many connections are kept to it. Does not change while the control plane runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) database: db::Address,
    pub(crate) pool_size: usize,
    pub(crate) hold_time: Duration,
}

/// What there is to say about the database besides its address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Login<'a> {
    /// Whom it is logged in with, where the address does not say.
    pub password: Option<&'a Secret<String>>,
    /// Certificates in PEM format; the database must show one that they certify.
    pub ca: Option<&'a [u8]>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The database's address is none, or nobody could be trusted there.
    #[error("the database's address cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No connection could ever be made.
    #[error("the pool's size must be at least 1")]
    PoolSize,
}

impl Config {
    /// Reads the database's address: a `postgres://` URL, or `key=value` pairs. It may hold a password.
    ///
    /// # Errors
    /// If the address is none, or `pool_size` is 0.
    pub fn new(database: &Secret<String>, pool_size: usize) -> Result<Self, ConfigError> {
        Self::with(database, Login::default(), pool_size)
    }

    /// As [`Config::new`], with more to say.
    ///
    /// # Errors
    /// As [`Config::new`], and if the certificates are none.
    pub fn with(database: &Secret<String>, login: Login<'_>, pool_size: usize) -> Result<Self, ConfigError> {
        let database = db::Address::parse(database.expose(), login.password, login.ca);
        let database = database.map_err(|error| ConfigError::Database(error.into()))?;
        if pool_size == 0 {
            return Err(ConfigError::PoolSize);
        }
        Ok(Self { database, pool_size, hold_time: HOLD_TIME })
    }

    /// The same with another time for which nodes may believe what they have read of records.
    #[must_use]
    pub fn with_hold_time(self, hold_time: Duration) -> Self {
        Self { hold_time, ..self }
    }
}
