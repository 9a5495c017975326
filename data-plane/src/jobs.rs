//! Works off what the control plane has to do: syncs, and images that are fetched ahead.
//!
//! A node takes only what it works at. It says every other second that it does, and has the job taken from it when it is
//! silent; nothing is harmed if two nodes do the same, since what they do is what a pull does. When the node stops, it
//! gives back what it has.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Priority, Reference, RepositoryName, Tag};
use entrepot_proto::convert::{duration, time};
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::job::Kind;
use entrepot_proto::node::v1::report_job_request::Report;
use entrepot_proto::v1::ItemOutcome;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::config::limits;
use crate::control::{Control, Line, Replica};
use crate::error::{Asked, PullError};
use crate::jitter;
use crate::metrics::JobMetrics;
use crate::resolve::{Ahead, Resolver, Synced};

/// The jobs of this node.
pub(crate) struct Jobs {
    node_id: Arc<str>,
    control: Control,
    resolver: Resolver,
    line: Line,
    /// Leave to fetch blobs ahead.
    turns: Arc<Semaphore>,
    metrics: JobMetrics,
    /// What this node has, by job id with its lease token.
    held: Mutex<HashMap<String, String>>,
}

impl Jobs {
    /// The jobs of a node that may have so many fills at once: a quarter of them is for jobs, since pulls are first.
    pub(crate) fn new(
        node_id: Arc<str>,
        control: Control,
        resolver: Resolver,
        line: Line,
        fills: usize,
        metrics: JobMetrics,
    ) -> Self {
        let turns = Arc::new(Semaphore::new((fills / 4).max(1)));
        Self { node_id, control, resolver, line, turns, metrics, held: Mutex::default() }
    }

    /// Takes jobs and works at them until the node stops; then gives back what it has.
    pub(crate) async fn work(self, stopping: CancellationToken) {
        stopping.run_until_cancelled(self.take_and_work()).await;
        let held = std::mem::take(&mut *self.held());
        let returns = held.into_iter().map(|(job_id, lease_token)| {
            let report = Report::GivenBack(pb::JobGivenBack {});
            async { drop(self.say(job_id, lease_token, report).await) }
        });
        join_all(returns).await;
    }

    async fn take_and_work(&self) {
        let mut working = FuturesUnordered::new();
        let (mut look, mut is_full) = (Instant::now() + jitter::about(limits::JOB_LOOK.0), false);
        loop {
            tokio::select! {
                () = sleep_until(look), if working.len() < limits::JOBS => {
                    let room = limits::JOBS - working.len();
                    let taking = self.take(room);
                    tokio::pin!(taking);
                    let taken = loop {
                        tokio::select! {
                            taken = &mut taking => break taken,
                            // Those that run go on meanwhile.
                            Some(()) = working.next() => {}
                        }
                    };
                    let pause = match taken {
                        Ok(jobs) => {
                            is_full = jobs.len() == room;
                            working.extend(jobs.into_iter().map(|job| self.one(job)));
                            limits::JOB_LOOK.0
                        }
                        Err(status) => {
                            debug!("no jobs from the control plane: {status}");
                            is_full = false;
                            limits::JOB_LOOK.1
                        }
                    };
                    look = Instant::now() + jitter::about(pause);
                }
                // There may be more where there was a full hand.
                Some(()) = working.next() => if is_full {
                    look = look.min(Instant::now() + limits::JOB_LOOK.0 / 10);
                },
            }
        }
    }

    /// Takes at most `limit` jobs.
    async fn take(&self, limit: usize) -> Result<Vec<pb::Job>, Status> {
        if self.control.version().is_none() {
            return Err(Status::unavailable("this node has no configuration yet"));
        }
        let Some((replica, mut client)) = self.line.client() else {
            return Err(Status::unavailable("there is no control plane"));
        };
        let limit = i32::try_from(limit).unwrap_or(1);
        let mut request = tonic::Request::new(pb::LeaseJobsRequest { node_id: self.node_id.to_string(), limit });
        request.set_timeout(limits::JOB_WORD);
        let answer = timeout(limits::JOB_WORD, client.lease_jobs(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the control plane took too long")));
        let jobs = answer.inspect_err(|status| self.leave_if_away(replica, status))?.into_inner().jobs;
        self.held().extend(jobs.iter().map(|job| (job.job_id.clone(), job.lease_token.clone())));
        Ok(jobs)
    }

    /// Works at a job until it ends or is taken away.
    async fn one(&self, job: pb::Job) {
        let span = info_span!("job", job.id = %job.job_id);
        let ahead = Ahead::new(self.turns.clone());
        let work = async {
            // A bug in one job ends no other.
            let performing = AssertUnwindSafe(Box::pin(self.perform(&job, &ahead))).catch_unwind();
            tokio::select! {
                result = timeout(limits::JOB, performing) => {
                    let late = || failed("it took longer than a job may".to_owned());
                    let broken = || failed("the node has failed at it; its log says more".to_owned());
                    let result = result.map_or_else(|_| Some(late()), |ended| ended.unwrap_or_else(|_| Some(broken())));
                    result.map_or(Report::GivenBack(pb::JobGivenBack {}), |result| {
                        Report::Result(pb::JobResult { progress: Some(progress(&ahead)), ..result })
                    })
                }
                () = self.keep_saying(&job, &ahead) => {
                    info!("gives up the job `{}`, which was cancelled or is another node's", job.job_id);
                    Report::GivenBack(pb::JobGivenBack {})
                }
            }
        };
        let begun = Instant::now();
        let end = work.instrument(span).await;
        self.metrics.observe(kind_of(&job), outcome_of(&end), begun.elapsed());
        for _ in 0..limits::JOB_END.1 {
            match self.say(job.job_id.clone(), job.lease_token.clone(), end.clone()).await {
                Ok(_) => break,
                // Then another node does it again, and finds it done.
                Err(status) => debug!("the end of the job `{}` is not told yet: {status}", job.job_id),
            }
            sleep(limits::JOB_END.0).await;
        }
        self.held().remove(&job.job_id);
    }

    /// Says again and again how far a job is, until it is to be given up.
    async fn keep_saying(&self, job: &pb::Job, ahead: &Ahead) {
        loop {
            sleep(jitter::about(limits::JOB_REPORT)).await;
            let report = Report::Progress(progress(ahead));
            match self.say(job.job_id.clone(), job.lease_token.clone(), report).await {
                Ok(stop) if stop => return,
                Ok(_) => {}
                // Whoever else gets it does what we do.
                Err(status) => debug!("the control plane does not hear of the job `{}`: {status}", job.job_id),
            }
        }
    }

    /// Says something of a job; whether it is to be given up.
    async fn say(&self, job_id: String, lease_token: String, report: Report) -> Result<bool, Status> {
        let Some((replica, mut client)) = self.line.client() else {
            return Err(Status::unavailable("there is no control plane"));
        };
        let node_id = self.node_id.to_string();
        let mut request =
            tonic::Request::new(pb::ReportJobRequest { node_id, job_id, lease_token, report: Some(report) });
        request.set_timeout(limits::JOB_WORD);
        let answer = timeout(limits::JOB_WORD, client.report_job(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the control plane took too long")));
        Ok(answer.inspect_err(|status| self.leave_if_away(replica, status))?.into_inner().stop)
    }

    /// Leaves a control plane that is away for the next. One that is older, and has no jobs, is good for all else.
    fn leave_if_away(&self, replica: Replica, status: &Status) {
        if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
            self.line.move_on(replica);
        }
    }

    /// Does a job; `None` if another node should.
    async fn perform(&self, job: &pb::Job, ahead: &Ahead) -> Option<pb::JobResult> {
        let snapshot = self.control.snapshot().ok()?;
        let work = match Work::read(job.kind.as_ref()?) {
            Ok(work) => work,
            Err(reason) => return Some(failed(reason)),
        };
        let synced = match &work {
            Work::Sync { repository, tag, known } => {
                let location = snapshot.locate(repository).with(Priority::Sync);
                self.resolver.sync(location, tag, *known, ahead).await
            }
            Work::Warm { repository, reference, platforms } => {
                let location = snapshot.locate(repository).with(Priority::Warm);
                self.resolver.warm(location, reference, platforms, ahead).await
            }
        };
        Some(synced.map_or_else(
            |error| {
                warn!(error = %error, "a job failed: {error}");
                result_of_failure(&error)
            },
            result,
        ))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done.
enum Work {
    Sync { repository: RepositoryName, tag: Tag, known: Option<DateTime<Utc>> },
    Warm { repository: RepositoryName, reference: Reference, platforms: Vec<String> },
}

impl Work {
    /// Reads what a job is about.
    fn read(kind: &Kind) -> Result<Self, String> {
        let malformed = |error: &dyn std::fmt::Display| format!("the job is malformed: {error}");
        Ok(match kind {
            Kind::SyncTag(job) => Self::Sync {
                repository: job.repository.parse().map_err(|error| malformed(&error))?,
                tag: job.tag.parse().map_err(|error| malformed(&error))?,
                known: job.known_validate_time.as_ref().and_then(time),
            },
            Kind::WarmImage(job) => Self::Warm {
                repository: job.repository.parse().map_err(|error| malformed(&error))?,
                reference: job.reference.parse().map_err(|error| malformed(&error))?,
                platforms: job.platforms.clone(),
            },
        })
    }
}

/// What kind of job it is, for metrics.
fn kind_of(job: &pb::Job) -> &'static str {
    match &job.kind {
        Some(Kind::SyncTag(job)) if job.known_validate_time.is_some() => "automatic_sync",
        Some(Kind::SyncTag(_)) => "sync",
        Some(Kind::WarmImage(_)) => "warm",
        None => "unknown",
    }
}

/// How it ended, for metrics.
fn outcome_of(report: &Report) -> &'static str {
    let Report::Result(result) = report else { return "given_back" };
    match result.outcome() {
        ItemOutcome::Failed if result.over_budget => "over_budget",
        ItemOutcome::Unchanged => "unchanged",
        ItemOutcome::Moved => "moved",
        ItemOutcome::Created => "created",
        ItemOutcome::Deleted => "deleted",
        ItemOutcome::Failed | ItemOutcome::Cancelled | ItemOutcome::Unspecified => "failed",
    }
}

fn progress(ahead: &Ahead) -> pb::JobProgress {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let (done, total) = ahead.bytes();
    pb::JobProgress { done_bytes: signed(done), total_bytes: signed(total) }
}

/// How a job ended well.
fn result(synced: Synced) -> pb::JobResult {
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
    let (outcome, from, to, reason) = match synced {
        Synced::Unchanged(digest) => (ItemOutcome::Unchanged, Some(digest.clone()), Some(digest), ""),
        Synced::Moved { from: None, to } => (ItemOutcome::Created, None, Some(to), ""),
        Synced::Moved { from, to } => (ItemOutcome::Moved, from, Some(to), ""),
        Synced::Deleted { from, is_dropped: true } => {
            (ItemOutcome::Deleted, from, None, "the tag was dropped, as the rule says")
        }
        Synced::Deleted { from, is_dropped: false } => {
            (ItemOutcome::Deleted, from.clone(), from, "what is cached goes on being served, as the rule says")
        }
    };
    pb::JobResult {
        outcome: outcome.into(),
        from_digest: text(from),
        to_digest: text(to),
        reason: reason.to_owned(),
        ..Default::default()
    }
}

fn failed(reason: String) -> pb::JobResult {
    pb::JobResult { outcome: ItemOutcome::Failed.into(), reason, ..Default::default() }
}

/// What is not here any more, so that there is nothing to ask for.
fn gone(asked: Asked) -> &'static str {
    match asked {
        Asked::Repository => "there is no such repository any more",
        Asked::Manifest | Asked::Blob => "the tag is not cached any more under the rule that covers it now",
    }
}

/// How a job failed, and whether that may pass.
fn result_of_failure(error: &PullError) -> pb::JobResult {
    let (may_retry, retry_after) = match error {
        PullError::UpstreamThrottled { retry_after, .. } => (true, *retry_after),
        PullError::OverBudget { retry_after, .. } => (true, Some(*retry_after)),
        // Another node may be of a later release.
        PullError::LeftOut { .. } => (true, None),
        PullError::UpstreamAway { .. }
        | PullError::StoreAway
        | PullError::NoSnapshot
        | PullError::Busy
        | PullError::GaveUp
        | PullError::Internal => (true, None),
        PullError::TooStale { cause, .. } => (!cause.is_refusal(), None),
        PullError::Route(_)
        | PullError::Unauthenticated(_)
        | PullError::InsufficientScope
        | PullError::Denied { .. }
        | PullError::TooManyLogins { .. }
        | PullError::NoRule
        | PullError::NotFound { .. }
        | PullError::UpstreamDenied { .. }
        | PullError::UpstreamRefused { .. }
        | PullError::BadContent { .. } => (false, None),
    };
    let reason =
        if let PullError::NotFound { asked, rule: None } = error { gone(*asked).to_owned() } else { error.to_string() };
    let over_budget = matches!(error, PullError::OverBudget { .. });
    pb::JobResult { may_retry, retry_after: retry_after.map(duration), over_budget, ..failed(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_told() {
        assert!(result_of_failure(&PullError::Busy).may_retry);
        let after = Some(std::time::Duration::from_secs(7));
        let (rule, upstream) = ("hub".parse().unwrap(), "hub".parse().unwrap());
        let throttled = PullError::UpstreamThrottled { rule, upstream, retry_after: after };
        assert_eq!(result_of_failure(&throttled).retry_after, after.map(duration));
        let none = result_of_failure(&PullError::NoRule);
        assert!(!none.may_retry && none.reason.contains("no rule covers"), "{}", none.reason);
    }

    #[test]
    fn a_tag_that_was_not_here_is_created_and_one_that_is_gone_stays_or_not() {
        let digest = Digest::sha256(b"x");
        let created = result(Synced::Moved { from: None, to: digest.clone() });
        assert_eq!(
            (created.outcome(), created.to_digest.as_str()),
            (ItemOutcome::Created, digest.to_string().as_str())
        );
        let kept = result(Synced::Deleted { from: Some(digest.clone()), is_dropped: false });
        assert_eq!((kept.outcome(), kept.to_digest), (ItemOutcome::Deleted, digest.to_string()));
        let dropped = result(Synced::Deleted { from: Some(digest), is_dropped: true });
        assert_eq!(dropped.to_digest, "");
    }
}
