//! Leasing jobs to nodes, and the nodes' reports on them.

use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_domain::job::Synced;
use entrepot_domain::sync::ATTEMPTS;
use entrepot_proto::convert::{Violations, duration, length};
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::job_result::Ended;
use entrepot_proto::node::v1::report_job_request::Report;
use serde::Deserialize as _;
use serde_json::Value;
use tracing::debug;
use uuid::Uuid;

use crate::db::jobs::{self, Failure, LeaseError, LeasePlea, Leased, Progress, Renewal, Settled, Ticket};
use crate::error::ApiError;
use crate::plane::Plane;

/// How long a lease is. Nodes report every second or two.
const LEASE: Duration = Duration::from_secs(10);
/// How many jobs a node may lease in one call.
const LIMIT: i32 = 100;
/// How many kinds a node may know, and the longest name of a kind.
const KINDS: (usize, usize) = (100, 63);
/// How much of a reason is kept.
const REASON_CHARS: usize = 500;
/// The largest result.
const RESULT_BYTES: usize = 64 * 1024;
/// How often a job is tried.
const TRIES: i32 = ATTEMPTS as i32;

pub(super) async fn lease(
    plane: &Plane,
    node: &ResourceId,
    request: &pb::LeaseJobsRequest,
) -> Result<pb::LeaseJobsResponse, ApiError> {
    let mut violations = Violations::default();
    if !(1..=LIMIT).contains(&request.limit) {
        violations.add("limit", format!("must be 1 to {LIMIT}"));
    }
    if request.kinds.len() > KINDS.0 || request.kinds.iter().any(|kind| kind.len() > KINDS.1) {
        violations.add("kinds", format!("must be at most {} names of at most {} bytes", KINDS.0, KINDS.1));
    }
    violations.finish(Some(()))?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("lease_jobs").await?;
    let plea = LeasePlea { node, kinds: &request.kinds, limit: request.limit.into() };
    let jobs = jobs::lease(&tx, plea, LEASE, TRIES).await?;
    tx.commit().await?;
    for Leased { ticket, until, kind, .. } in &jobs {
        debug!(node.id = %node, job.id = %ticket.job, "gave the job `{}` ({kind}) to `{node}` until {until}", ticket.job);
    }
    Ok(pb::LeaseJobsResponse { jobs: jobs.into_iter().map(to_wire).collect() })
}

pub(super) async fn report(plane: &Plane, request: &pb::ReportJobRequest) -> Result<pb::ReportJobResponse, ApiError> {
    let mut violations = Violations::default();
    let job = violations.take("job_id", request.job_id.parse::<Uuid>());
    let token = violations.take("lease_token", request.lease_token.parse::<Uuid>());
    let said = violations.take("report", request.report.as_ref().ok_or("must be set"));
    let settled = match said {
        Some(Report::Result(result)) => violations.merge(read_result(result)).map(Some),
        Some(Report::Progress(_) | Report::GivenBack(_)) | None => Some(None),
    };
    let complete = (|| Some((Ticket { job: job?, token: token? }, said?, settled?)))();
    let (ticket, said, settled) = violations.finish(complete)?;

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("report_job").await?;
    let (report, taken) = match (said, settled) {
        (Report::Progress(progress), _) => {
            ("progress", jobs::report(&tx, ticket, read_progress(Some(progress)), LEASE).await)
        }
        (Report::Result(result), Some(settled)) => {
            let progress = read_progress(result.progress.as_ref());
            let taken = jobs::settle(&tx, ticket, progress, &settled, TRIES).await;
            ("result", taken.map(|()| Renewal::GoesOn))
        }
        (Report::Result(_) | Report::GivenBack(_), _) => {
            ("given_back", jobs::give_back(&tx, ticket).await.map(|()| Renewal::GoesOn))
        }
    };
    match taken {
        Ok(renewal) => {
            tx.commit().await?;
            Ok(pb::ReportJobResponse { stop: renewal == Renewal::Cancelled })
        }
        Err(error @ LeaseError::Lost) => {
            plane.instruments.lost_lease(report);
            let (subject, description) = (format!("jobs/{}", ticket.job), error.to_string());
            Err(ApiError::Precondition { kind: "LEASE_LOST", subject, description })
        }
        Err(LeaseError::Db(error)) => Err(error.into()),
    }
}

fn read_progress(progress: Option<&pb::JobProgress>) -> Progress {
    let progress = progress.copied().unwrap_or_default();
    Progress { done_bytes: progress.done_bytes.max(0), total_bytes: progress.total_bytes.max(0) }
}

/// Reads how a job ended.
fn read_result(result: &pb::JobResult) -> Result<Settled, Violations> {
    let short = |reason: &str| reason.chars().take(REASON_CHARS).collect::<String>();
    match &result.ended {
        Some(Ended::Result(text)) if text.len() > RESULT_BYTES => {
            Err(Violations::one("result.result", format!("must be at most {RESULT_BYTES} bytes")))
        }
        Some(Ended::Result(text)) => match serde_json::from_str::<Value>(text) {
            Ok(result) => {
                let stays = stays(&result);
                Ok(Settled::Done { result, reason: String::new(), stays })
            }
            Err(error) => Err(Violations::one("result.result", format!("must be JSON: {error}"))),
        },
        Some(Ended::Failure(failure)) => Ok(Settled::Failed(Failure {
            reason: short(&failure.reason),
            may_retry: failure.may_retry,
            retry_after: failure.retry_after.as_ref().and_then(length),
            is_over_budget: failure.over_budget && failure.may_retry,
        })),
        None => Err(Violations::one("result.ended", "must say how the job ended")),
    }
}

/// Whether the row of an automatic job with this result must stay for a while. If the upstream no longer has the tag,
/// the tag would otherwise be due again at once.
fn stays(result: &Value) -> bool {
    matches!(Synced::deserialize(result), Ok(Synced::Deleted { .. }))
}

fn to_wire(job: Leased) -> pb::Job {
    pb::Job {
        job_id: job.ticket.job.to_string(),
        lease_token: job.ticket.token.to_string(),
        lease: Some(duration(LEASE)),
        kind: job.kind,
        payload: job.payload.to_string(),
    }
}
