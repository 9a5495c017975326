//! Tags that are known: whether they are trusted, and what their upstream says when they are not.

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Decision, Mode, Policy, Remedy, Terms, Unconfirmed, decide};
use entrepot_domain::refusal::Refusal;
use entrepot_domain::{Digest, Reference, Tag};
use tracing::{info, warn};
use uuid::Uuid;

use super::{InVain, ManifestKey, Resolved, Resolver, Trust};
use crate::config::limits;
use crate::control::{FillFrom, Place};
use crate::error::{Asked, PullError};
use crate::outcome::Outcome;
use crate::repository::{Live, within_limit};
use crate::trail;
use crate::upstream;

/// A tag that its upstream should confirm.
pub(super) struct Stale {
    pub(super) tag: Tag,
    /// What it meant when it was last confirmed.
    pub(super) resolved: Resolved,
    pub(super) live: Live,
    /// In which order it is served and confirmed.
    pub(super) decision: Decision,
    /// The revision of its record.
    pub(super) revision: i64,
}

/// What the upstream says of a tag that is known.
pub(super) enum Said {
    /// It means what it meant, which was noted.
    Same(Resolved),
    /// It means this digest now, or does not say which.
    Other(Option<Digest>),
}

impl Resolver {
    /// What is done with a pull of a tag that was last confirmed at `validated`.
    ///
    /// A confirmation that was given while the pull was waiting is as good as one's own.
    pub(super) fn decision(
        &self,
        place: &Place,
        live: &Live,
        tag: &Tag,
        validated: Option<DateTime<Utc>>,
        trust: Trust,
    ) -> Decision {
        if live.record.settings.settings().tag_mutability.freezes(tag) {
            trail::because(|| format!("tag `{tag}` never moves in this repository, as its template said"));
            return Decision::Serve;
        }
        let (default, now) = (Policy::default(), self.now());
        let policy = place.fill.as_ref().map_or(&default, |fill| &fill.rule.freshness);
        trail::because(|| validity(policy, tag, validated, now));
        match (trust, validated) {
            (Trust::Rule(Some(since)) | Trust::Since(since), Some(at)) if (since..=now).contains(&at) => {
                Decision::Serve
            }
            (Trust::Since(_), _) => Decision::AskThenServe,
            (Trust::Rule(_), _) => decide(policy, tag, validated, now),
        }
    }

    /// Whether a tag was dropped so little ago that its upstream need not be asked whether it has come again.
    pub(super) fn is_just_gone(&self, dropped: Option<DateTime<Utc>>, trust: Trust) -> bool {
        if let Trust::Since(since) = trust {
            return dropped.is_some_and(|dropped| (since..=self.now()).contains(&dropped));
        }
        let age = dropped.and_then(|at| (self.now() - at).to_std().ok());
        age.is_some_and(|age| age < Refusal::NoTag.remembered_for(1))
    }

    /// Serves what is cached, and has the upstream asked behind it.
    pub(super) async fn serve_then_ask(
        &self,
        place: &Place,
        fill: &FillFrom,
        stale: Stale,
        asker: Option<Uuid>,
    ) -> Result<Resolved, PullError> {
        let reference = Reference::Tag(stale.tag.clone());
        let key = (fill.origin, place.repository.clone(), reference.clone());
        if let Some(vain) = self.unconfirmed.get(&key).await {
            if vain.until > self.now() {
                trail::because(|| "the upstream could not confirm the tag a moment ago, and was left alone".to_owned());
                return self.unconfirmed(place, fill, stale, vain.error).await;
            }
            // What was not served when the upstream last said something is not served before it has said otherwise.
            let policy = &fill.rule.freshness;
            if policy.remedy(why(&vain.error), stale.resolved.validated, self.now()) != Remedy::ServeStale {
                return self.asked(place, fill, &reference, asker).await;
            }
        }
        trail::because(|| "served as it was cached, and the upstream was asked behind it".to_owned());
        self.manifests.start(key.clone(), || self.asking(key, place, fill, asker));
        Ok(Resolved { outcome: Outcome::Background, ..stale.resolved })
    }

    /// Why the upstream did not confirm a tag a moment ago, for as long as it is left alone after that.
    pub(super) async fn asked_in_vain(&self, key: &ManifestKey) -> Option<PullError> {
        let vain = self.unconfirmed.get(key).await?;
        (vain.until > self.now()).then_some(vain.error)
    }

    /// What the upstream says now in place of what is stale, or what the rule says where it says nothing.
    pub(super) async fn refresh(
        &self,
        key: &ManifestKey,
        place: &Place,
        fill: &FillFrom,
        stale: Stale,
    ) -> Result<Resolved, PullError> {
        match self.revalidate(place, fill, &stale).await {
            Ok(resolved) => {
                self.unconfirmed.invalidate(key).await;
                Ok(resolved)
            }
            Err(error) => self.asked_and_failed(key, place, fill, stale, error).await,
        }
    }

    /// What comes of a question that has led to nothing, which is remembered for a moment.
    pub(super) async fn asked_and_failed(
        &self,
        key: &ManifestKey,
        place: &Place,
        fill: &FillFrom,
        stale: Stale,
        error: PullError,
    ) -> Result<Resolved, PullError> {
        warn!(
            repository.name = %place.repository, tag.name = %stale.tag,
            "`{}:{}` is not confirmed: {error}", place.repository, stale.tag
        );
        let until = self.now() + limits::REVALIDATE_BACKOFF;
        self.unconfirmed.insert(key.clone(), InVain { error: error.clone(), until }).await;
        self.unconfirmed(place, fill, stale, error).await
    }

    /// What the rule says to do with a tag that the upstream did not confirm: by default, an upstream that is away,
    /// throttles, refuses or has deleted the tag does not hurt what is cached.
    pub(super) async fn unconfirmed(
        &self,
        place: &Place,
        fill: &FillFrom,
        stale: Stale,
        error: PullError,
    ) -> Result<Resolved, PullError> {
        let validated = stale.resolved.validated;
        match fill.rule.freshness.remedy(why(&error), validated, self.now()) {
            Remedy::ServeStale => {
                trail::because(|| format!("served stale, since the upstream could not confirm the tag: {error}"));
                Ok(Resolved { outcome: Outcome::Stale, ..stale.resolved })
            }
            Remedy::Fail => Err(error),
            Remedy::TooStale { max_stale } => {
                Err(PullError::TooStale { rule: fill.rule.id.clone(), max_stale, validated, cause: Box::new(error) })
            }
            Remedy::Drop => {
                self.drop_tag(place, fill, stale).await;
                Err(error)
            }
        }
    }

    /// Asks whether a tag still means what it meant; fetches what it means now if it does not.
    async fn revalidate(&self, place: &Place, fill: &FillFrom, stale: &Stale) -> Result<Resolved, PullError> {
        match self.confirmed(place, fill, stale).await? {
            Said::Same(resolved) => Ok(resolved),
            Said::Other(said) => {
                let known = said.as_ref().unwrap_or(&stale.resolved.digest);
                self.fetch(place, fill, &Reference::Tag(stale.tag.clone()), Some(known)).await
            }
        }
    }

    /// Asks whether a tag still means what it meant, and notes it if it does.
    pub(super) async fn confirmed(&self, place: &Place, fill: &FillFrom, stale: &Stale) -> Result<Said, PullError> {
        let Stale { tag, resolved: held, .. } = stale;
        let client = fill.client();
        let question = client.confirm_tag(&fill.repository, tag, &held.digest);
        let seen = upstream::request(fill, "HEAD", question).await;
        let seen = seen.map_err(|error| upstream::failure(fill, Asked::Manifest, &error))?;
        if seen.as_ref() != Some(&held.digest) {
            trail::because(|| match &seen {
                Some(_) => format!("the upstream says that tag `{tag}` means another digest now"),
                None => format!("the upstream does not say what tag `{tag}` means without sending it"),
            });
            return Ok(Said::Other(seen));
        }
        trail::because(|| format!("the upstream confirmed that tag `{tag}` still means this digest"));
        Ok(Said::Same(self.note_confirmed(place, fill, stale).await))
    }

    /// Notes that a tag still means what it meant, and returns that.
    pub(super) async fn note_confirmed(&self, place: &Place, fill: &FillFrom, stale: &Stale) -> Resolved {
        let Stale { tag, resolved: held, live, .. } = stale;
        if let Err(error) = within_limit(self.repositories.confirm_tag(live, fill, tag, &held.digest)).await {
            warn!("`{}:{tag}` was confirmed, which could not be noted: {error}", place.repository);
        }
        Resolved { outcome: Outcome::Revalidated, validated: Some(self.now()), ..held.clone() }
    }

    /// Drops a tag that the upstream has no more. If that cannot be noted, the next pull tries again.
    async fn drop_tag(&self, place: &Place, fill: &FillFrom, stale: Stale) {
        let Stale { tag, resolved, live, .. } = stale;
        let dropped = within_limit(self.repositories.drop_tag(&live, fill, &tag, &resolved.digest)).await;
        let key = (fill.origin, place.repository.clone(), Reference::Tag(tag.clone()));
        // If it comes again, what was said of it before does not matter.
        self.unconfirmed.invalidate(&key).await;
        trail::because(|| format!("the upstream has tag `{tag}` no more, so it was dropped, as the rule says"));
        match dropped {
            Ok(()) => info!(
                repository.name = %place.repository, tag.name = %tag, rule.name = %fill.rule.id,
                "dropped `{}:{tag}`, which the upstream has no more", place.repository
            ),
            Err(error) => warn!("`{}:{tag}` could not be dropped: {error}", place.repository),
        }
    }
}

/// The failure of a pull of a tag that was dropped a moment ago.
pub(super) fn gone(fill: &FillFrom) -> PullError {
    PullError::NotFound { asked: Asked::Manifest, rule: Some(fill.rule.id.clone()) }
}

/// Why the upstream did not confirm a tag.
pub(super) fn why(error: &PullError) -> Unconfirmed {
    match error {
        PullError::NotFound { .. } => Unconfirmed::Deleted,
        PullError::UpstreamDenied { .. } => Unconfirmed::Denied,
        PullError::Route(_)
        | PullError::Unauthenticated(_)
        | PullError::InsufficientScope
        | PullError::TooManyLogins { .. }
        | PullError::NoRule
        | PullError::UpstreamThrottled { .. }
        | PullError::OverBudget { .. }
        | PullError::UpstreamAway { .. }
        | PullError::UpstreamRefused { .. }
        | PullError::BadContent { .. }
        | PullError::TooStale { .. }
        | PullError::StoreAway
        | PullError::NoSnapshot
        | PullError::LeftOut { .. }
        | PullError::Busy => Unconfirmed::Away,
    }
}

/// How far a tag could be trusted.
fn validity(policy: &Policy, tag: &Tag, validated: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let age = match validated {
        Some(at) => format!("tag `{tag}` was validated {} ago", trail::ago(at, now)),
        None => format!("tag `{tag}` was never validated"),
    };
    match policy.terms(tag) {
        Terms::Immutable(pattern) => format!("{age}; it never moves, since it matches `{pattern}`"),
        Terms::Movable { mode: Mode::Off, .. } => format!("{age}; its rule never asks for it by itself"),
        Terms::Movable { window, .. } => format!("{age}, the window is {}", trail::length(window)),
    }
}
