//! The end of a fill: verified, into the store, and shown; or from the store, where another has brought it.

use std::time::Instant;

use entrepot_domain::Verifier;
use entrepot_domain::fill::{Event, Fill};
use entrepot_domain::manifest::platform_of_config;
use entrepot_store::Key;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tracing::{Instrument as _, info_span, warn};

use super::super::upload::Uploading;
use super::Driver;
use crate::error::PullError;
use crate::failpoint;
use crate::repository::within_limit;

impl Driver<'_> {
    /// Lets what has landed, and what lands from now on, go into the store.
    /// What keeps it from that is told by what comes next.
    pub(super) async fn begin_upload(&mut self, state: &Fill) {
        self.failure = self.take_turn().await.err();
        if self.open_spool().await.is_some() {
            return;
        }
        if let (Some(spool), Some(turn)) = (&self.spool, &self.turn) {
            let (tasks, store) = (&self.fills.inner.tasks, self.fills.inner.repositories.store.clone());
            let content = (self.object.clone(), self.digest.clone());
            let upload = Uploading::begin(tasks, store, content, spool.clone(), turn.clone());
            upload.may_send(state.landed_bytes());
            self.upload = Some(upload);
        }
    }

    /// Lets the rest come from the store.
    pub(super) async fn read_store(&mut self, from: u64) -> Event {
        let store = &self.fills.inner.repositories.store;
        let Some(object) = self.found.clone() else { return Event::Broken };
        let Ok(Some(size)) = within_limit(store.head(&object)).await else { return Event::Broken };
        let Ok(Some(body)) = within_limit(store.read(&object, from..size, Some(self.digest))).await else {
            return Event::Broken;
        };
        self.body = Some(body.map_err(|_| PullError::StoreAway).boxed());
        self.passed_over_bytes = 0;
        Event::Sized(size)
    }

    pub(super) async fn verify(&mut self) -> Event {
        let verifier = std::mem::replace(&mut self.verifier, Verifier::new(self.digest.clone()));
        if !verifier.finish() {
            // Another endpoint may have the right one, so that is no word of the upstream's.
            let is_fallback = self.fill.source.client.was_wrong(&self.fill.repository, self.digest);
            self.failure = Some(if is_fallback { self.away() } else { self.bad("it does not hash to its digest") });
            return Event::Wrong;
        }
        failpoint::hit("fill.after_verification");
        self.verified_since = Some(Instant::now());
        Event::Right
    }

    /// The content has its key, or the store does not take it.
    pub(super) async fn completed(&mut self, is_stored: bool, state: &Fill) -> Event {
        self.completing = None;
        if !is_stored {
            return Event::CommitFailed;
        }
        failpoint::hit("fill.after_upload");
        let object = self.object.clone();
        self.link(&object, state).instrument(info_span!("fill.commit")).await;
        Event::Committed
    }

    /// Lets the repositories that may show the content show `object`.
    pub(super) async fn link(&mut self, object: &Key, state: &Fill) {
        let platform = self.config.as_deref().and_then(platform_of_config);
        while let Some((repository, fill)) = self.landing.next_to_link() {
            let repositories = &self.fills.inner.repositories;
            let size = state.landed_bytes();
            let link = repositories.link_blob(&repository, &fill, self.digest, object, size, platform.clone());
            if let Err(error) = within_limit(link).await {
                warn!("blob `{}` is not linked in `{repository}`: {error}", self.digest);
            }
        }
    }
}
