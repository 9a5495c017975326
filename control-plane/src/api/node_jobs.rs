//! Jobs as nodes take them, and what they say of them.

use std::time::Duration;

use entrepot_domain::sync::ATTEMPTS;
use entrepot_domain::{Digest, ResourceId};
use entrepot_proto::convert::{Violations, duration, length, timestamp};
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::job::Kind as WireKind;
use entrepot_proto::node::v1::report_job_request::Report as Said;
use entrepot_proto::v1::ItemOutcome;
use uuid::Uuid;

use crate::db::jobs::{self, Kind, Leased, Outcome, Report, Settled};
use crate::error::ApiError;
use crate::plane::Plane;

/// For how long a job is a node's. Nodes report every second or two.
const LEASE: Duration = Duration::from_secs(10);
/// How many jobs a node may take at once.
const LIMIT: i32 = 100;
/// How much of a reason is kept.
const REASON_CHARS: usize = 500;
/// How often a job is tried.
const TRIES: i32 = ATTEMPTS as i32;

pub(super) async fn lease(
    plane: &Plane,
    node: &ResourceId,
    request: &pb::LeaseJobsRequest,
) -> Result<pb::LeaseJobsResponse, ApiError> {
    if !(1..=LIMIT).contains(&request.limit) {
        return Err(ApiError::field("limit", format!("must be 1 to {LIMIT}")));
    }
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("lease_jobs").await?;
    let jobs = jobs::lease(&tx, node, request.limit.into(), LEASE, TRIES).await?;
    tx.commit().await?;
    Ok(pb::LeaseJobsResponse { jobs: jobs.into_iter().map(to_wire).collect() })
}

pub(super) async fn report(plane: &Plane, request: &pb::ReportJobRequest) -> Result<pb::ReportJobResponse, ApiError> {
    let mut violations = Violations::default();
    let job = violations.take("job_id", request.job_id.parse::<Uuid>());
    let token = violations.take("lease_token", request.lease_token.parse::<Uuid>());
    let said = violations.take("report", request.report.as_ref().ok_or("must be set"));
    let settled = match said {
        Some(Said::Result(result)) => violations.merge(read_result(result)).map(Some),
        Some(Said::Progress(_) | Said::GivenBack(_)) | None => Some(None),
    };
    let complete = (|| Some((job?, token?, said?, settled?)))();
    let (job, lease_token, said, settled) = violations.finish(complete)?;

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("report_job").await?;
    let report = |progress: &pb::JobProgress| Report {
        job,
        lease_token,
        done_bytes: progress.done_bytes.max(0),
        total_bytes: progress.total_bytes.max(0),
    };
    let goes_on = match (said, settled) {
        (Said::Progress(progress), _) => jobs::report(&tx, report(progress), LEASE).await?,
        (Said::Result(result), Some(settled)) => {
            let progress = result.progress.unwrap_or_default();
            jobs::settle(&tx, report(&progress), &settled, TRIES).await?;
            false
        }
        (Said::Result(_) | Said::GivenBack(_), _) => {
            jobs::give_back(&tx, job, lease_token).await?;
            false
        }
    };
    tx.commit().await?;
    Ok(pb::ReportJobResponse { stop: !goes_on })
}

/// How a job ended.
fn read_result(result: &pb::JobResult) -> Result<Settled, Violations> {
    let mut violations = Violations::default();
    let outcome = match result.outcome() {
        ItemOutcome::Unchanged => Some(Outcome::Unchanged),
        ItemOutcome::Moved => Some(Outcome::Moved),
        ItemOutcome::Created => Some(Outcome::Created),
        ItemOutcome::Deleted => Some(Outcome::Deleted),
        ItemOutcome::Failed => Some(Outcome::Failed),
        ItemOutcome::Unspecified | ItemOutcome::Cancelled => {
            violations.add("result.outcome", "must say how the job ended");
            None
        }
    };
    let mut digest = |field: &str, text: &str| match text {
        "" => Some(None),
        text => violations.take(field, text.parse::<Digest>()).map(|digest| Some(digest.to_string())),
    };
    let from = digest("result.from_digest", &result.from_digest);
    let to = digest("result.to_digest", &result.to_digest);
    let may_retry = result.may_retry && outcome == Some(Outcome::Failed);
    let retry_after = result.retry_after.as_ref().and_then(length);
    let is_over_budget = result.over_budget && may_retry;
    let reason = result.reason.chars().take(REASON_CHARS).collect();
    let settled = (|| {
        let (outcome, from_digest, to_digest) = (outcome?, from?, to?);
        Some(Settled { outcome, from_digest, to_digest, reason, may_retry, retry_after, is_over_budget })
    })();
    violations.finish(settled)
}

fn to_wire(job: Leased) -> pb::Job {
    let kind = match job.kind {
        Kind::SyncTag => WireKind::SyncTag(pb::SyncTag {
            repository: job.repository,
            tag: job.reference,
            known_validate_time: job.known_validate_time.map(timestamp),
        }),
        Kind::WarmImage => WireKind::WarmImage(pb::WarmImage {
            repository: job.repository,
            reference: job.reference,
            platforms: job.platforms,
        }),
    };
    pb::Job {
        job_id: job.uid.to_string(),
        lease_token: job.lease_token.to_string(),
        lease: Some(duration(LEASE)),
        kind: Some(kind),
    }
}
