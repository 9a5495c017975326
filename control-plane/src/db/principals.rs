//! Principals.

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_proto::convert::access::PermissionSet;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, corrupt, parsed};
use super::{Error, Tx};

/// A principal as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) uid: Uuid,
    pub(crate) id: ResourceId,
    pub(crate) permission_set: PermissionSet,
    pub(crate) create_time: DateTime<Utc>,
}

impl Principal {
    pub(super) fn from_row(row: &Row) -> Result<Self, Error> {
        let set = PermissionSet::from_name(column(row, "permission_set")?);
        Ok(Self {
            uid: column(row, "uid")?,
            id: parsed(row, "principal_id")?,
            permission_set: set.ok_or_else(|| corrupt("permission_set", "unknown"))?,
            create_time: column(row, "create_time")?,
        })
    }
}

/// Creates a principal, or gives the one with this uid its permission set.
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

/// The principal with this id.
pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Principal>, Error> {
    const SQL: &str = "-- principals.get
        SELECT uid, principal_id, permission_set, create_time FROM principals WHERE principal_id = $1";
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Principal::from_row).transpose()
}

/// At most `limit` principals by id, those behind `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Principal>, Error> {
    const SQL: &str = "-- principals.list
        SELECT uid, principal_id, permission_set, create_time FROM principals
         WHERE principal_id > $1 ORDER BY principal_id LIMIT $2";
    tx.query(SQL, &[&after, &limit]).await?.iter().map(Principal::from_row).collect()
}

/// How many keys administrators can call with, those of `except_principal` and the key `except_key` left out.
pub(crate) async fn count_administrator_keys(
    tx: &Tx<'_>,
    except_principal: Option<Uuid>,
    except_key: Option<&str>,
) -> Result<i64, Error> {
    const SQL: &str = "-- principals.count_administrator_keys
        SELECT count(*) AS keys
          FROM access_keys k JOIN principals p ON p.uid = k.principal_uid
         WHERE k.state = 'ACTIVE' AND p.permission_set = 'ADMINISTRATOR'
           AND p.uid IS DISTINCT FROM $1 AND k.key_id IS DISTINCT FROM $2";
    column(&tx.query_one(SQL, &[&except_principal, &except_key]).await?, "keys")
}

/// Deletes a principal that has no keys.
pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- principals.delete
        DELETE FROM principals WHERE uid = $1";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}
