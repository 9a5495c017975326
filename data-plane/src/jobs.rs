//! Works on the control plane's jobs, as far as this node knows their kinds.
//!
//! A node takes only as many jobs as it works on. It reports each of them every other second, and loses a job when it
//! is silent. It does no harm if two nodes do the same job, since a job does what a pull does. When the node stops, it
//! gives back its jobs.

mod kinds;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::report_job_request::Report;
use entrepot_runtime::retry::jittered;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::config::limits;
use crate::control::{Control, ControlChannels, Replica};
use crate::metrics::JobMetrics;
use crate::resolve::{FetchProgress, Resolver};
use kinds::{KNOWN, Performed};

/// The jobs of this node.
pub(crate) struct Jobs {
    node_id: Arc<str>,
    control: Control,
    resolver: Resolver,
    channels: ControlChannels,
    /// The permits for fetching blobs in advance.
    turns: Arc<Semaphore>,
    metrics: JobMetrics,
    /// The current jobs: the lease token by job id.
    held: Mutex<HashMap<String, String>>,
}

impl Jobs {
    /// The jobs of a node that may run this many fills at once. A quarter of the fills is for jobs, since pulls come
    /// first.
    pub(crate) fn new(
        node_id: Arc<str>,
        control: Control,
        resolver: Resolver,
        channels: ControlChannels,
        fills: usize,
        metrics: JobMetrics,
    ) -> Self {
        let turns = Arc::new(Semaphore::new((fills / 4).max(1)));
        Self { node_id, control, resolver, channels, turns, metrics, held: Mutex::default() }
    }

    /// Takes jobs and works on them until the node stops; then gives back the rest.
    pub(crate) async fn work(self, stopping: CancellationToken) {
        self.take_and_work(&stopping).await;
        let held = std::mem::take(&mut *self.lock_held());
        let returns = held.into_iter().map(|(job_id, lease_token)| {
            let report = Report::GivenBack(pb::JobGivenBack {});
            async { drop(self.say(job_id, lease_token, report).await) }
        });
        join_all(returns).await;
    }

    /// Takes jobs and works on them until the node stops. It then still waits for an answer that is under way: the jobs
    /// in it belong to this node, and no other node would get them before their leases end.
    async fn take_and_work(&self, stopping: &CancellationToken) {
        let mut working = FuturesUnordered::new();
        let (mut look, mut is_full) = (Instant::now() + jittered(limits::JOB_LOOK.0), false);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep_until(look), if working.len() < limits::JOBS => {
                    let room = limits::JOBS - working.len();
                    let taking = self.take(room);
                    tokio::pin!(taking);
                    let taken = loop {
                        tokio::select! {
                            taken = &mut taking => break taken,
                            // Running jobs continue meanwhile.
                            Some(()) = working.next() => {}
                        }
                    };
                    if stopping.is_cancelled() {
                        return;
                    }
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
                    look = Instant::now() + jittered(pause);
                }
                // If as many jobs came as were asked for, there may be more.
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
        let Some((replica, mut client)) = self.channels.client() else {
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
        self.lock_held().extend(jobs.iter().map(|job| (job.job_id.clone(), job.lease_token.clone())));
        Ok(jobs)
    }

    /// Works on a job until it ends or is taken away.
    async fn one(&self, job: pb::Job) {
        let span = info_span!("job", job.id = %job.job_id, job.kind = %job.kind);
        let progress = FetchProgress::new(self.turns.clone());
        let work = async {
            // A bug in one job must not end others.
            let performing = AssertUnwindSafe(Box::pin(self.perform(&job, &progress))).catch_unwind();
            tokio::select! {
                ended = timeout(limits::JOB, performing) => {
                    let failed = |reason: &str| Performed::failed("unknown", kinds::failure(reason.to_owned()));
                    let late = || failed("it took longer than a job may");
                    let broken = || failed("the node has failed at it; its log says more");
                    let ended = ended.map_or_else(|_| Some(late()), |ended| ended.unwrap_or_else(|_| Some(broken())));
                    ended.map_or(End::GivenBack, End::Performed)
                }
                end = self.keep_saying(&job, &progress) => end,
            }
        };
        let begun = Instant::now();
        let end = work.instrument(span).await;
        let (kind, outcome) = end.labels();
        self.metrics.observe(kind, outcome, begun.elapsed());
        if let Some(report) = end.into_report(&progress) {
            self.say_at_last(&job, report).await;
        }
        self.lock_held().remove(&job.job_id);
    }

    /// Reports how a job ended, several times if needed.
    async fn say_at_last(&self, job: &pb::Job, report: Report) {
        for _ in 0..limits::JOB_END.1 {
            match self.say(job.job_id.clone(), job.lease_token.clone(), report.clone()).await {
                Ok(_) => return,
                Err(status) if is_lease_lost(&status) => {
                    self.metrics.lost_lease();
                    return warn!("the result of the job `{}` was refused: {}", job.job_id, status.message());
                }
                // Another node will then do it again, and find it done.
                Err(status) => debug!("the end of the job `{}` is not reported yet: {status}", job.job_id),
            }
            sleep(limits::JOB_END.0).await;
        }
    }

    /// Reports a job's progress again and again, until the job must be given up.
    async fn keep_saying(&self, job: &pb::Job, progress: &FetchProgress) -> End {
        loop {
            sleep(jittered(limits::JOB_REPORT)).await;
            let report = Report::Progress(progress_to_wire(progress));
            match self.say(job.job_id.clone(), job.lease_token.clone(), report).await {
                Ok(stop) if stop => {
                    info!("giving up the job `{}`, which was cancelled", job.job_id);
                    return End::GivenBack;
                }
                Ok(_) => {}
                Err(status) if is_lease_lost(&status) => {
                    self.metrics.lost_lease();
                    info!("giving up the job `{}`, which belongs to another node or has ended", job.job_id);
                    return End::Lost;
                }
                // Any other node that gets the job does the same as this one.
                Err(status) => debug!("the job `{}` could not be reported to the control plane: {status}", job.job_id),
            }
        }
    }

    /// Sends a report on a job. Returns whether the job must be given up.
    async fn say(&self, job_id: String, lease_token: String, report: Report) -> Result<bool, Status> {
        let Some((replica, mut client)) = self.channels.client() else {
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

    /// Switches away from a control plane that is away. An older one without jobs is still good for everything else.
    fn leave_if_away(&self, replica: Replica, status: &Status) {
        if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
            self.channels.fail_over(replica);
        }
    }

    /// Does a job; `None` if another node should do it.
    async fn perform(&self, job: &pb::Job, progress: &FetchProgress) -> Option<Performed> {
        self.control.suspension.ended().await;
        let snapshot = self.control.snapshot().ok()?;
        kinds::perform(job, &self.resolver, &snapshot, progress).await
    }

    fn lock_held(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.held.lock()
    }
}

/// Why a node stops working on a job.
enum End {
    Performed(Performed),
    /// Another node should do it.
    GivenBack,
    /// It no longer belongs to this node.
    Lost,
}

impl End {
    /// Its labels in metrics: the kind, and how it ended.
    fn labels(&self) -> (&'static str, &'static str) {
        match self {
            Self::Performed(performed) => (performed.kind, performed.outcome),
            Self::GivenBack => ("unknown", "given_back"),
            Self::Lost => ("unknown", "lost"),
        }
    }

    /// The final report.
    fn into_report(self, progress: &FetchProgress) -> Option<Report> {
        match self {
            Self::Performed(Performed { ended, .. }) => {
                Some(Report::Result(pb::JobResult { ended: Some(ended), progress: Some(progress_to_wire(progress)) }))
            }
            Self::GivenBack => Some(Report::GivenBack(pb::JobGivenBack {})),
            Self::Lost => None,
        }
    }
}

/// Whether a report was refused because the job no longer belongs to this node.
fn is_lease_lost(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition
}

fn progress_to_wire(progress: &FetchProgress) -> pb::JobProgress {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let (done, total) = progress.bytes();
    pb::JobProgress { done_bytes: signed(done), total_bytes: signed(total) }
}
