//! Opening the bucket at the start of a program.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use entrepot_domain::ResourceId;
use entrepot_runtime::{Condition, chain};
use entrepot_store::bucket::{BucketConfig, BucketStore, OpenError};
use tracing::warn;

/// How long a bucket that is away is left alone, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Opens the bucket. One that is away is waited for, which `condition` says meanwhile. `owner` is who begins uploads.
///
/// # Errors
/// If it cannot be a store.
pub async fn open_store(
    config: &BucketConfig,
    owner: &ResourceId,
    condition: &Condition,
) -> Result<BucketStore, OpenError> {
    let delays =
        ExponentialBuilder::default().with_jitter().with_min_delay(RETRY.0).with_max_delay(RETRY.1).without_max_times();
    let open = || BucketStore::open(config.clone(), owner.clone());
    open.retry(delays)
        .when(OpenError::retry)
        .notify(|error, _| {
            let why = chain(error).to_string();
            warn!(error = %why, "the store cannot be opened yet: {why}");
            condition.not_ready(why);
        })
        .await
}
