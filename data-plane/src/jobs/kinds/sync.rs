//! Brings a tag up to date.

use entrepot_domain::Priority;
use entrepot_domain::job::{SyncPayload, SyncTag, Synced};

use super::Work;
use crate::control::Snapshot;
use crate::error::PullError;
use crate::resolve::{Ahead, Resolver};

impl Work for SyncTag {
    async fn work(
        resolver: &Resolver,
        snapshot: &Snapshot,
        payload: &SyncPayload,
        ahead: &Ahead,
    ) -> Result<Synced, PullError> {
        let location = snapshot.locate(&payload.repository).with(Priority::Sync);
        let synced = resolver.sync(location, &payload.tag, payload.known_validate_time, ahead).await?;
        // Somebody waits for this one, and may then rely on it at every node.
        if payload.known_validate_time.is_none() {
            resolver.settle_tag(&payload.repository, &payload.tag).await?;
        }
        Ok(synced)
    }

    fn label(payload: &SyncPayload) -> &'static str {
        if payload.known_validate_time.is_some() { "automatic_sync" } else { "sync" }
    }

    fn outcome(synced: &Synced) -> &'static str {
        synced.as_str()
    }
}
