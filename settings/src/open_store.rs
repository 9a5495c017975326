//! Opens the bucket when a program starts.

use std::time::Duration;

use backon::Retryable as _;
use entrepot_domain::ResourceId;
use entrepot_records::{LayoutError, check_layout};
use entrepot_runtime::retry::backoff;
use entrepot_runtime::{Condition, chain};
use entrepot_store::bucket::{self, BucketConfig, BucketStore};
use tracing::warn;

/// The first and the longest wait before an absent bucket is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Why the bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// It is not usable as a store, or is away.
    #[error(transparent)]
    Bucket(#[from] bucket::OpenError),
    /// Its layout is another one.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl OpenStoreError {
    /// Whether opening the same bucket later may succeed.
    pub fn retry(&self) -> bool {
        match self {
            Self::Bucket(error) => error.retry(),
            Self::Layout(error) => error.retry(),
        }
    }
}

/// Opens the bucket and checks its layout. If it is away, this waits for it, and `condition` says so meanwhile. `owner`
/// is the node in whose name uploads are begun.
///
/// # Errors
/// If it is not usable as a store, or has the layout of another release.
pub async fn open_store(
    config: &BucketConfig,
    owner: &ResourceId,
    condition: &Condition,
) -> Result<BucketStore, OpenStoreError> {
    let open = async || {
        let store = BucketStore::open(config.clone(), owner.clone()).await?;
        check_layout(&store).await?;
        Ok(store)
    };
    open.retry(backoff(RETRY.0, RETRY.1))
        .when(OpenStoreError::retry)
        .notify(|error, _| {
            let why = chain(error).to_string();
            warn!(error = %why, "the store cannot be opened yet: {why}");
            condition.not_ready(why);
        })
        .await
}
