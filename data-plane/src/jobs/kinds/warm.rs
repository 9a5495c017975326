//! Fetches an image in advance.

use entrepot_domain::Priority;
use entrepot_domain::job::{Synced, WarmImage, WarmPayload};

use super::Work;
use crate::control::Snapshot;
use crate::error::PullError;
use crate::resolve::{FetchProgress, Resolver};

impl Work for WarmImage {
    async fn work(
        resolver: &Resolver,
        snapshot: &Snapshot,
        payload: &WarmPayload,
        progress: &FetchProgress,
    ) -> Result<Synced, PullError> {
        let location = snapshot.locate(&payload.repository).with(Priority::Warm);
        resolver.warm(location, &payload.reference, &payload.platforms, progress).await
    }

    fn outcome(synced: &Synced) -> &'static str {
        synced.as_str()
    }
}
