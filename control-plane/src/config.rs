//! What a control plane is told before it starts.

use entrepot_domain::Secret;

use crate::db;

/// Where Postgres is and how many connections are kept to it. Does not change while the control plane runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) database: db::Address,
    pub(crate) pool_size: usize,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The database's address is none.
    #[error(
        "the database's address must be a URL such as `postgres://user@host/database`, or pairs such as `host=/run/postgresql user=entrepot`"
    )]
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
        let database = db::Address::parse(database.expose()).map_err(|error| ConfigError::Database(error.into()))?;
        if pool_size == 0 { Err(ConfigError::PoolSize) } else { Ok(Self { database, pool_size }) }
    }
}
