//! Brings a tag up to date.

use entrepot_domain::Priority;
use entrepot_domain::job::{SyncPayload, SyncResult, SyncTag};

use super::Work;
use crate::control::Snapshot;
use crate::error::PullError;
use crate::resolve::{FetchProgress, Resolver};

impl Work for SyncTag {
    async fn work(
        resolver: &Resolver,
        snapshot: &Snapshot,
        payload: &SyncPayload,
        progress: &FetchProgress,
    ) -> Result<SyncResult, PullError> {
        let location = snapshot.locate(&payload.repository).with(Priority::Sync);
        let synced = resolver.sync(location, &payload.tag, payload.known_validate_time, progress).await?;
        // Somebody waits for this sync, and may rely on its result at every node afterwards.
        let lagging_nodes = match payload.known_validate_time {
            None => resolver.settle_tag(&payload.repository, &payload.tag).await?,
            Some(_) => 0,
        };
        Ok(SyncResult { synced, lagging_nodes })
    }

    fn label(payload: &SyncPayload) -> &'static str {
        if payload.known_validate_time.is_some() { "automatic_sync" } else { "sync" }
    }

    fn outcome(result: &SyncResult) -> &'static str {
        result.synced.as_str()
    }
}
