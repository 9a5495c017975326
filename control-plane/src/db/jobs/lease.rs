//! Jobs leased to nodes.
//!
//! The next job is chosen by turns. Jobs of one kind at one upstream form a queue, and the queues take turns; those
//! with the fewest jobs on nodes come first. So a million jobs of one kind do not delay another kind, and one upstream
//! does not get all turns. Within a queue, jobs are ordered by age, and each step of priority is worth a minute. A
//! quarter of a node's jobs is reserved for other queues, so that the long jobs of one queue do not fill the node.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_domain::sync::{rest, rest_of_budget};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::operations::{self, Ended};
use super::super::row::column;
use super::super::{Error, Tx};
use super::Outcome;

/// Proves that a job belongs to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) job: Uuid,
    pub(crate) token: Uuid,
}

/// A job that was leased to a node.
#[derive(Clone, Debug)]
pub(crate) struct Leased {
    pub(crate) ticket: Ticket,
    /// The end of the lease, unless the node reports earlier.
    pub(crate) until: DateTime<Utc>,
    pub(crate) kind: String,
    pub(crate) payload: Value,
}

impl Leased {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            ticket: Ticket { job: column(row, "uid")?, token: column(row, "lease_token")? },
            until: column(row, "lease_until")?,
            kind: column(row, "kind")?,
            payload: column(row, "payload")?,
        })
    }
}

/// Why a report on a job is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// The job has ended, or belongs to another node by now.
    #[error("the lease is lost: the job has ended, or is another node's")]
    Lost,
    #[error(transparent)]
    Db(#[from] Error),
}

/// Whether a node continues with a job after renewing its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    GoesOn,
    Cancelled,
}

/// The progress of a job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) done_bytes: i64,
    pub(crate) total_bytes: i64,
}

/// How a job ended, according to its node.
#[derive(Clone, Debug)]
pub(crate) enum Settled {
    /// It succeeded with this result. If `stays` is true, the row is kept for a while even if nobody asked for the job.
    Done {
        result: Value,
        reason: String,
        stays: bool,
    },
    Failed(Failure),
}

/// The failure of a job.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// Whether it may be tried again, as long as there are attempts left.
    pub(crate) may_retry: bool,
    /// How long the upstream wants no requests before that.
    pub(crate) retry_after: Option<Duration>,
    /// Whether it only waited for the upstream's budget, which does not count as an attempt.
    pub(crate) is_over_budget: bool,
}

/// A node's request for jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeasePlea<'a> {
    pub(crate) node: &'a ResourceId,
    /// The kinds that the node knows.
    pub(crate) kinds: &'a [String],
    pub(crate) limit: i64,
}

/// Leases jobs to a node for `length`, in turns: jobs that are due, that no node has, and that have had fewer than
/// `attempts` attempts.
pub(crate) async fn lease(
    tx: &Tx<'_>,
    plea: LeasePlea<'_>,
    length: Duration,
    attempts: i32,
) -> Result<Vec<Leased>, Error> {
    const SQL: &str = "-- jobs.lease
        WITH RECURSIVE lines (kind, upstream) AS (
            (SELECT kind, upstream FROM jobs WHERE end_time IS NULL ORDER BY kind, upstream LIMIT 1)
            UNION ALL
            SELECT next.kind, next.upstream
              FROM lines, LATERAL (
                   SELECT kind, upstream FROM jobs
                    WHERE end_time IS NULL AND (kind, upstream) > (lines.kind, lines.upstream)
                    ORDER BY kind, upstream LIMIT 1) next),
        held AS (
            SELECT kind, upstream, count(*) AS all_count, count(*) FILTER (WHERE node_id = $2) AS own_count
              FROM jobs WHERE end_time IS NULL AND lease_token IS NOT NULL AND lease_until > now()
             GROUP BY kind, upstream),
        room AS (
            SELECT ceil(($1::bigint + coalesce(sum(own_count), 0)) * 0.75)::bigint AS line_count FROM held),
        waiting AS (
            SELECT next.uid, next.turn_time,
                   coalesce(held.all_count, 0) + row_number() OVER (
                       PARTITION BY kind, upstream ORDER BY next.turn_time, next.uid) AS turn
              FROM lines LEFT JOIN held USING (kind, upstream) CROSS JOIN room, LATERAL (
                   SELECT uid, turn_time FROM jobs j
                    WHERE end_time IS NULL AND j.kind = lines.kind AND j.upstream = lines.upstream
                      AND run_time <= now() AND NOT is_cancelled AND attempt_count < $4
                      AND (lease_until IS NULL OR lease_until <= now())
                    ORDER BY turn_time, uid
                    LIMIT greatest(0, room.line_count - coalesce(held.own_count, 0))) next
             WHERE lines.kind = ANY($5)),
        first AS (
            SELECT uid FROM waiting ORDER BY turn, turn_time, uid LIMIT 4 * $1::bigint),
        due AS (
            SELECT free.uid FROM first, LATERAL (
                   SELECT uid FROM jobs
                    WHERE uid = first.uid AND end_time IS NULL AND NOT is_cancelled
                      AND (lease_until IS NULL OR lease_until <= now())
                    LIMIT 1 FOR UPDATE SKIP LOCKED) free
             LIMIT $1::bigint)
        UPDATE jobs
           SET lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => $3), node_id = $2,
               attempt_count = attempt_count + 1
          FROM due WHERE jobs.uid = due.uid
        RETURNING jobs.uid, lease_token, lease_until, kind, payload";
    let LeasePlea { node, kinds, limit } = plea;
    let rows = tx.query(SQL, &[&limit, &node.as_str(), &length.as_secs_f64(), &attempts, &kinds]).await?;
    rows.iter().map(Leased::from_row).collect()
}

/// Renews a lease, with the progress that the node reports.
pub(crate) async fn report(
    tx: &Tx<'_>,
    ticket: Ticket,
    progress: Progress,
    length: Duration,
) -> Result<Renewal, LeaseError> {
    const SQL: &str = "-- jobs.report
        UPDATE jobs SET lease_until = now() + make_interval(secs => $3), done_bytes = $4, total_bytes = $5
         WHERE uid = $1 AND lease_token = $2 AND end_time IS NULL
        RETURNING is_cancelled";
    let (Ticket { job, token }, Progress { done_bytes, total_bytes }) = (ticket, progress);
    let row = tx.query_opt(SQL, &[&job, &token, &length.as_secs_f64(), &done_bytes, &total_bytes]).await?;
    let is_cancelled: bool = column(&row.ok_or(LeaseError::Lost)?, "is_cancelled")?;
    Ok(if is_cancelled { Renewal::Cancelled } else { Renewal::GoesOn })
}

/// Takes back a job that its node did not finish. This does not count as an attempt; a cancelled job ends.
pub(crate) async fn give_back(tx: &Tx<'_>, Ticket { job, token }: Ticket) -> Result<(), LeaseError> {
    const SQL: &str = "-- jobs.give_back
        UPDATE jobs
           SET lease_until = NULL, lease_token = NULL, attempt_count = attempt_count - 1,
               outcome = CASE WHEN is_cancelled THEN 'CANCELLED' END, end_time = CASE WHEN is_cancelled THEN now() END
         WHERE uid = $1 AND lease_token = $2 AND end_time IS NULL
        RETURNING operation_uid, is_cancelled";
    let row = tx.query_opt(SQL, &[&job, &token]).await?.ok_or(LeaseError::Lost)?;
    match column(&row, "operation_uid")? {
        Some(operation) if column(&row, "is_cancelled")? => {
            Ok(operations::count(tx, operation, Ended { count: 1, cancelled: 1, ..Ended::default() }).await?)
        }
        Some(_) | None => Ok(()),
    }
}

/// Ends a job as its node reports, or lets it rest until its next attempt.
pub(crate) async fn settle(
    tx: &Tx<'_>,
    ticket: Ticket,
    progress: Progress,
    settled: &Settled,
    attempts: i32,
) -> Result<(), LeaseError> {
    const HOLD: &str = "-- jobs.settle: hold
        SELECT attempt_count, is_cancelled FROM jobs
         WHERE uid = $1 AND lease_token = $2 AND end_time IS NULL FOR UPDATE";
    let Ticket { job, token } = ticket;
    let held = tx.query_opt(HOLD, &[&job, &token]).await?.ok_or(LeaseError::Lost)?;
    let (attempt, is_cancelled): (i32, bool) = (column(&held, "attempt_count")?, column(&held, "is_cancelled")?);
    match settled {
        Settled::Failed(failure) => {
            if failure.may_retry && !is_cancelled && (attempt < attempts || failure.is_over_budget) {
                return Ok(rest_after(tx, job, attempt, progress, failure).await?);
            }
            end(tx, job, progress, Outcome::Failed, None, &failure.reason, true).await?;
        }
        Settled::Done { result, reason, stays } => {
            end(tx, job, progress, Outcome::Done, Some(result), reason, *stays).await?;
        }
    }
    Ok(())
}

/// Lets a job rest until its next attempt.
async fn rest_after(tx: &Tx<'_>, job: Uuid, attempt: i32, progress: Progress, failure: &Failure) -> Result<(), Error> {
    const SQL: &str = "-- jobs.settle: rest
        UPDATE jobs
           SET lease_until = NULL, lease_token = NULL, run_time = now() + make_interval(secs => $2),
               turn_time = now() + make_interval(secs => $2) + priority * interval '1 minute', reason = $3,
               done_bytes = $4, total_bytes = $5, attempt_count = attempt_count - $6
         WHERE uid = $1";
    let rest = match failure.is_over_budget {
        true => rest_of_budget(failure.retry_after),
        false => rest(u32::try_from(attempt).unwrap_or_default(), failure.retry_after),
    };
    let forgiven = i32::from(failure.is_over_budget);
    let Progress { done_bytes, total_bytes } = progress;
    tx.execute(SQL, &[&job, &rest.as_secs_f64(), &failure.reason, &done_bytes, &total_bytes, &forgiven]).await?;
    Ok(())
}

async fn end(
    tx: &Tx<'_>,
    job: Uuid,
    progress: Progress,
    outcome: Outcome,
    result: Option<&Value>,
    reason: &str,
    stays: bool,
) -> Result<(), Error> {
    const END: &str = "-- jobs.settle: end
        UPDATE jobs
           SET lease_until = NULL, lease_token = NULL, end_time = now(), outcome = $2, result = $3, reason = $4,
               done_bytes = $5, total_bytes = $6
         WHERE uid = $1
        RETURNING operation_uid";
    const FORGET: &str = "-- jobs.settle: forget
        DELETE FROM jobs WHERE uid = $1";
    let Progress { done_bytes, total_bytes } = progress;
    let row = tx.query_one(END, &[&job, &outcome.as_str(), &result, &reason, &done_bytes, &total_bytes]).await?;
    match column(&row, "operation_uid")? {
        Some(operation) => {
            let failed = i32::from(outcome == Outcome::Failed);
            operations::count(tx, operation, Ended { count: 1, failed, cancelled: 0, done_bytes }).await
        }
        // A successful job is over; the row of a failed one prevents that the same job is scheduled again at once.
        None if !stays => tx.execute(FORGET, &[&job]).await.map(drop),
        None => Ok(()),
    }
}
