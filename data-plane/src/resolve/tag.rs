//! Known tags: whether they are trusted, and what happens when they are not.

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Decision, Policy, Remedy, Unconfirmed, decide};
use entrepot_domain::refusal::Refusal;
use entrepot_domain::{Digest, Reference, Tag};
use tracing::{info, warn};
use uuid::Uuid;

use super::{ManifestKey, RecentFailure, Resolved, Resolver, Trust};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::outcome::Outcome;
use crate::place::Place;
use crate::repository::{Live, within_limit};
use crate::trail::{self, Note};
use crate::upstream;

/// A tag that its upstream should confirm.
pub(crate) struct Stale {
    pub(super) tag: Tag,
    /// What it meant when it was last confirmed.
    pub(super) resolved: Resolved,
    pub(super) live: Live,
    /// Whether it is served or confirmed first.
    pub(super) decision: Decision,
    /// The revision of its record.
    pub(super) revision: i64,
    /// When its record was read; the upstream is asked after that.
    pub(super) read_time: DateTime<Utc>,
}

/// The upstream's answer about a known tag.
pub(super) enum TagAnswer {
    /// It means the same as before; this was recorded.
    Same(Resolved),
    /// It means this digest now, or the upstream does not say which.
    Changed(Option<Digest>),
}

impl Resolver {
    /// The decision about a pull of a tag that was last confirmed at `validated`.
    ///
    /// A confirmation that another caller got while the pull was waiting is as good as its own.
    pub(super) fn decision(
        &self,
        place: &Place,
        live: &Live,
        tag: &Tag,
        validated: Option<DateTime<Utc>>,
        trust: Trust,
    ) -> Decision {
        if live.record.settings.settings().tag_mutability.freezes(tag) {
            trail::note(Note::TagFrozen(tag.clone()));
            return Decision::Serve;
        }
        let (default, now) = (Policy::default(), self.now());
        let policy = place.fill().map_or(&default, |fill| &fill.rule.freshness);
        trail::note(Note::tag_age(policy, tag, validated, now));
        match (trust, validated) {
            (Trust::Rule(Some(since)) | Trust::Since(since), Some(at)) if (since..=now).contains(&at) => {
                Decision::Serve
            }
            (Trust::Since(_), _) => Decision::AskThenServe,
            (Trust::Rule(_), _) => decide(policy, tag, validated, now),
        }
    }

    /// Whether a tag was dropped so recently that its upstream need not be asked whether it has returned.
    pub(super) fn is_just_gone(&self, dropped: Option<DateTime<Utc>>, trust: Trust) -> bool {
        if let Trust::Since(since) = trust {
            return dropped.is_some_and(|dropped| (since..=self.now()).contains(&dropped));
        }
        let age = dropped.and_then(|at| (self.now() - at).to_std().ok());
        age.is_some_and(|age| age < Refusal::NoTag.remembered_for(1))
    }

    /// Serves what is cached, and asks the upstream in the background.
    pub(super) async fn serve_then_ask(
        &self,
        fill: &FillFrom,
        stale: Stale,
        asker: Option<Uuid>,
    ) -> Result<Resolved, PullError> {
        let reference = Reference::Tag(stale.tag.clone());
        let key = (fill.origin, fill.name.clone(), reference.clone());
        if let Some(vain) = self.unconfirmed.get(&key).await {
            if vain.until > self.now() {
                trail::note(Note::UpstreamLeftAlone);
                return self.apply_remedy(fill, stale, vain.error).await;
            }
            // If the pull was not served when the upstream last failed, it is not served before the upstream answers.
            let policy = &fill.rule.freshness;
            if policy.remedy(unconfirmed_reason(&vain.error), stale.resolved.validated, self.now())
                != Remedy::ServeStale
            {
                return self.ask_upstream(fill, &reference, asker).await;
            }
        }
        trail::note(Note::AskedBehind);
        self.manifests.start(key.clone(), || self.flight(key, fill, asker));
        Ok(Resolved { outcome: Outcome::Background, ..stale.resolved })
    }

    /// Why the upstream did not confirm a tag recently, as long as it is not asked again because of that.
    pub(super) async fn recent_failure(&self, key: &ManifestKey) -> Option<PullError> {
        let vain = self.unconfirmed.get(key).await?;
        (vain.until > self.now()).then_some(vain.error)
    }

    /// What the upstream says now instead of the stale content; if it does not answer, the rule decides.
    pub(super) async fn refresh(
        &self,
        key: &ManifestKey,
        fill: &FillFrom,
        stale: Stale,
    ) -> Result<Resolved, PullError> {
        match self.revalidate(fill, &stale).await {
            Ok(resolved) => {
                self.unconfirmed.invalidate(key).await;
                Ok(resolved)
            }
            Err(error) => self.remember_failure(key, fill, stale, error).await,
        }
    }

    /// Handles a failed request, which is remembered for a moment.
    pub(super) async fn remember_failure(
        &self,
        key: &ManifestKey,
        fill: &FillFrom,
        stale: Stale,
        error: PullError,
    ) -> Result<Resolved, PullError> {
        warn!(
            repository.name = %fill.name, tag.name = %stale.tag,
            "`{}:{}` is not confirmed: {error}", fill.name, stale.tag
        );
        // A request that comes another way may succeed.
        if !error.is_loop() {
            let until = self.now() + limits::REVALIDATE_BACKOFF;
            self.unconfirmed.insert(key.clone(), RecentFailure { error: error.clone(), until }).await;
        }
        self.apply_remedy(fill, stale, error).await
    }

    /// What the rule says about a tag that the upstream did not confirm. By default, cached content is served even if
    /// the upstream is away, throttles, denies access, or has deleted the tag.
    pub(super) async fn apply_remedy(
        &self,
        fill: &FillFrom,
        stale: Stale,
        error: PullError,
    ) -> Result<Resolved, PullError> {
        let validated = stale.resolved.validated;
        match fill.rule.freshness.remedy(unconfirmed_reason(&error), validated, self.now()) {
            Remedy::ServeStale => {
                trail::note(Note::ServedStale(error));
                Ok(Resolved { outcome: Outcome::Stale, ..stale.resolved })
            }
            Remedy::Fail => Err(error),
            Remedy::TooStale { max_stale } => {
                Err(PullError::TooStale { rule: fill.rule.id.clone(), max_stale, validated, cause: Box::new(error) })
            }
            Remedy::Drop => {
                self.drop_tag(fill, stale).await;
                Err(error)
            }
        }
    }

    /// Asks whether a tag still means the same; if not, fetches what it means now.
    async fn revalidate(&self, fill: &FillFrom, stale: &Stale) -> Result<Resolved, PullError> {
        match self.confirm_tag(fill, stale).await? {
            TagAnswer::Same(resolved) => Ok(resolved),
            TagAnswer::Changed(said) => {
                let known = said.as_ref().unwrap_or(&stale.resolved.digest);
                self.fetch(fill, &Reference::Tag(stale.tag.clone()), Some(known)).await
            }
        }
    }

    /// Asks whether a tag still means the same, and records that if so.
    pub(super) async fn confirm_tag(&self, fill: &FillFrom, stale: &Stale) -> Result<TagAnswer, PullError> {
        let Stale { tag, resolved: held, .. } = stale;
        let client = fill.client();
        let question = client.confirm_tag(&fill.repository, tag, &held.digest);
        let seen = upstream::request(fill, "HEAD", question).await;
        let seen = seen.map_err(|error| upstream::failure(fill, Asked::Manifest, &error))?;
        if seen.as_ref() != Some(&held.digest) {
            trail::note(if seen.is_some() { Note::TagMoved(tag.clone()) } else { Note::TagNotSaid(tag.clone()) });
            return Ok(TagAnswer::Changed(seen));
        }
        trail::note(Note::TagConfirmed(tag.clone()));
        Ok(TagAnswer::Same(self.note_confirmed(fill, stale).await))
    }

    /// Records that a tag still means the same, and returns its content.
    pub(super) async fn note_confirmed(&self, fill: &FillFrom, stale: &Stale) -> Resolved {
        let Stale { tag, resolved: held, live, read_time, .. } = stale;
        let said = (&held.digest, *read_time);
        if let Err(error) = within_limit(self.repositories.confirm_tag(live, fill, tag, said)).await {
            warn!("`{}:{tag}` was confirmed, which could not be noted: {error}", fill.name);
        }
        Resolved { outcome: Outcome::Revalidated, validated: Some(*read_time), ..held.clone() }
    }

    /// Drops a tag that no longer exists at the upstream. If that cannot be recorded, the next pull tries again.
    async fn drop_tag(&self, fill: &FillFrom, stale: Stale) {
        let Stale { tag, resolved, live, read_time, .. } = stale;
        let said = (&resolved.digest, read_time);
        let dropped = within_limit(self.repositories.drop_tag(&live, fill, &tag, said)).await;
        let key = (fill.origin, fill.name.clone(), Reference::Tag(tag.clone()));
        // If the tag returns, what was said about it before does not matter.
        self.unconfirmed.invalidate(&key).await;
        trail::note(Note::TagDropped(tag.clone()));
        match dropped {
            Ok(()) => info!(
                repository.name = %fill.name, tag.name = %tag, rule.name = %fill.rule.id,
                "dropped `{}:{tag}`, which no longer exists at the upstream", fill.name
            ),
            Err(error) => warn!("`{}:{tag}` could not be dropped: {error}", fill.name),
        }
    }
}

/// The error for a tag that was dropped recently.
pub(super) fn tag_gone(fill: &FillFrom) -> PullError {
    PullError::NotFound { asked: Asked::Manifest, rule: Some(fill.rule.id.clone()) }
}

/// Why the upstream did not confirm a tag.
pub(super) fn unconfirmed_reason(error: &PullError) -> Unconfirmed {
    match error {
        PullError::NotFound { .. } => Unconfirmed::Deleted,
        PullError::UpstreamDenied { .. } => Unconfirmed::Denied,
        PullError::Route(_)
        | PullError::Unauthenticated(_)
        | PullError::InsufficientScope
        | PullError::Denied { .. }
        | PullError::TooManyLogins { .. }
        | PullError::NoRule
        | PullError::UpstreamThrottled { .. }
        | PullError::OverBudget { .. }
        | PullError::UpstreamAway { .. }
        | PullError::UpstreamRefused { .. }
        | PullError::Loop(_)
        | PullError::UpstreamLoops { .. }
        | PullError::BadContent { .. }
        | PullError::TooStale { .. }
        | PullError::Damaged { .. }
        | PullError::StoreAway
        | PullError::NoSnapshot
        | PullError::LeftOut { .. }
        | PullError::Busy
        | PullError::GaveUp
        | PullError::BadRecord { .. }
        | PullError::Internal => Unconfirmed::Away,
    }
}
