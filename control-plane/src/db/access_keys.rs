//! Access keys. Rows are never deleted, so that a revoked id stays revoked.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::principals::Principal;
use super::row::column;
use super::{Error, Tx};

/// A key as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct AccessKey {
    pub(crate) key_id: String,
    /// Its principal; `None` once the principal is deleted.
    pub(crate) principal_uid: Option<Uuid>,
    pub(crate) sealed_hash: Vec<u8>,
    /// The secret itself, if it was generated and the key is active.
    pub(crate) sealed_secret: Option<Vec<u8>>,
    pub(crate) state: State,
    pub(crate) create_time: DateTime<Utc>,
}

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Active,
    Revoked,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Revoked => "REVOKED",
        }
    }
}

impl AccessKey {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let is_active = column::<&str>(row, "state")? == State::Active.as_str();
        Ok(Self {
            key_id: column(row, "key_id")?,
            principal_uid: column(row, "principal_uid")?,
            sealed_hash: column(row, "sealed_hash")?,
            sealed_secret: column(row, "sealed_secret")?,
            state: if is_active { State::Active } else { State::Revoked },
            create_time: column(row, "key_create_time")?,
        })
    }
}

/// Creates a key, or replaces the principal, hash, secret and state of the key with this id. A revoked key keeps no
/// secret.
pub(crate) async fn put(tx: &Tx<'_>, key: &AccessKey) -> Result<(), Error> {
    const SQL: &str = "-- access_keys.put
        INSERT INTO access_keys (key_id, principal_uid, sealed_hash, sealed_secret, state, create_time)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (key_id) DO UPDATE
           SET principal_uid = excluded.principal_uid, sealed_hash = excluded.sealed_hash,
               sealed_secret = excluded.sealed_secret, state = excluded.state";
    let state = key.state.as_str();
    let secret = key.sealed_secret.as_ref().filter(|_| key.state == State::Active);
    tx.execute(SQL, &[&key.key_id, &key.principal_uid, &key.sealed_hash, &secret, &state, &key.create_time]).await?;
    Ok(())
}

/// The key with this id, revoked or not.
pub(crate) async fn get(tx: &Tx<'_>, key_id: &str) -> Result<Option<AccessKey>, Error> {
    const SQL: &str = "-- access_keys.get
        SELECT key_id, principal_uid, sealed_hash, sealed_secret, state, create_time AS key_create_time
          FROM access_keys WHERE key_id = $1";
    tx.query_opt(SQL, &[&key_id]).await?.as_ref().map(AccessKey::from_row).transpose()
}

/// The key with this id and its principal, if it is active.
pub(crate) async fn usable(tx: &Tx<'_>, key_id: &str) -> Result<Option<(AccessKey, Principal)>, Error> {
    const SQL: &str = "-- access_keys.usable
        SELECT key_id, principal_uid, sealed_hash, sealed_secret, state, k.create_time AS key_create_time,
               uid, principal_id, permission_set, p.create_time, p.minimum_reader
          FROM access_keys k JOIN principals p ON p.uid = k.principal_uid
         WHERE key_id = $1 AND state = 'ACTIVE'";
    let row = tx.query_opt(SQL, &[&key_id]).await?;
    row.map(|row| Ok((AccessKey::from_row(&row)?, Principal::from_row(&row)?))).transpose()
}

/// All active keys.
pub(crate) async fn all_usable(tx: &Tx<'_>) -> Result<Vec<AccessKey>, Error> {
    const SQL: &str = "-- access_keys.all_usable
        SELECT key_id, principal_uid, sealed_hash, sealed_secret, state, create_time AS key_create_time
          FROM access_keys WHERE state = 'ACTIVE' AND principal_uid IS NOT NULL ORDER BY key_id";
    tx.query(SQL, &[]).await?.iter().map(AccessKey::from_row).collect()
}

/// At most `limit` keys of a principal by id, including revoked ones, only those after `after`.
pub(crate) async fn list(tx: &Tx<'_>, principal_uid: Uuid, after: &str, limit: i64) -> Result<Vec<AccessKey>, Error> {
    const SQL: &str = "-- access_keys.list
        SELECT key_id, principal_uid, sealed_hash, sealed_secret, state, create_time AS key_create_time
          FROM access_keys WHERE principal_uid = $1 AND key_id > $2 ORDER BY key_id LIMIT $3";
    tx.query(SQL, &[&principal_uid, &after, &limit]).await?.iter().map(AccessKey::from_row).collect()
}

/// Revokes all keys of a principal that is about to be deleted.
pub(crate) async fn revoke_all(tx: &Tx<'_>, principal_uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- access_keys.revoke_all
        UPDATE access_keys SET state = 'REVOKED', principal_uid = NULL, sealed_secret = NULL WHERE principal_uid = $1";
    tx.execute(SQL, &[&principal_uid]).await?;
    Ok(())
}
