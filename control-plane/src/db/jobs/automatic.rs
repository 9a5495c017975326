//! Automatic syncs: which tags may be due, and when each gets its turn.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::job::{AUTOMATIC_SYNC_PRIORITY, JobKind as _, SyncPayload, SyncTag};
use entrepot_domain::template::RepositorySettings;
use entrepot_domain::{Reference, RepositoryName, Tag};
use entrepot_proto::convert::names;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::row::{column, corrupt, parsed};
use super::super::{Error, Tx, repositories};

/// Prevents two control planes from scheduling at once.
const LOCK: i64 = 0x656e_7472_6570_6f74;

/// A tag that may be due.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) incarnation: Uuid,
    pub(crate) repository: RepositoryName,
    pub(crate) tag: Tag,
    pub(crate) validate_time: DateTime<Utc>,
    pub(crate) last_pull_time: DateTime<Utc>,
    pub(crate) settings: RepositorySettings,
}

/// The position at which a look at candidates ended.
pub(crate) type Position = (DateTime<Utc>, Uuid, String);

impl Candidate {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            incarnation: column(row, "incarnation")?,
            repository: parsed(row, "name")?,
            tag: parsed(row, "tag")?,
            validate_time: column(row, "validate_time")?,
            last_pull_time: column(row, "last_pull_time")?,
            settings: repositories::settings(row)?,
        })
    }

    /// Its position among all candidates.
    pub(crate) fn position(&self) -> Position {
        (self.validate_time, self.incarnation, self.tag.as_str().to_owned())
    }
}

/// At most `limit` tags under a rule that were validated before `validated_before` and pulled since `pulled_since`,
/// those with the oldest validation first, after `after`. Tags are left out if they are already scheduled, or if their
/// repository has automatic syncs turned off.
pub(crate) async fn candidates(
    tx: &Tx<'_>,
    rule_uid: Uuid,
    (validated_before, pulled_since): (DateTime<Utc>, DateTime<Utc>),
    after: Option<&Position>,
    limit: i64,
) -> Result<Vec<Candidate>, Error> {
    const SQL: &str = "-- jobs.candidates
        SELECT t.incarnation, r.name, r.settings, t.tag, t.validate_time, i.last_pull_time
          FROM images i
          JOIN repositories r ON r.incarnation = i.incarnation
          JOIN tags t ON t.incarnation = i.incarnation AND t.digest = i.digest
         WHERE i.last_pull_time >= $3 AND NOT i.deleted
           AND r.rule_uid = $1 AND r.automatic_sync IS NOT FALSE
           AND t.validate_time <= $2
           AND ($4::timestamptz IS NULL OR (t.validate_time, t.incarnation, t.tag) > ($4, $5, $6))
           AND NOT EXISTS (SELECT FROM jobs j WHERE j.key = 'sync:' || t.incarnation::text || ':' || t.tag)
         ORDER BY t.validate_time, t.incarnation, t.tag LIMIT $7";
    let (time, incarnation, tag) = match after {
        Some((time, incarnation, tag)) => (Some(*time), Some(*incarnation), Some(tag.as_str())),
        None => (None, None, None),
    };
    let rows = tx.query(SQL, &[&rule_uid, &validated_before, &pulled_since, &time, &incarnation, &tag, &limit]).await?;
    rows.iter().map(Candidate::from_row).collect()
}

/// How long from now until each of the next turns at an upstream, from the first free one to the last before `horizon`,
/// one per `every`. `None` if another control plane is scheduling.
///
/// The turns are reserved for this transaction, which takes some of them by [`schedule`].
pub(crate) async fn pace(
    tx: &Tx<'_>,
    upstream_uid: Uuid,
    every: Duration,
    horizon: Duration,
) -> Result<Option<Vec<Duration>>, Error> {
    const LOCKED: &str = "-- jobs.pace: lock
        SELECT pg_try_advisory_xact_lock($1) AS locked";
    const SQL: &str = "-- jobs.pace
        SELECT greatest(0, extract(epoch FROM (next_time - now())))::double precision AS wait
          FROM sync_paces WHERE upstream_uid = $1";
    if !column::<bool>(&tx.query_one(LOCKED, &[&LOCK]).await?, "locked")? {
        return Ok(None);
    }
    let wait = match tx.query_opt(SQL, &[&upstream_uid]).await? {
        Some(row) => column::<f64>(&row, "wait")?,
        None => 0.0,
    };
    let first = Duration::try_from_secs_f64(wait).unwrap_or(horizon);
    let turns = (0_u32..).map(|number| first + every * number).take_while(|turn| *turn < horizon);
    Ok(Some(turns.collect()))
}

/// Schedules syncs, each at its turn, and leaves the turns after `next` for later.
pub(crate) async fn schedule(
    tx: &Tx<'_>,
    upstream_uid: Uuid,
    due: &[(Candidate, Duration)],
    next: Duration,
) -> Result<u64, Error> {
    const INSERT: &str = "-- jobs.schedule
        INSERT INTO jobs (kind, priority, upstream, subject, key, payload, run_time, turn_time)
        SELECT $1, $2::smallint, $3, subject, 'sync:' || incarnation::text || ':' || tag, payload,
               now() + make_interval(secs => wait), now() + make_interval(secs => wait) + $2::smallint * interval '1 minute'
          FROM unnest($4::text[], $5::uuid[], $6::text[], $7::jsonb[], $8::double precision[])
            AS due (subject, incarnation, tag, payload, wait)
        ON CONFLICT (key) DO NOTHING";
    const PACE: &str = "-- jobs.schedule: pace
        INSERT INTO sync_paces (upstream_uid, next_time) VALUES ($1, now() + make_interval(secs => $2))
        ON CONFLICT (upstream_uid) DO UPDATE SET next_time = excluded.next_time";
    let subject = |due: &Candidate| names::reference(&due.repository, &Reference::Tag(due.tag.clone()));
    let subjects: Vec<String> = due.iter().map(|(due, _)| subject(due)).collect();
    let incarnations: Vec<Uuid> = due.iter().map(|(due, _)| due.incarnation).collect();
    let tags: Vec<&str> = due.iter().map(|(due, _)| due.tag.as_str()).collect();
    let payloads = due.iter().map(|(due, _)| payload(due)).collect::<Result<Vec<Value>, Error>>()?;
    let waits: Vec<f64> = due.iter().map(|(_, wait)| wait.as_secs_f64()).collect();
    let (kind, upstream) = (SyncTag::NAME, upstream_uid.to_string());
    let scheduled = tx
        .execute(
            INSERT,
            &[&kind, &AUTOMATIC_SYNC_PRIORITY, &upstream, &subjects, &incarnations, &tags, &payloads, &waits],
        )
        .await?;
    tx.execute(PACE, &[&upstream_uid, &next.as_secs_f64()]).await?;
    Ok(scheduled)
}

fn payload(due: &Candidate) -> Result<Value, Error> {
    let (repository, tag) = (due.repository.clone(), due.tag.clone());
    let payload = SyncPayload { repository, tag, known_validate_time: Some(due.validate_time) };
    serde_json::to_value(payload).map_err(|error| corrupt("payload", error))
}

/// Drops automatic syncs that no node has taken for a minute. Otherwise they would all be taken at once later; their
/// tags are scheduled again.
pub(crate) async fn drop_unleased(tx: &Tx<'_>) -> Result<u64, Error> {
    const SQL: &str = "-- jobs.drop_unleased
        DELETE FROM jobs
         WHERE uid IN (SELECT uid FROM jobs
                        WHERE operation_uid IS NULL AND kind = $1 AND end_time IS NULL
                          AND run_time < now() - interval '1 minute'
                          AND (lease_until IS NULL OR lease_until <= now())
                        LIMIT 10000 FOR UPDATE SKIP LOCKED)";
    tx.execute(SQL, &[&SyncTag::NAME]).await
}

/// Forgets automatic syncs that failed some time ago, so that their tags are scheduled again.
pub(crate) async fn forget_ended(tx: &Tx<'_>) -> Result<u64, Error> {
    const SQL: &str = "-- jobs.forget_ended
        DELETE FROM jobs
         WHERE uid IN (SELECT uid FROM jobs
                        WHERE operation_uid IS NULL AND end_time < now() - interval '15 minutes'
                        LIMIT 10000 FOR UPDATE SKIP LOCKED)";
    tx.execute(SQL, &[]).await
}
