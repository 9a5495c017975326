//! Jobs in the hands of nodes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_domain::sync::{rest, rest_of_budget};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::operations::{self, Ended};
use super::super::row::column;
use super::super::{Error, Tx};
use super::{Kind, Outcome};

/// A job that a node has got.
#[derive(Clone, Debug)]
pub(crate) struct Leased {
    pub(crate) uid: Uuid,
    pub(crate) lease_token: Uuid,
    pub(crate) kind: Kind,
    pub(crate) repository: String,
    pub(crate) reference: String,
    pub(crate) platforms: Vec<String>,
    pub(crate) known_validate_time: Option<DateTime<Utc>>,
}

impl Leased {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            uid: column(row, "uid")?,
            lease_token: column(row, "lease_token")?,
            kind: Kind::read(row)?,
            repository: column(row, "repository")?,
            reference: column(row, "reference")?,
            platforms: column(row, "platforms")?,
            known_validate_time: column(row, "known_validate_time")?,
        })
    }
}

/// Who reports on which job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) job: Uuid,
    pub(crate) lease_token: Uuid,
    pub(crate) done_bytes: i64,
    pub(crate) total_bytes: i64,
}

/// How a job ended, as its node says.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub(crate) outcome: Outcome,
    pub(crate) from_digest: Option<String>,
    pub(crate) to_digest: Option<String>,
    pub(crate) reason: String,
    /// Whether it is tried once more, unless it was tried often enough.
    pub(crate) may_retry: bool,
    /// How long the upstream wants to be left alone before that.
    pub(crate) retry_after: Option<Duration>,
    /// Whether it has only waited for the upstream's budget, which was no attempt.
    pub(crate) is_over_budget: bool,
}

/// Gives at most `limit` jobs to a node, for `length`: those that are due, that no node has, and that were not tried
/// `attempts` times yet.
pub(crate) async fn lease(
    tx: &Tx<'_>,
    node: &ResourceId,
    limit: i64,
    length: Duration,
    attempts: i32,
) -> Result<Vec<Leased>, Error> {
    const SQL: &str = "-- jobs.lease
        WITH due AS (
            SELECT uid FROM jobs
             WHERE end_time IS NULL AND run_time <= now() AND NOT is_cancelled AND attempt_count < $4
               AND (lease_until IS NULL OR lease_until <= now())
             ORDER BY priority, run_time LIMIT $1 FOR UPDATE SKIP LOCKED)
        UPDATE jobs
           SET lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => $3), node_id = $2,
               attempt_count = attempt_count + 1
          FROM due WHERE jobs.uid = due.uid
        RETURNING jobs.uid, lease_token, kind, repository, reference, platforms, known_validate_time";
    let rows = tx.query(SQL, &[&limit, &node.as_str(), &length.as_secs_f64(), &attempts]).await?;
    rows.iter().map(Leased::from_row).collect()
}

/// Renews a lease by what its node says of the job; whether the node is to go on.
pub(crate) async fn report(tx: &Tx<'_>, report: Report, length: Duration) -> Result<bool, Error> {
    const SQL: &str = "-- jobs.report
        UPDATE jobs SET lease_until = now() + make_interval(secs => $3), done_bytes = $4, total_bytes = $5
         WHERE uid = $1 AND lease_token = $2 AND end_time IS NULL
        RETURNING is_cancelled";
    let Report { job, lease_token, done_bytes, total_bytes } = report;
    let row = tx.query_opt(SQL, &[&job, &lease_token, &length.as_secs_f64(), &done_bytes, &total_bytes]).await?;
    row.map_or(Ok(false), |row| Ok(!column::<bool>(&row, "is_cancelled")?))
}

/// Takes a job back that its node did not end. It was no attempt; a cancelled one is over.
pub(crate) async fn give_back(tx: &Tx<'_>, job: Uuid, lease_token: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- jobs.give_back
        UPDATE jobs
           SET lease_until = NULL, lease_token = NULL, attempt_count = attempt_count - 1,
               outcome = CASE WHEN is_cancelled THEN 'CANCELLED' END, end_time = CASE WHEN is_cancelled THEN now() END
         WHERE uid = $1 AND lease_token = $2 AND end_time IS NULL
        RETURNING operation_uid, is_cancelled";
    let Some(row) = tx.query_opt(SQL, &[&job, &lease_token]).await? else { return Ok(()) };
    match column(&row, "operation_uid")? {
        Some(operation) if column(&row, "is_cancelled")? => {
            operations::count(tx, operation, Ended { count: 1, cancelled: 1, ..Ended::default() }).await
        }
        Some(_) | None => Ok(()),
    }
}

/// Ends a job as its node says, or has it rest before its next attempt. A job that the node has no more is left alone.
pub(crate) async fn settle(tx: &Tx<'_>, report: Report, settled: &Settled, attempts: i32) -> Result<(), Error> {
    const HOLD: &str = "-- jobs.settle: hold
        SELECT attempt_count, is_cancelled FROM jobs
         WHERE uid = $1 AND lease_token = $2 AND end_time IS NULL FOR UPDATE";
    const REST: &str = "-- jobs.settle: rest
        UPDATE jobs
           SET lease_until = NULL, lease_token = NULL, run_time = now() + make_interval(secs => $2), reason = $3,
               done_bytes = $4, total_bytes = $5, attempt_count = attempt_count - $6
         WHERE uid = $1";
    const END: &str = "-- jobs.settle: end
        UPDATE jobs
           SET lease_until = NULL, lease_token = NULL, end_time = now(), outcome = $2, from_digest = $3,
               to_digest = $4, reason = $5, done_bytes = $6, total_bytes = $7
         WHERE uid = $1
        RETURNING operation_uid";
    const FORGET: &str = "-- jobs.settle: forget
        DELETE FROM jobs WHERE uid = $1";
    let Report { job, lease_token, done_bytes, total_bytes } = report;
    let Settled { outcome, from_digest, to_digest, reason, may_retry, retry_after, is_over_budget } = settled;
    let Some(held) = tx.query_opt(HOLD, &[&job, &lease_token]).await? else { return Ok(()) };
    let (attempt, is_cancelled): (i32, bool) = (column(&held, "attempt_count")?, column(&held, "is_cancelled")?);
    if *may_retry && !is_cancelled && (attempt < attempts || *is_over_budget) {
        let rest = match is_over_budget {
            true => rest_of_budget(*retry_after),
            false => rest(u32::try_from(attempt).unwrap_or_default(), *retry_after),
        };
        let (rest, forgiven) = (rest.as_secs_f64(), i32::from(*is_over_budget));
        return tx.execute(REST, &[&job, &rest, reason, &done_bytes, &total_bytes, &forgiven]).await.map(drop);
    }
    let (name, to, from) = (outcome.as_str(), to_digest, from_digest);
    let row = tx.query_one(END, &[&job, &name, from, to, reason, &done_bytes, &total_bytes]).await?;
    match column(&row, "operation_uid")? {
        Some(operation) => {
            let failed = i32::from(*outcome == Outcome::Failed);
            operations::count(tx, operation, Ended { count: 1, failed, cancelled: 0, done_bytes }).await
        }
        // An automatic sync that ended well is over; one that did not keeps its tag from being scheduled at once.
        None if !matches!(outcome, Outcome::Failed | Outcome::Deleted) => tx.execute(FORGET, &[&job]).await.map(drop),
        None => Ok(()),
    }
}
