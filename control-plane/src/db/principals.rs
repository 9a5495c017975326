//! Principals.

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_proto::convert::READER;
use entrepot_proto::convert::access::PermissionSet;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, id, named, page, parsed, readable};
use super::{Error, Tx};

/// A principal as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) uid: Uuid,
    pub(crate) id: ResourceId,
    pub(crate) permission_set: StoredSet,
    /// The lowest reader number that understands it.
    pub(crate) minimum_reader: i32,
    pub(crate) create_time: DateTime<Utc>,
}

/// A stored permission set: a known one, or a name that grants nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredSet {
    Known(PermissionSet),
    Unknown(String),
}

impl StoredSet {
    pub(crate) fn known(&self) -> Option<PermissionSet> {
        match self {
            Self::Known(set) => Some(*set),
            Self::Unknown(_) => None,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Known(set) => set.as_str(),
            Self::Unknown(name) => name,
        }
    }
}

impl From<PermissionSet> for StoredSet {
    fn from(set: PermissionSet) -> Self {
        Self::Known(set)
    }
}

impl Principal {
    pub(super) fn from_row(row: &Row) -> Result<Self, Error> {
        named(Self::read(row), || format!("principals/{}", id(row, "principal_id")))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        let name: &str = column(row, "permission_set")?;
        // A set for newer readers is treated like an unknown one: its principal can be seen and deleted, but is
        // permitted nothing.
        let set = PermissionSet::from_name(name).filter(|_| readable(row).is_ok());
        Ok(Self {
            uid: column(row, "uid")?,
            id: parsed(row, "principal_id")?,
            permission_set: set.map_or_else(|| StoredSet::Unknown(name.to_owned()), StoredSet::Known),
            minimum_reader: column(row, "minimum_reader")?,
            create_time: column(row, "create_time")?,
        })
    }
}

/// Creates a principal, or sets the permission set of the one with this uid.
///
/// # Errors
/// [`Error::Taken`] for the id.
pub(crate) async fn put(tx: &Tx<'_>, principal: &Principal) -> Result<(), Error> {
    const SQL: &str = "-- principals.put
        INSERT INTO principals (uid, principal_id, permission_set, create_time) VALUES ($1, $2, $3, $4)
        ON CONFLICT (uid) DO UPDATE SET permission_set = excluded.permission_set";
    let set = principal.permission_set.as_str();
    tx.execute(SQL, &[&principal.uid, &principal.id.as_str(), &set, &principal.create_time]).await?;
    Ok(())
}

pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Principal>, Error> {
    const SQL: &str = "-- principals.get
        SELECT uid, principal_id, permission_set, create_time, minimum_reader FROM principals WHERE principal_id = $1";
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Principal::from_row).transpose()
}

/// At most `limit` principals by id, only those after `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Principal>, Error> {
    const SQL: &str = "-- principals.list
        SELECT uid, principal_id, permission_set, create_time, minimum_reader FROM principals
         WHERE principal_id > $1 ORDER BY principal_id LIMIT $2";
    page(tx, SQL, "principal_id", after, limit, Principal::from_row).await
}

/// How many active keys administrators have, not counting those of `except_principal` and the key `except_key`.
pub(crate) async fn count_administrator_keys(
    tx: &Tx<'_>,
    except_principal: Option<Uuid>,
    except_key: Option<&str>,
) -> Result<i64, Error> {
    const SQL: &str = "-- principals.count_administrator_keys
        SELECT count(*) AS keys
          FROM access_keys k JOIN principals p ON p.uid = k.principal_uid
         WHERE k.state = 'ACTIVE' AND p.permission_set = 'ADMINISTRATOR' AND p.minimum_reader <= $3
           AND p.uid IS DISTINCT FROM $1 AND k.key_id IS DISTINCT FROM $2";
    column(&tx.query_one(SQL, &[&except_principal, &except_key, &READER]).await?, "keys")
}

/// Deletes a principal without keys.
pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- principals.delete
        DELETE FROM principals WHERE uid = $1";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}
