//! Opening the bucket at the start of a program.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use entrepot_domain::ResourceId;
use entrepot_records::{LayoutError, check_layout};
use entrepot_runtime::{Condition, chain};
use entrepot_store::bucket::{self, BucketConfig, BucketStore};
use tracing::warn;

/// How long a bucket that is away is left alone, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Why the bucket is not used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// It cannot be a store, or is away.
    #[error(transparent)]
    Bucket(#[from] bucket::OpenError),
    /// It is laid out in another way.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl OpenStoreError {
    /// Whether the same bucket may be opened later.
    pub fn retry(&self) -> bool {
        match self {
            Self::Bucket(error) => error.retry(),
            Self::Layout(error) => error.retry(),
        }
    }
}

/// Opens the bucket and checks its layout. One that is away is waited for, which `condition` says meanwhile. `owner` is
/// who begins uploads.
///
/// # Errors
/// If it cannot be a store, or another release has laid it out.
pub async fn open_store(
    config: &BucketConfig,
    owner: &ResourceId,
    condition: &Condition,
) -> Result<BucketStore, OpenStoreError> {
    let delays =
        ExponentialBuilder::default().with_jitter().with_min_delay(RETRY.0).with_max_delay(RETRY.1).without_max_times();
    let open = async || {
        let store = BucketStore::open(config.clone(), owner.clone()).await?;
        check_layout(&store).await?;
        Ok(store)
    };
    open.retry(delays)
        .when(OpenStoreError::retry)
        .notify(|error, _| {
            let why = chain(error).to_string();
            warn!(error = %why, "the store cannot be opened yet: {why}");
            condition.not_ready(why);
        })
        .await
}
