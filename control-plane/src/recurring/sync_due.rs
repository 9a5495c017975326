//! Schedules automatic syncs, and ends jobs that no node will end.
//!
//! Which tags are due is decided by the index: what the upstream last confirmed when, and what was last pulled when. How
//! fast they are scheduled is decided by the upstream: one turn after the other, whoever schedules, so that 10,000 tags
//! that are due at one moment are asked for one by one. A tag that misses its turn is as due in the next pass.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use entrepot_domain::freshness::Policy;
use entrepot_domain::sync::{ATTEMPTS, due_time, earliest_due, longest_window, swept_window};
use tracing::debug;
use uuid::Uuid;

use super::{Job, Progress};
use crate::db::Tx;
use crate::db::jobs::{self, Candidate};
use crate::db::rules::{self, Rule};
use crate::error::ApiError;
use crate::plane::Plane;

/// How far ahead turns are given.
const HORIZON: Duration = Duration::from_secs(10);
/// From one turn at an upstream to the next: 10 a second, so that 10,000 tags take 17 minutes.
const TURN: Duration = Duration::from_millis(100);
/// How many candidates are looked at together.
const BATCH: i64 = 500;
/// How many are looked at for one rule in a pass.
const BATCHES: usize = 40;

/// How long a rule without tags that are due is left alone, at most; and which part of the time until one may be due.
const QUIET: (Duration, u32) = (Duration::from_secs(30), 12);

/// Which rules need not be looked at for a while.
#[derive(Default)]
pub(super) struct SyncDue {
    /// Until when, by uid and revision.
    quiet: HashMap<(Uuid, i64), DateTime<Utc>>,
}

impl Job for SyncDue {
    const NAME: &'static str = "sync due";
    const EVERY: Duration = Duration::from_secs(4);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let now = plane.clock.now();
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("end_jobs").await?;
        jobs::end_cancelled(&tx, None).await?;
        jobs::end_lost(&tx, i32::try_from(ATTEMPTS).unwrap_or(i32::MAX)).await?;
        jobs::drop_unleased(&tx).await?;
        jobs::forget_ended(&tx).await?;
        let rules = rules::list(&tx, "", i64::MAX).await?;
        tx.commit().await?;
        self.quiet.retain(|_, until| *until > now);
        for rule in &rules {
            let key = (rule.rule.uid, rule.revision);
            let policy = &rule.rule.freshness;
            let Some(earliest) = earliest_due(policy).filter(|_| !self.quiet.contains_key(&key)) else { continue };
            let tx = connection.begin("schedule_syncs").await?;
            let (scheduled, is_all) = schedule(&tx, rule, earliest, now).await?;
            tx.commit().await?;
            if is_all {
                self.quiet.insert(key, now + QUIET.0.min(earliest / QUIET.1));
            }
            if scheduled > 0 {
                debug!(rule.name = %rule.rule.id, "scheduled {scheduled} automatic syncs under rule `{}`", rule.rule.id);
            }
        }
        Ok(Progress::Done)
    }
}

/// Gives the turns that are free at a rule's upstream to tags that are due. Says how many have got one, and whether those
/// were all.
async fn schedule(tx: &Tx<'_>, rule: &Rule, earliest: Duration, now: DateTime<Utc>) -> Result<(u64, bool), ApiError> {
    let (policy, upstream) = (&rule.rule.freshness, rule.rule.upstream_uid);
    let Some(turns) = jobs::pace(tx, upstream, TURN, HORIZON).await? else { return Ok((0, false)) };
    let times = (before(now, earliest), before(now, longest_window(policy)));
    let (mut due, mut after, mut is_all) = (Vec::new(), None, false);
    for _ in 0..BATCHES {
        if due.len() >= turns.len() {
            break;
        }
        let looked = jobs::candidates(tx, rule.rule.uid, times, after.as_ref(), BATCH).await?;
        let is_last = i64::try_from(looked.len()).unwrap_or(BATCH) < BATCH;
        after = looked.last().map(Candidate::position);
        due.extend(looked.into_iter().filter(|candidate| is_due(policy, candidate, now)));
        if is_last {
            is_all = due.len() <= turns.len();
            break;
        }
    }
    let due: Vec<(Candidate, Duration)> = due.into_iter().zip(turns).collect();
    let Some((_, last)) = due.last() else { return Ok((0, is_all)) };
    let next = *last + TURN;
    Ok((jobs::schedule(tx, upstream, &due, next).await?, is_all))
}

/// Whether a tag is to be synced now: it is in use, and will be stale before long.
fn is_due(policy: &Policy, candidate: &Candidate, now: DateTime<Utc>) -> bool {
    let Candidate { incarnation, tag, validate_time, last_pull_time, settings, .. } = candidate;
    // The upstream is never asked for it again, so that it would be due for ever.
    if settings.tag_mutability.freezes(tag) {
        return false;
    }
    let due = due_time(policy, *incarnation, tag, Some(*validate_time));
    let is_used = swept_window(policy, tag).is_some_and(|window| *last_pull_time >= before(now, window));
    is_used && due.is_some_and(|due| due <= now)
}

/// The moment that is `length` before `now`.
fn before(now: DateTime<Utc>, length: Duration) -> DateTime<Utc> {
    let length = TimeDelta::from_std(length).unwrap_or(TimeDelta::MAX);
    now.checked_sub_signed(length).unwrap_or(DateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use entrepot_domain::template::{RepositorySettings, TagMutability};

    use super::*;

    #[test]
    fn who_is_in_use_and_will_be_stale_is_due() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let ago = |hours| now - TimeDelta::hours(hours);
        let policy = Policy::default();
        let is_due_if = |mutability: &TagMutability, validated, pulled| {
            let candidate = Candidate {
                incarnation: Uuid::nil(),
                repository: "demo/app".parse().unwrap(),
                tag: "v1".parse().unwrap(),
                validate_time: ago(validated),
                last_pull_time: ago(pulled),
                settings: RepositorySettings { tag_mutability: mutability.clone(), ..Default::default() },
            };
            super::is_due(&policy, &candidate, now)
        };
        let is_due = |validated, pulled| is_due_if(&TagMutability::Mutable, validated, pulled);
        assert!(!is_due(14, 1), "60 % of the window have not passed");
        assert!(is_due(22, 1), "90 % have");
        assert!(is_due(30, 23), "it is stale, and in use");
        assert!(!is_due(30, 25), "nobody has pulled it for a window");
        assert!(!is_due_if(&TagMutability::Immutable, 30, 23), "it never moves, as its template said");
    }
}
