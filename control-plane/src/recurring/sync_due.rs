//! Schedules automatic syncs, and ends jobs that no node will end.
//!
//! The index decides which tags are due, by the times of their last validation and last pull. The upstream decides how
//! fast they are scheduled: turns at an upstream follow each other, whichever control plane schedules, so 10,000 tags
//! that are due at the same moment are asked for one by one. A tag that gets no turn is still due in the next pass.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use entrepot_domain::freshness::Policy;
use entrepot_domain::sync::{ATTEMPTS, due_time, earliest_due, longest_window, swept_window};
use entrepot_runtime::chain;
use tracing::{debug, warn};
use uuid::Uuid;

use super::{Job, Progress};
use crate::db::jobs::{self, Candidate, Position};
use crate::db::rules::{self, Rule};
use crate::db::{Connection, Tx};
use crate::error::ApiError;
use crate::plane::Plane;

/// How far ahead turns are assigned.
const HORIZON: Duration = Duration::from_secs(10);
/// The time between two turns at an upstream: 10 per second, so 10,000 tags take 17 minutes.
const TURN: Duration = Duration::from_millis(100);
/// How many candidates are read at a time.
const BATCH: i64 = 500;
/// How many batches are read for one rule in a pass.
const BATCHES: usize = 40;

/// How long a rule without due tags is left alone: at most this, and at most this fraction of the time until a tag may
/// be due.
const QUIET: (Duration, u32) = (Duration::from_secs(30), 12);

/// What is known about rules, by uid and revision.
#[derive(Default)]
pub(super) struct SyncDue {
    /// Until when they need not be checked.
    quiet: HashMap<(Uuid, i64), DateTime<Utc>>,
    /// Where the next pass continues, because the last one did not reach the end.
    positions: HashMap<(Uuid, i64), Position>,
}

impl Job for SyncDue {
    const NAME: &'static str = "sync due";
    const EVERY: Duration = Duration::from_secs(4);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let now = plane.clock.now();
        let mut connection = plane.db.connect().await?;
        // Each of these locks operations; in one transaction, two control planes could block each other.
        let tx = connection.begin("end_cancelled_jobs").await?;
        jobs::end_cancelled(&tx, None).await?;
        tx.commit().await?;
        let tx = connection.begin("end_lost_jobs").await?;
        jobs::end_lost(&tx, i32::try_from(ATTEMPTS).unwrap_or(i32::MAX)).await?;
        jobs::drop_unleased(&tx).await?;
        jobs::forget_ended(&tx).await?;
        let rules = rules::list(&tx, "", i64::MAX).await?;
        tx.commit().await?;
        self.quiet.retain(|_, until| *until > now);
        self.positions.retain(|key, _| rules.iter().any(|rule| (rule.rule.uid, rule.revision) == *key));
        for rule in &rules {
            match self.schedule_rule(&mut connection, rule, now).await {
                // This would be the same for all rules.
                Err(error @ ApiError::Away { .. }) => return Err(error),
                // A problem with one rule's tags must not stop the syncs of others.
                Err(error) => {
                    warn!(rule.name = %rule.rule.id, error = %chain(&error), "no automatic syncs under rule `{}`", rule.rule.id);
                }
                Ok(()) => {}
            }
        }
        Ok(Progress::Done)
    }
}

impl SyncDue {
    async fn schedule_rule(
        &mut self,
        connection: &mut Connection,
        rule: &Rule,
        now: DateTime<Utc>,
    ) -> Result<(), ApiError> {
        let key = (rule.rule.uid, rule.revision);
        let earliest = earliest_due(&rule.rule.freshness).filter(|_| !self.quiet.contains_key(&key));
        let Some(earliest) = earliest else { return Ok(()) };
        let tx = connection.begin("schedule_syncs").await?;
        let (scheduled, next) = schedule(&tx, rule, earliest, self.positions.get(&key), now).await?;
        tx.commit().await?;
        match next {
            Next::Same => {}
            Next::Behind(position) => drop(self.positions.insert(key, position)),
            Next::Begin => {
                self.positions.remove(&key);
                self.quiet.insert(key, now + QUIET.0.min(earliest / QUIET.1));
            }
        }
        if scheduled > 0 {
            debug!(rule.name = %rule.rule.id, "scheduled {scheduled} automatic syncs under rule `{}`", rule.rule.id);
        }
        Ok(())
    }
}

/// Where the next look at a rule's tags begins.
enum Next {
    /// At the same place, since not all due tags have got a turn.
    Same,
    /// After the tags that were just checked.
    Behind(Position),
    /// At the first tag, after a while: nothing more is due.
    Begin,
}

/// Assigns the free turns at a rule's upstream to due tags after `after`. Returns how many have got one.
async fn schedule(
    tx: &Tx<'_>,
    rule: &Rule,
    earliest: Duration,
    after: Option<&Position>,
    now: DateTime<Utc>,
) -> Result<(u64, Next), ApiError> {
    let (policy, upstream) = (&rule.rule.freshness, rule.rule.upstream_uid);
    let Some(turns) = jobs::pace(tx, upstream, TURN, HORIZON).await? else { return Ok((0, Next::Same)) };
    if turns.is_empty() {
        return Ok((0, Next::Same));
    }
    let times = (before(now, earliest), before(now, longest_window(policy)));
    let (mut due, mut after, mut is_last) = (Vec::new(), after.cloned(), false);
    for _ in 0..BATCHES {
        if is_last || due.len() > turns.len() {
            break;
        }
        let looked = jobs::candidates(tx, rule.rule.uid, times, after.as_ref(), BATCH).await?;
        is_last = i64::try_from(looked.len()).unwrap_or(BATCH) < BATCH;
        after = looked.last().map(Candidate::position).or(after);
        due.extend(looked.into_iter().filter(|candidate| is_due(policy, candidate, now)));
    }
    let next = match after {
        _ if due.len() > turns.len() => Next::Same,
        Some(last) if !is_last => Next::Behind(last),
        Some(_) | None => Next::Begin,
    };
    let due: Vec<(Candidate, Duration)> = due.into_iter().zip(turns).collect();
    let Some((_, last)) = due.last() else { return Ok((0, next)) };
    let behind = *last + TURN;
    Ok((jobs::schedule(tx, upstream, &due, behind).await?, next))
}

/// Whether a tag should be synced now: it is in use, and will be stale soon.
fn is_due(policy: &Policy, candidate: &Candidate, now: DateTime<Utc>) -> bool {
    let Candidate { incarnation, tag, validate_time, last_pull_time, settings, .. } = candidate;
    // The upstream is never asked about it again, so it would be due for ever.
    if settings.tag_mutability.freezes(tag) {
        return false;
    }
    let due = due_time(policy, *incarnation, tag, Some(*validate_time));
    let is_used = swept_window(policy, tag).is_some_and(|window| *last_pull_time >= before(now, window));
    is_used && due.is_some_and(|due| due <= now)
}

/// The time `length` before `now`.
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
