//! The jobs for nodes. Leases, by the database's clock, decide which node has a job.
//!
//! Here a job's kind is just a name, and payload and result are JSON in the form of the kind: see
//! `entrepot_domain::job`. Rows of jobs are locked before those of their operations.

mod automatic;
mod lease;

use chrono::{DateTime, Utc};
use entrepot_domain::job::JobKind;
use entrepot_domain::{Reference, RepositoryName};
use entrepot_proto::convert::names;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::operations::{self, Ended};
use super::row::{column, corrupt};
use super::{Error, Tx};

pub(crate) use automatic::{Candidate, Position, candidates, drop_unleased, forget_ended, pace, schedule};
pub(crate) use lease::{
    Failure, LeaseError, LeasePlea, Leased, Progress, Renewal, Settled, Ticket, give_back, lease, report, settle,
};

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It succeeded; its result says more.
    Done,
    Failed,
    Cancelled,
    /// In a way that only another release knows.
    Unknown,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Cancelled];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "DONE",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A job to create.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    kind: &'static str,
    priority: i16,
    repository: RepositoryName,
    subject: String,
    payload: Value,
}

impl NewJob {
    /// A job of the kind `K` for `reference`.
    pub(crate) fn of<K: JobKind>(
        repository: &RepositoryName,
        reference: &Reference,
        payload: &K::Payload,
    ) -> Result<Self, Error> {
        let payload = serde_json::to_value(payload).map_err(|error| corrupt("payload", error))?;
        let subject = names::reference(repository, reference);
        Ok(Self { kind: K::NAME, priority: K::PRIORITY, repository: repository.clone(), subject, payload })
    }
}

/// An item of an operation.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) ordinal: i32,
    pub(crate) subject: String,
    pub(crate) outcome: Option<Outcome>,
    /// The result of a job that has succeeded, in the form of its kind.
    pub(crate) result: Option<Value>,
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
            found.unwrap_or(Outcome::Unknown)
        };
        Ok(Self {
            ordinal: column(row, "ordinal")?,
            subject: column(row, "subject")?,
            outcome: outcome.map(known),
            result: column(row, "result")?,
            reason: column(row, "reason")?,
            done_bytes: column(row, "done_bytes")?,
            total_bytes: column(row, "total_bytes")?,
            node_id: column(row, "node_id")?,
            attempt_count: column(row, "attempt_count")?,
            end_time: column(row, "end_time")?,
        })
    }
}

/// Adds the items of an operation in this order. Each takes its turns with the upstream of the rule that covers its
/// repository now.
pub(crate) async fn insert(tx: &Tx<'_>, operation: Uuid, items: &[NewJob]) -> Result<(), Error> {
    const SQL: &str = "-- jobs.insert
        INSERT INTO jobs (operation_uid, ordinal, kind, priority, subject, payload, turn_time, upstream)
        SELECT $1, n, kind, priority, subject, payload, now() + priority * interval '1 minute',
               coalesce((SELECT upstream_uid::text FROM rules
                          WHERE prefix = 'ROOT' OR prefix = repository OR starts_with(repository, prefix || '/')
                          ORDER BY prefix <> 'ROOT' DESC, length(prefix) DESC LIMIT 1), '')
          FROM unnest($2::text[], $3::smallint[], $4::text[], $5::jsonb[], $6::text[])
               WITH ORDINALITY AS asked (kind, priority, subject, payload, repository, n)";
    let kinds: Vec<&str> = items.iter().map(|item| item.kind).collect();
    let priorities: Vec<i16> = items.iter().map(|item| item.priority).collect();
    let subjects: Vec<&str> = items.iter().map(|item| item.subject.as_str()).collect();
    let payloads: Vec<&Value> = items.iter().map(|item| &item.payload).collect();
    let repositories: Vec<&str> = items.iter().map(|item| item.repository.as_str()).collect();
    tx.execute(SQL, &[&operation, &kinds, &priorities, &subjects, &payloads, &repositories]).await?;
    Ok(())
}

/// At most `limit` items of an operation, only those after the one with this number.
pub(crate) async fn items(tx: &Tx<'_>, operation: Uuid, after: i32, limit: i64) -> Result<Vec<Item>, Error> {
    const SQL: &str = "-- jobs.items
        SELECT ordinal, subject, outcome, result, reason, done_bytes, total_bytes,
               node_id, attempt_count, end_time
          FROM jobs WHERE operation_uid = $1 AND ordinal > $2 ORDER BY ordinal LIMIT $3";
    tx.query(SQL, &[&operation, &after, &limit]).await?.iter().map(Item::from_row).collect()
}

/// The items of an operation that nodes are working on.
pub(crate) async fn running(tx: &Tx<'_>, operation: Uuid, limit: i64) -> Result<Vec<Item>, Error> {
    const SQL: &str = "-- jobs.running
        SELECT ordinal, subject, outcome, result, reason, done_bytes, total_bytes,
               node_id, attempt_count, end_time
          FROM jobs WHERE operation_uid = $1 AND end_time IS NULL AND lease_until IS NOT NULL ORDER BY ordinal LIMIT $2";
    tx.query(SQL, &[&operation, &limit]).await?.iter().map(Item::from_row).collect()
}

/// At most `limit` items that have ended since `since`, the earliest first.
pub(crate) async fn list_ended(
    tx: &Tx<'_>,
    operation: Uuid,
    since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Item>, Error> {
    const SQL: &str = "-- jobs.ended
        SELECT ordinal, subject, outcome, result, reason, done_bytes, total_bytes,
               node_id, attempt_count, end_time
          FROM jobs WHERE operation_uid = $1 AND end_time >= $2 ORDER BY end_time, ordinal LIMIT $3";
    tx.query(SQL, &[&operation, &since, &limit]).await?.iter().map(Item::from_row).collect()
}

/// Cancels the rest of an operation: waiting items end at once, and nodes that work on others are told.
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
