//! Works off what the control plane has to do, as far as this node knows the kinds of it.
//!
//! A node takes only what it works at. It says every other second that it does, and has the job taken from it when it is
//! silent; nothing is harmed if two nodes do the same, since what they do is what a pull does. When the node stops, it
//! gives back what it has.

mod kinds;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::report_job_request::Report;
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
use crate::jitter;
use crate::metrics::JobMetrics;
use crate::resolve::{Ahead, Resolver};
use kinds::{KNOWN, Performed};

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
        let mut request = tonic::Request::new(pb::LeaseJobsRequest {
            node_id: self.node_id.to_string(),
            limit,
            kinds: KNOWN.map(str::to_owned).to_vec(),
        });
        request.set_timeout(limits::JOB_WORD);
        let answer = timeout(limits::JOB_WORD, client.lease_jobs(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the control plane took too long")));
        let jobs = answer.inspect_err(|status| self.leave_if_away(replica, status))?.into_inner().jobs;
        self.held().extend(jobs.iter().map(|job| (job.job_id.clone(), job.lease_token.clone())));
        Ok(jobs)
    }

    /// Works at a job until it ends or is taken away.
    async fn one(&self, job: pb::Job) {
        let span = info_span!("job", job.id = %job.job_id, job.kind = %job.kind);
        let ahead = Ahead::new(self.turns.clone());
        let work = async {
            // A bug in one job ends no other.
            let performing = AssertUnwindSafe(Box::pin(self.perform(&job, &ahead))).catch_unwind();
            tokio::select! {
                ended = timeout(limits::JOB, performing) => {
                    let failed = |reason: &str| Performed::failed("unknown", kinds::failure(reason.to_owned()));
                    let late = || failed("it took longer than a job may");
                    let broken = || failed("the node has failed at it; its log says more");
                    let ended = ended.map_or_else(|_| Some(late()), |ended| ended.unwrap_or_else(|_| Some(broken())));
                    ended.map_or(End::GivenBack, End::Performed)
                }
                end = self.keep_saying(&job, &ahead) => end,
            }
        };
        let begun = Instant::now();
        let end = work.instrument(span).await;
        let (kind, outcome) = end.labels();
        self.metrics.observe(kind, outcome, begun.elapsed());
        if let Some(report) = end.into_report(&ahead) {
            self.say_at_last(&job, report).await;
        }
        self.held().remove(&job.job_id);
    }

    /// Says how a job ended, some times if need be.
    async fn say_at_last(&self, job: &pb::Job, report: Report) {
        for _ in 0..limits::JOB_END.1 {
            match self.say(job.job_id.clone(), job.lease_token.clone(), report.clone()).await {
                Ok(_) => return,
                Err(status) if is_lease_lost(&status) => {
                    self.metrics.lost_lease();
                    return warn!("what the job `{}` has come to is not taken: {}", job.job_id, status.message());
                }
                // Then another node does it again, and finds it done.
                Err(status) => debug!("the end of the job `{}` is not told yet: {status}", job.job_id),
            }
            sleep(limits::JOB_END.0).await;
        }
    }

    /// Says again and again how far a job is, until it is to be given up.
    async fn keep_saying(&self, job: &pb::Job, ahead: &Ahead) -> End {
        loop {
            sleep(jitter::about(limits::JOB_REPORT)).await;
            let report = Report::Progress(progress(ahead));
            match self.say(job.job_id.clone(), job.lease_token.clone(), report).await {
                Ok(stop) if stop => {
                    info!("gives up the job `{}`, which was cancelled", job.job_id);
                    return End::GivenBack;
                }
                Ok(_) => {}
                Err(status) if is_lease_lost(&status) => {
                    self.metrics.lost_lease();
                    info!("gives up the job `{}`, which is another node's or has ended", job.job_id);
                    return End::Lost;
                }
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
    async fn perform(&self, job: &pb::Job, ahead: &Ahead) -> Option<Performed> {
        let snapshot = self.control.snapshot().ok()?;
        kinds::perform(job, &self.resolver, &snapshot, ahead).await
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a node does not work at a job any more.
enum End {
    Performed(Performed),
    /// Another node should do it.
    GivenBack,
    /// It is not this node's any more.
    Lost,
}

impl End {
    /// What it counts as: which kind, and how it ended.
    fn labels(&self) -> (&'static str, &'static str) {
        match self {
            Self::Performed(performed) => (performed.kind, performed.outcome),
            Self::GivenBack => ("unknown", "given_back"),
            Self::Lost => ("unknown", "lost"),
        }
    }

    /// What there is to say of it.
    fn into_report(self, ahead: &Ahead) -> Option<Report> {
        match self {
            Self::Performed(Performed { ended, .. }) => {
                Some(Report::Result(pb::JobResult { ended: Some(ended), progress: Some(progress(ahead)) }))
            }
            Self::GivenBack => Some(Report::GivenBack(pb::JobGivenBack {})),
            Self::Lost => None,
        }
    }
}

/// Whether a report was refused since the job is not this node's any more.
fn is_lease_lost(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition
}

fn progress(ahead: &Ahead) -> pb::JobProgress {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let (done, total) = ahead.bytes();
    pb::JobProgress { done_bytes: signed(done), total_bytes: signed(total) }
}
