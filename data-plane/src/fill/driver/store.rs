//! The end of a fill: verified content goes into the store and is linked, or is read from the store, where another node
//! has put it.

use std::time::Instant;

use chrono::{DateTime, Utc};
use entrepot_domain::Verifier;
use entrepot_domain::claim::Claimer;
use entrepot_domain::fill::{Event, Fill};
use entrepot_domain::manifest::platform_of_config;
use entrepot_records::{Claim, Content, layout};
use entrepot_store::Key;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tracing::{Instrument as _, info_span, warn};
use uuid::Uuid;

use super::super::Fills;
use super::super::upload::Uploading;
use super::Driver;
use crate::error::PullError;
use crate::failpoint;
use crate::repository::within_limit;

impl Driver<'_> {
    /// Begins to upload what has landed and will land. If this fails, the next event tells so.
    pub(super) async fn begin_upload(&mut self, state: &Fill) {
        self.failure = self.take_turn().await.err();
        if self.open_spool().await.is_some() {
            return;
        }
        if let (Some(spool), Some(turn)) = (&self.spool, &self.turn) {
            let (tasks, store) = (&self.fills.inner.tasks, self.fills.inner.repositories.store.clone());
            self.own = OwnObject::new(self.fills);
            let content = (self.own.object.clone(), self.digest.clone());
            let upload = Uploading::begin(tasks, store, content, spool.clone(), turn.clone());
            upload.may_send(state.landed_bytes());
            self.upload = Some(upload);
        }
    }

    /// Reads the rest from the store.
    pub(super) async fn read_store(&mut self, from: u64) -> Event {
        let repositories = &self.fills.inner.repositories;
        let Some(Content { object, size_bytes: size }) = self.found.clone() else { return Event::Broken };
        let read = repositories.open(&object, from..size, self.digest);
        let Ok(Some(body)) = within_limit(read).await else { return Event::Broken };
        let damaged = repositories.damaged.clone();
        self.body = Some(
            body.map_err(move |error| {
                damaged.note_if(&error);
                PullError::StoreAway
            })
            .boxed(),
        );
        self.passed_over_bytes = 0;
        Event::Sized(size)
    }

    pub(super) async fn verify(&mut self) -> Event {
        let verifier = std::mem::replace(&mut self.verifier, Verifier::new(self.digest.clone()));
        if !verifier.finish() {
            // Another endpoint may have the right content, so this says nothing about the upstream.
            let is_fallback = self.fill.source.client.was_wrong(&self.fill.repository, self.digest);
            self.failure = Some(if is_fallback { self.away() } else { self.bad("it does not hash to its digest") });
            return Event::Wrong;
        }
        failpoint::hit("fill.after_verification");
        self.verified_since = Some(Instant::now());
        Event::Right
    }

    /// The store has the whole content, or has refused it. In the first case the content gets its pointer and its
    /// links.
    pub(super) async fn finish_store(&mut self, is_stored: bool, state: &Fill) -> Event {
        self.completing = None;
        if !is_stored {
            self.fills.inner.metrics.commit_failed("blob");
            return Event::CommitFailed;
        }
        failpoint::hit("fill.after_upload");
        let own = Content { object: self.own.object.clone(), size_bytes: state.landed_bytes() };
        match self.commit(Some(own)).instrument(info_span!("fill.commit")).await {
            Committed::Yes => Event::Committed,
            Committed::No => {
                self.fills.inner.metrics.commit_failed("blob");
                Event::CommitFailed
            }
        }
    }

    /// Links content that another fill has stored.
    pub(super) async fn commit_found(&mut self) {
        self.commit(None).await;
    }

    /// Claims the content, and links it in the repositories that may show it.
    async fn commit(&mut self, own: Option<Content>) -> Committed {
        let platform = self.config.as_deref().and_then(platform_of_config);
        let repositories = &self.fills.inner.repositories;
        let host = self.fill.provenance().origin.host;
        let mut claim = Claim::new(&*repositories.store, repositories, self.digest, Claimer::Fill);
        let has_bytes = own.is_some();
        if let Some(own) = own {
            claim = claim.with_own(own, self.own.begin_time).delivered_by(&host);
        }
        let landing = self.landing;
        let more = || std::iter::from_fn(|| landing.next_to_link()).collect();
        let committed = async {
            if has_bytes {
                repositories.make_way(self.digest).await?;
            }
            repositories.claim_and_link(claim, self.digest, platform, more).await
        };
        let committed = within_limit(committed).await;
        match committed {
            Ok(Some(linked)) => {
                (0..linked.failed).for_each(|_| self.fills.inner.metrics.commit_failed("link"));
                Committed::Yes
            }
            Ok(None) => Committed::No,
            Err(error) => {
                warn!("blob `{}` is not committed: {error}", self.digest);
                Committed::No
            }
        }
    }
}

/// Whether the content has its pointer now.
enum Committed {
    Yes,
    No,
}

/// The object that one attempt of a fill writes.
pub(super) struct OwnObject {
    object: Key,
    /// When the upload was begun.
    begin_time: DateTime<Utc>,
}

impl OwnObject {
    pub(super) fn new(fills: &Fills) -> Self {
        Self { object: layout::content(Uuid::now_v7()), begin_time: fills.inner.repositories.clock.now() }
    }
}
