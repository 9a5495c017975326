//! The kinds of jobs that this node knows, and the code that does them.

mod sync;
mod warm;

use std::future::Future;

use entrepot_domain::job::{JobKind, SyncTag, WarmImage};
use entrepot_proto::convert::duration;
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::job_result::Ended;
use tracing::warn;

use crate::control::Snapshot;
use crate::error::{Asked, PullError};
use crate::resolve::{FetchProgress, Resolver};

/// The names of all known kinds. [`perform`] does each.
pub(super) const KNOWN: [&str; 2] = [SyncTag::NAME, WarmImage::NAME];

/// A kind of job that this node can do.
pub(super) trait Work: JobKind {
    /// Does the job.
    fn work(
        resolver: &Resolver,
        snapshot: &Snapshot,
        payload: &Self::Payload,
        progress: &FetchProgress,
    ) -> impl Future<Output = Result<Self::Result, PullError>> + Send;

    /// Its label in metrics.
    fn label(_payload: &Self::Payload) -> &'static str {
        Self::NAME
    }

    /// The label of a successful result in metrics.
    fn outcome(result: &Self::Result) -> &'static str;
}

/// How a job ended, for the control plane and for metrics.
#[derive(Clone, Debug)]
pub(super) struct Performed {
    pub(super) ended: Ended,
    pub(super) kind: &'static str,
    pub(super) outcome: &'static str,
}

impl Performed {
    pub(super) fn failed(kind: &'static str, failure: pb::JobFailure) -> Self {
        let outcome = if failure.over_budget { "over_budget" } else { "failed" };
        Self { ended: Ended::Failure(failure), kind, outcome }
    }
}

/// Does a job; `None` if this node does not know its kind.
pub(super) async fn perform(
    job: &pb::Job,
    resolver: &Resolver,
    snapshot: &Snapshot,
    progress: &FetchProgress,
) -> Option<Performed> {
    match job.kind.as_str() {
        SyncTag::NAME => Some(run::<SyncTag>(job, resolver, snapshot, progress).await),
        WarmImage::NAME => Some(run::<WarmImage>(job, resolver, snapshot, progress).await),
        _ => None,
    }
}

async fn run<W: Work>(job: &pb::Job, resolver: &Resolver, snapshot: &Snapshot, progress: &FetchProgress) -> Performed {
    let payload: W::Payload = match serde_json::from_str(&job.payload) {
        Ok(payload) => payload,
        Err(error) => return Performed::failed(W::NAME, failure(format!("the job is malformed: {error}"))),
    };
    let kind = W::label(&payload);
    match W::work(resolver, snapshot, &payload, progress).await {
        Ok(result) => match serde_json::to_string(&result) {
            Ok(text) => Performed { ended: Ended::Result(text), kind, outcome: W::outcome(&result) },
            Err(error) => Performed::failed(kind, failure(format!("the result cannot be written: {error}"))),
        },
        Err(error) => {
            warn!(error = %error, "a job failed: {error}");
            Performed::failed(kind, failure_of(&error))
        }
    }
}

/// A permanent failure.
pub(super) fn failure(reason: String) -> pb::JobFailure {
    pb::JobFailure { reason, ..Default::default() }
}

/// The reason if the content no longer exists here and cannot be requested.
fn gone(asked: Asked) -> &'static str {
    match asked {
        Asked::Repository => "there is no such repository any more",
        Asked::Manifest | Asked::Blob => "the tag is not cached any more under the rule that covers it now",
    }
}

/// How a job failed, and whether trying again may help.
fn failure_of(error: &PullError) -> pb::JobFailure {
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
        | PullError::BadRecord { .. }
        | PullError::Internal => (true, None),
        PullError::TooStale { cause, .. } => (!cause.is_refusal(), None),
        PullError::Route(_)
        | PullError::Unauthenticated(_)
        | PullError::InsufficientScope
        | PullError::Denied { .. }
        | PullError::TooManyLogins { .. }
        | PullError::NoRule
        | PullError::NotFound { .. }
        | PullError::Damaged { .. }
        | PullError::UpstreamDenied { .. }
        | PullError::UpstreamRefused { .. }
        | PullError::Loop(_)
        | PullError::UpstreamLoops { .. }
        | PullError::BadContent { .. } => (false, None),
    };
    let reason =
        if let PullError::NotFound { asked, rule: None } = error { gone(*asked).to_owned() } else { error.to_string() };
    let over_budget = matches!(error, PullError::OverBudget { .. });
    pb::JobFailure { reason, may_retry, retry_after: retry_after.map(duration), over_budget }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_told() {
        assert!(failure_of(&PullError::Busy).may_retry);
        let after = Some(std::time::Duration::from_secs(7));
        let (rule, upstream) = ("hub".parse().unwrap(), "hub".parse().unwrap());
        let throttled = PullError::UpstreamThrottled { rule, upstream, retry_after: after };
        assert_eq!(failure_of(&throttled).retry_after, after.map(duration));
        let none = failure_of(&PullError::NoRule);
        assert!(!none.may_retry && none.reason.contains("no rule covers"), "{}", none.reason);
    }
}
