//! What nodes are to do. Who has a job is decided by leases, by the clock of the database.
//!
//! Rows of jobs are locked before those of their operations.

mod automatic;
mod lease;

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::operations::{self, Ended};
use super::row::{column, corrupt};
use super::{Error, Tx};

pub(crate) use automatic::{Candidate, candidates, drop_unleased, forget_ended, pace, schedule};
pub(crate) use lease::{Leased, Report, Settled, give_back, lease, report, settle};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    SyncTag,
    WarmImage,
}

impl Kind {
    const ALL: [Self; 2] = [Self::SyncTag, Self::WarmImage];

    fn as_str(self) -> &'static str {
        match self {
            Self::SyncTag => "SYNC_TAG",
            Self::WarmImage => "WARM_IMAGE",
        }
    }

    fn read(row: &Row) -> Result<Self, Error> {
        let kind: &str = column(row, "kind")?;
        Self::ALL.into_iter().find(|known| known.as_str() == kind).ok_or_else(|| corrupt("kind", "unknown"))
    }

    /// The less, the sooner: people wait for syncs that they ask for, and warming can wait longest.
    fn priority(self) -> i16 {
        match self {
            Self::SyncTag => 0,
            Self::WarmImage => 2,
        }
    }
}

/// The priority of syncs that nobody asked for.
const AUTOMATIC: i16 = 1;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Unchanged,
    Moved,
    Created,
    Deleted,
    Failed,
    Cancelled,
}

impl Outcome {
    const ALL: [Self; 6] = [Self::Unchanged, Self::Moved, Self::Created, Self::Deleted, Self::Failed, Self::Cancelled];

    fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "UNCHANGED",
            Self::Moved => "MOVED",
            Self::Created => "CREATED",
            Self::Deleted => "DELETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// An item of an operation.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) ordinal: i32,
    pub(crate) repository: String,
    pub(crate) reference: String,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) from_digest: Option<String>,
    pub(crate) to_digest: Option<String>,
    pub(crate) reason: String,
    pub(crate) done_bytes: i64,
    pub(crate) total_bytes: i64,
    pub(crate) node_id: Option<String>,
    pub(crate) attempt_count: i32,
    pub(crate) end_time: Option<DateTime<Utc>>,
}

impl Item {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let outcome: Option<&str> = column(row, "outcome")?;
        let known = |text: &str| {
            let found = Outcome::ALL.into_iter().find(|known| known.as_str() == text);
            found.ok_or_else(|| corrupt("outcome", "unknown"))
        };
        Ok(Self {
            ordinal: column(row, "ordinal")?,
            repository: column(row, "repository")?,
            reference: column(row, "reference")?,
            outcome: outcome.map(known).transpose()?,
            from_digest: column(row, "from_digest")?,
            to_digest: column(row, "to_digest")?,
            reason: column(row, "reason")?,
            done_bytes: column(row, "done_bytes")?,
            total_bytes: column(row, "total_bytes")?,
            node_id: column(row, "node_id")?,
            attempt_count: column(row, "attempt_count")?,
            end_time: column(row, "end_time")?,
        })
    }
}

/// Adds the items of an operation, one for each repository and reference, in this order.
pub(crate) async fn insert(
    tx: &Tx<'_>,
    operation: Uuid,
    kind: Kind,
    images: &[(String, String)],
    platforms: &[String],
) -> Result<(), Error> {
    const SQL: &str = "-- jobs.insert
        INSERT INTO jobs (operation_uid, ordinal, kind, priority, repository, reference, platforms)
        SELECT $1, n, $2, $3, repository, reference, $6
          FROM unnest($4::text[], $5::text[]) WITH ORDINALITY AS asked (repository, reference, n)";
    let (repositories, references): (Vec<&str>, Vec<&str>) =
        images.iter().map(|(repository, reference)| (repository.as_str(), reference.as_str())).unzip();
    tx.execute(SQL, &[&operation, &kind.as_str(), &kind.priority(), &repositories, &references, &platforms]).await?;
    Ok(())
}

/// At most `limit` items of an operation, those behind the one with this number.
pub(crate) async fn items(tx: &Tx<'_>, operation: Uuid, after: i32, limit: i64) -> Result<Vec<Item>, Error> {
    const SQL: &str = "-- jobs.items
        SELECT ordinal, repository, reference, outcome, from_digest, to_digest, reason, done_bytes, total_bytes,
               node_id, attempt_count, end_time
          FROM jobs WHERE operation_uid = $1 AND ordinal > $2 ORDER BY ordinal LIMIT $3";
    tx.query(SQL, &[&operation, &after, &limit]).await?.iter().map(Item::from_row).collect()
}

/// The items of an operation that nodes work at.
pub(crate) async fn running(tx: &Tx<'_>, operation: Uuid, limit: i64) -> Result<Vec<Item>, Error> {
    const SQL: &str = "-- jobs.running
        SELECT ordinal, repository, reference, outcome, from_digest, to_digest, reason, done_bytes, total_bytes,
               node_id, attempt_count, end_time
          FROM jobs WHERE operation_uid = $1 AND end_time IS NULL AND lease_until IS NOT NULL ORDER BY ordinal LIMIT $2";
    tx.query(SQL, &[&operation, &limit]).await?.iter().map(Item::from_row).collect()
}

/// At most `limit` items that have ended since `since`, the first ones first.
pub(crate) async fn ended(tx: &Tx<'_>, operation: Uuid, since: DateTime<Utc>, limit: i64) -> Result<Vec<Item>, Error> {
    const SQL: &str = "-- jobs.ended
        SELECT ordinal, repository, reference, outcome, from_digest, to_digest, reason, done_bytes, total_bytes,
               node_id, attempt_count, end_time
          FROM jobs WHERE operation_uid = $1 AND end_time >= $2 ORDER BY end_time, ordinal LIMIT $3";
    tx.query(SQL, &[&operation, &since, &limit]).await?.iter().map(Item::from_row).collect()
}

/// Cancels what is left of an operation: what waits ends at once, and the nodes that have the rest hear of it.
pub(crate) async fn cancel(tx: &Tx<'_>, operation: Uuid) -> Result<(), Error> {
    const MARK: &str = "-- jobs.cancel: mark
        UPDATE jobs SET is_cancelled = true WHERE operation_uid = $1 AND end_time IS NULL AND NOT is_cancelled";
    tx.execute(MARK, &[&operation]).await?;
    end_cancelled(tx, Some(operation)).await
}

/// Ends cancelled items that no node has, of one operation or of all.
pub(crate) async fn end_cancelled(tx: &Tx<'_>, operation: Option<Uuid>) -> Result<(), Error> {
    const SQL: &str = "-- jobs.end_cancelled
        WITH ended AS (
            UPDATE jobs SET outcome = 'CANCELLED', end_time = now(), lease_until = NULL, lease_token = NULL
             WHERE uid IN (SELECT uid FROM jobs
                            WHERE end_time IS NULL AND is_cancelled AND (lease_until IS NULL OR lease_until <= now())
                              AND ($1::uuid IS NULL OR operation_uid = $1)
                            ORDER BY uid LIMIT 100000 FOR UPDATE)
            RETURNING operation_uid)
        SELECT operation_uid, count(*)::integer AS n FROM ended GROUP BY operation_uid ORDER BY operation_uid";
    for row in tx.query(SQL, &[&operation]).await? {
        let (uid, count) = (column(&row, "operation_uid")?, column(&row, "n")?);
        operations::count(tx, uid, Ended { count, cancelled: count, ..Ended::default() }).await?;
    }
    Ok(())
}

/// Ends jobs whose last attempt was lost with its node.
pub(crate) async fn end_lost(tx: &Tx<'_>, attempts: i32) -> Result<(), Error> {
    const SQL: &str = "-- jobs.end_lost
        WITH ended AS (
            UPDATE jobs SET outcome = 'FAILED', end_time = now(), lease_until = NULL, lease_token = NULL,
                            reason = 'the nodes that worked at it were lost, the last of them being ' || node_id
             WHERE uid IN (SELECT uid FROM jobs
                            WHERE end_time IS NULL AND NOT is_cancelled AND attempt_count >= $1 AND lease_until <= now()
                            ORDER BY uid LIMIT 1000 FOR UPDATE SKIP LOCKED)
            RETURNING operation_uid)
        SELECT operation_uid, count(*)::integer AS n FROM ended WHERE operation_uid IS NOT NULL
         GROUP BY operation_uid ORDER BY operation_uid";
    for row in tx.query(SQL, &[&attempts]).await? {
        let (uid, count) = (column(&row, "operation_uid")?, column(&row, "n")?);
        operations::count(tx, uid, Ended { count, failed: count, ..Ended::default() }).await?;
    }
    Ok(())
}
