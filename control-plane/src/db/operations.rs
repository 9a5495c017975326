//! Operations: tasks that take longer than a call.

use chrono::{DateTime, Utc};
use entrepot_domain::RepositoryName;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, parsed_opt};
use super::{Error, Tx};

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    SyncRepository,
    WarmImages,
}

impl Kind {
    const ALL: [Self; 2] = [Self::SyncRepository, Self::WarmImages];

    fn as_str(self) -> &'static str {
        match self {
            Self::SyncRepository => "SYNC_REPOSITORY",
            Self::WarmImages => "WARM_IMAGES",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) uid: Uuid,
    /// `None` is a kind that only another release knows.
    pub(crate) kind: Option<Kind>,
    pub(crate) repository: Option<RepositoryName>,
    pub(crate) access_key_id: String,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) cancel_time: Option<DateTime<Utc>>,
    pub(crate) end_time: Option<DateTime<Utc>>,
    pub(crate) item_count: i32,
    pub(crate) ended_count: i32,
    pub(crate) failed_count: i32,
    pub(crate) cancelled_count: i32,
    pub(crate) done_bytes: i64,
}

impl Operation {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let kind: &str = column(row, "kind")?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
        Ok(Self {
            uid: column(row, "uid")?,
            kind,
            repository: parsed_opt(row, "repository")?,
            access_key_id: column(row, "access_key_id")?,
            create_time: column(row, "create_time")?,
            cancel_time: column(row, "cancel_time")?,
            end_time: column(row, "end_time")?,
            item_count: column(row, "item_count")?,
            ended_count: column(row, "ended_count")?,
            failed_count: column(row, "failed_count")?,
            cancelled_count: column(row, "cancelled_count")?,
            done_bytes: column(row, "done_bytes")?,
        })
    }
}

/// Selects operations to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Only those that sync this repository.
    pub(crate) repository: Option<RepositoryName>,
    /// Only those that have ended, or only those that have not.
    pub(crate) done: Option<bool>,
}

/// The items of an operation that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) count: i32,
    pub(crate) failed: i32,
    pub(crate) cancelled: i32,
    pub(crate) done_bytes: i64,
}

/// Creates an operation with this many items.
pub(crate) async fn insert(
    tx: &Tx<'_>,
    kind: Kind,
    repository: Option<&RepositoryName>,
    access_key_id: &str,
    item_count: i32,
) -> Result<Operation, Error> {
    const SQL: &str = "-- operations.insert
        INSERT INTO operations (uid, kind, repository, access_key_id, item_count) VALUES ($1, $2, $3, $4, $5)
        RETURNING uid, kind, repository, access_key_id, create_time, cancel_time, end_time, item_count, ended_count,
                  failed_count, cancelled_count, done_bytes";
    let (uid, repository) = (Uuid::now_v7(), repository.map(RepositoryName::as_str));
    let row = tx.query_one(SQL, &[&uid, &kind.as_str(), &repository, &access_key_id, &item_count]).await?;
    Operation::from_row(&row)
}

/// How many operations are running.
pub(crate) async fn running(tx: &Tx<'_>) -> Result<i64, Error> {
    const SQL: &str = "-- operations.running
        SELECT count(*) AS n FROM operations WHERE end_time IS NULL";
    column(&tx.query_one(SQL, &[]).await?, "n")
}

pub(crate) async fn get(tx: &Tx<'_>, uid: Uuid) -> Result<Option<Operation>, Error> {
    const SQL: &str = "-- operations.get
        SELECT uid, kind, repository, access_key_id, create_time, cancel_time, end_time, item_count, ended_count,
               failed_count, cancelled_count, done_bytes
          FROM operations WHERE uid = $1";
    tx.query_opt(SQL, &[&uid]).await?.as_ref().map(Operation::from_row).transpose()
}

/// At most `limit` operations, the newest first, only those after `after`.
pub(crate) async fn list(
    tx: &Tx<'_>,
    filter: &Filter,
    after: Option<&(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Operation>, Error> {
    const SQL: &str = "-- operations.list
        SELECT uid, kind, repository, access_key_id, create_time, cancel_time, end_time, item_count, ended_count,
               failed_count, cancelled_count, done_bytes
          FROM operations
         WHERE ($1::timestamptz IS NULL OR (create_time, uid) < ($1, $2))
           AND ($3::text IS NULL OR repository = $3)
           AND ($4::boolean IS NULL OR (end_time IS NOT NULL) = $4)
         ORDER BY create_time DESC, uid DESC LIMIT $5";
    let (time, uid) = (after.map(|(time, _)| *time), after.map(|(_, uid)| *uid));
    let repository = filter.repository.as_ref().map(RepositoryName::as_str);
    let rows = tx.query(SQL, &[&time, &uid, &repository, &filter.done, &limit]).await?;
    rows.iter().map(Operation::from_row).collect()
}

/// Counts ended items, and ends the operation with the last of them. The caller has locked the rows of these items.
pub(crate) async fn count(tx: &Tx<'_>, uid: Uuid, ended: Ended) -> Result<(), Error> {
    const SQL: &str = "-- operations.count
        UPDATE operations
           SET ended_count = ended_count + $2, failed_count = failed_count + $3,
               cancelled_count = cancelled_count + $4, done_bytes = done_bytes + $5,
               end_time = CASE WHEN ended_count + $2 >= item_count THEN now() END
         WHERE uid = $1";
    let Ended { count, failed, cancelled, done_bytes } = ended;
    tx.execute(SQL, &[&uid, &count, &failed, &cancelled, &done_bytes]).await?;
    Ok(())
}

/// Marks an operation as cancelled, if it has not ended.
pub(crate) async fn cancel(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- operations.cancel
        UPDATE operations SET cancel_time = now() WHERE uid = $1 AND end_time IS NULL AND cancel_time IS NULL";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}

/// Deletes an operation with its items, if it has ended. Returns whether it had.
pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<bool, Error> {
    const SQL: &str = "-- operations.delete
        DELETE FROM operations WHERE uid = $1 AND end_time IS NOT NULL";
    Ok(tx.execute(SQL, &[&uid]).await? > 0)
}

/// Deletes at most `limit` operations that ended a week ago. Returns how many.
pub(crate) async fn prune(tx: &Tx<'_>, limit: i64) -> Result<u64, Error> {
    const SQL: &str = "-- operations.prune
        DELETE FROM operations
         WHERE uid IN (SELECT uid FROM operations WHERE end_time < now() - interval '7 days' LIMIT $1)";
    tx.execute(SQL, &[&limit]).await
}
