//! Manifests: by digest, which is for ever, and by tag, which the upstream must confirm now and then.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Freshness, Window};
use entrepot_domain::manifest::ManifestError;
use entrepot_domain::{Digest, Manifest, MediaType, Reference, Tag};
use entrepot_runtime::chain;
use tokio::time::Instant;
use tracing::{Instrument as _, info, info_span, warn};
use uuid::Uuid;

use super::refusals::Question;
use super::{Outcome, Resolver, asking, failure};
use crate::config::limits;
use crate::control::{FillFrom, Place};
use crate::error::PullError;
use crate::failpoint;
use crate::http::route::Asked;
use crate::inspect::{Trail, trail};
use crate::lease::{Claim, Lease, LeaseKey};
use crate::repository::{Live, Verified, within_limit};

/// A manifest, in hand.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    pub(crate) media_type: MediaType,
    pub(crate) bytes: Bytes,
    pub(crate) outcome: Outcome,
    /// The incarnation of the repository that has it; `None` if it was not stored.
    pub(crate) incarnation: Option<Uuid>,
    /// When the upstream last confirmed the tag.
    pub(crate) validated: Option<DateTime<Utc>>,
}

/// What the records have for a reference.
enum Held {
    /// All that is needed.
    Fresh(Resolved),
    /// Something that the upstream should confirm first.
    Stale(Resolved, Live),
    /// Nothing; whether there is a repository is known all the same.
    Nothing(Option<Live>),
}

impl Resolver {
    /// The manifest that `reference` means in `place` now.
    pub(crate) async fn manifest(
        &self,
        place: &Place,
        reference: &Reference,
        asker: Option<Uuid>,
    ) -> Result<Resolved, PullError> {
        match (self.held(place, reference).await?, &place.fill) {
            (Held::Fresh(resolved), _) => Ok(resolved),
            (Held::Stale(resolved, _), None) => {
                trail::because(|| "no rule covers this name: what is cached is served, and never confirmed".to_owned());
                Ok(resolved)
            }
            (Held::Nothing(Some(_)), None) => Err(PullError::NotFound { asked: Asked::Manifest, rule: None }),
            (Held::Nothing(None), None) => Err(PullError::NoRule),
            (held, Some(fill)) => {
                if matches!(held, Held::Nothing(_)) {
                    self.refusals.remembered(&place.repository, fill, Question::Manifest(reference)).await?;
                }
                let key = (fill.origin, place.repository.clone(), reference.clone());
                let (resolver, place, fill) = (self.clone(), place.clone(), fill.clone());
                let (flight_key, reference) = (key.clone(), reference.clone());
                let mut is_ours = false;
                let work = || {
                    is_ours = true;
                    Trail::of(async move {
                        let answer = resolver.ask(flight_key, &place, &fill, &reference).await;
                        // Before the flight ends, so that whoever comes then knows.
                        let question = Question::Manifest(&reference);
                        resolver.refusals.learn(&place.repository, &fill, question, asker, &answer).await;
                        answer
                    })
                };
                let (answer, reasons) = self.manifests.join_or_start(key, work).await.ok_or(PullError::Busy)?;
                if !is_ours {
                    trail::because(|| "another pull was asking the upstream for the same: waited with it".to_owned());
                }
                trail::take_over(&reasons);
                answer
            }
        }
    }

    /// What the records have.
    async fn held(&self, place: &Place, reference: &Reference) -> Result<Held, PullError> {
        let origin = place.fill.as_ref().map(|fill| fill.origin);
        within_limit(async {
            let Some(live) = self.repositories.live(&place.repository).await? else {
                trail::because(|| format!("there was no repository `{}`", place.repository));
                return Ok(Held::Nothing(None));
            };
            let (digest, freshness, validated) = match reference {
                Reference::Digest(digest) => (digest.clone(), Freshness::Fresh, None),
                Reference::Tag(tag) => {
                    let record = self.repositories.tag(&live, tag, origin).await?;
                    let Some((digest, validated)) = record.and_then(|r| Some((r.digest?, r.validate_time))) else {
                        trail::because(|| format!("tag `{tag}` was not known in this repository under its rule"));
                        return Ok(Held::Nothing(Some(live)));
                    };
                    trail::because(|| validity(tag, validated, self.now()));
                    (digest, Freshness::of(validated, Window::default(), self.now()), validated)
                }
            };
            let Some(link) = self.repositories.manifest_link(&live, &digest, origin).await? else {
                trail::because(|| format!("no link to manifest `{digest}` in this repository under its rule"));
                return Ok(Held::Nothing(Some(live)));
            };
            // A link whose object is missing is a miss, and heals.
            let Some(object) = self.repositories.store.get(&link.object).await? else {
                trail::because(|| format!("manifest `{digest}` is linked, but was not in the store"));
                return Ok(Held::Nothing(Some(live)));
            };
            trail::because(|| format!("manifest `{digest}` is linked in this repository, and was in the store"));
            let resolved = Resolved {
                digest,
                media_type: link.media_type,
                bytes: object.bytes,
                outcome: Outcome::Hit,
                incarnation: Some(live.record.incarnation),
                validated,
            };
            Ok(match freshness {
                Freshness::Fresh => Held::Fresh(resolved),
                Freshness::Stale => Held::Stale(resolved, live),
            })
        })
        .await
    }

    /// Asks the upstream, or lets another node do it.
    async fn ask(
        &self,
        key: super::ManifestKey,
        place: &Place,
        fill: &FillFrom,
        reference: &Reference,
    ) -> Result<Resolved, PullError> {
        let asked_in_vain = self.unconfirmed.contains_key(&key);
        let (held, lease) = if asked_in_vain {
            (self.held(place, reference).await?, None)
        } else {
            self.coordinated(place, fill, reference).await?
        };
        failpoint::hit("manifest.after_claim");
        let answer = match (held, reference) {
            (Held::Fresh(resolved), _) => Ok(resolved),
            (Held::Nothing(_), _) => self.fetch(place, fill, reference).await,
            (Held::Stale(stale, live), Reference::Tag(tag)) if !asked_in_vain => {
                Ok(self.refresh(key, place, fill, tag, stale, &live).await)
            }
            (Held::Stale(stale, _), _) => {
                trail::because(|| "the upstream could not confirm the tag a moment ago, and was left alone".to_owned());
                Ok(Resolved { outcome: Outcome::Stale, ..stale })
            }
        };
        failpoint::hit("manifest.before_release");
        drop(lease);
        answer
    }

    /// What the records have when it is this node's turn to ask the upstream, or when there is nothing to ask any more.
    ///
    /// Of all nodes that want the same, one gets the lease. It looks after that, since another may have been faster.
    /// The others wait until it has done that, and look at what it has written; one of them takes its place if it is
    /// lost, or has failed.
    async fn coordinated(
        &self,
        place: &Place,
        fill: &FillFrom,
        reference: &Reference,
    ) -> Result<(Held, Option<Lease>), PullError> {
        let key = LeaseKey::reference(fill.origin, &place.repository, reference);
        let (mut lost, limit) = (None, Instant::now() + limits::OTHERS_WORK);
        loop {
            let (lease, holder) = match self.fills.leases().claim(&key, lost.as_ref()).await {
                Claim::Granted(lease) => (Some(lease), None),
                Claim::Busy(holder) => (None, Some(holder)),
                Claim::Uncoordinated => (None, None),
            };
            lost = None;
            let waits = holder.is_some() && Instant::now() < limit;
            if let Some(holder) = holder.filter(|_| waits) {
                trail::because(|| "another node was asking the upstream: waited for it".to_owned());
                lost = (!self.fills.peers().wait_for(&holder, limit).await).then_some(holder);
            }
            let held = self.held(place, reference).await?;
            if !waits || matches!(held, Held::Fresh(_)) {
                return Ok((held, lease));
            }
        }
    }

    /// What the upstream says now in place of what is stale, or that where it says nothing.
    async fn refresh(
        &self,
        key: super::ManifestKey,
        place: &Place,
        fill: &FillFrom,
        tag: &Tag,
        stale: Resolved,
        live: &Live,
    ) -> Resolved {
        match self.revalidate(place, fill, tag, &stale, live).await {
            Ok(resolved) => resolved,
            Err(error) => {
                // An upstream that is away, throttles, refuses or has deleted the tag does not hurt what is cached.
                warn!(
                    repository.name = %place.repository, tag.name = %tag,
                    "serves `{}:{tag}` stale: {error}", place.repository
                );
                trail::because(|| format!("served stale, since the upstream could not confirm the tag: {error}"));
                self.unconfirmed.insert(key, ()).await;
                Resolved { outcome: Outcome::Stale, ..stale }
            }
        }
    }

    /// Asks whether a tag still means what it meant; fetches what it means now if it does not.
    async fn revalidate(
        &self,
        place: &Place,
        fill: &FillFrom,
        tag: &Tag,
        held: &Resolved,
        live: &Live,
    ) -> Result<Resolved, PullError> {
        let reference = Reference::Tag(tag.clone());
        let question = fill.source.client.head_manifest(&fill.repository, &reference);
        let seen = asking(fill, "HEAD", question).await;
        let seen = seen.map_err(|error| failure(fill, Asked::Manifest, &error))?;
        if seen.as_ref() != Some(&held.digest) {
            trail::because(|| format!("the upstream says that tag `{tag}` means another digest now"));
            return self.fetch(place, fill, &reference).await;
        }
        trail::because(|| format!("the upstream confirmed that tag `{tag}` still means this digest"));
        if let Err(error) = within_limit(self.repositories.confirm_tag(live, fill, tag, &held.digest)).await {
            warn!("`{}:{tag}` was confirmed, which could not be noted: {error}", place.repository);
        }
        Ok(Resolved { outcome: Outcome::Revalidated, validated: Some(self.now()), ..held.clone() })
    }

    /// Fetches a manifest, verifies it, stores it and makes it visible.
    async fn fetch(&self, place: &Place, fill: &FillFrom, reference: &Reference) -> Result<Resolved, PullError> {
        let _turn = self.fills.turn().await?;
        let fetched = asking(fill, "GET", fill.source.client.manifest(&fill.repository, reference)).await;
        let fetched = fetched.map_err(|error| failure(fill, Asked::Manifest, &error))?;
        failpoint::hit("manifest.after_fetch");
        let (digest, tag) = match reference {
            Reference::Digest(digest) => (digest.clone(), None),
            Reference::Tag(tag) => (Digest::sha256(&fetched.bytes), Some(tag)),
        };
        let manifest = Manifest::parse(fetched.content_type.as_deref(), &fetched.bytes)
            .map_err(|error| bad_manifest(fill, &error))?;
        let verified = Verified { digest, bytes: fetched.bytes, manifest };

        let commit = self.repositories.commit_manifest(&place.repository, fill, &verified, tag);
        let incarnation = within_limit(commit).instrument(info_span!("fill.commit")).await.ok();
        info!(
            repository.name = %place.repository, content.digest = %verified.digest, rule.name = %fill.rule.id,
            size_bytes = verified.bytes.len(), stored = incarnation.is_some(),
            "fetched manifest `{}` of `{}`", verified.digest, place.repository
        );
        trail::because(|| {
            let (upstream, stored) =
                (&fill.source.upstream.id, if incarnation.is_some() { "" } else { ", not stored" });
            format!("fetched from upstream `{upstream}`, repository `{}`{stored}", fill.repository)
        });
        Ok(Resolved {
            digest: verified.digest,
            media_type: verified.manifest.media_type,
            bytes: verified.bytes,
            // Readers get verified bytes also when the store does not take them.
            outcome: if incarnation.is_some() { Outcome::Miss } else { Outcome::Bypass },
            incarnation,
            validated: tag.map(|_| self.now()),
        })
    }
}

/// How far a tag could be trusted.
fn validity(tag: &Tag, validated: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let window = trail::length(Window::default().length());
    match validated {
        Some(at) => format!("tag `{tag}` was validated {} ago, the window is {window}", trail::ago(at, now)),
        None => format!("tag `{tag}` was never validated"),
    }
}

fn bad_manifest(fill: &FillFrom, error: &ManifestError) -> PullError {
    let (rule, upstream) = (fill.rule.id.clone(), fill.source.upstream.id.clone());
    warn!(rule.name = %rule, upstream.id = %upstream, "upstream `{upstream}` delivered a bad manifest: {}", chain(error));
    PullError::BadContent { rule, upstream, what: error.to_string() }
}
