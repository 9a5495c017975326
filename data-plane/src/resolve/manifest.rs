//! Manifests: by digest, which is for ever, and by tag, which the upstream must confirm now and then.

use std::future::Future;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::freshness::Decision;
use entrepot_domain::manifest::ManifestError;
use entrepot_domain::{Digest, Manifest, MediaType, Priority, Reference, Tag};
use entrepot_records::TagRecord;
use entrepot_runtime::chain;
use tokio::time::Instant;
use tracing::{Instrument as _, info, info_span, warn};
use uuid::Uuid;

use super::head::Told;
use super::refusals::Question;
use super::tag::{Stale, gone};
use super::turn::Turn;
use super::{Resolver, Trust};
use crate::config::limits;
use crate::control::{FillFrom, Place};
use crate::error::{Asked, PullError};
use crate::failpoint;
use crate::lease::{Lease, LeaseKey};
use crate::outcome::Outcome;
use crate::repository::{Live, Verified, within_limit};
use crate::trail::{self, Trail};
use crate::upstream;

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

/// What is known of a manifest.
#[derive(Clone, Debug)]
pub(crate) enum Described {
    /// The manifest itself.
    Here(Resolved),
    /// What its upstream says of it.
    Told(Told),
}

/// What the records have for a reference.
pub(super) enum Held {
    /// All that is needed.
    Fresh(Resolved),
    /// A tag that the upstream should confirm.
    Stale(Box<Stale>),
    /// A tag that the upstream had no more a moment ago, and that was dropped.
    Gone,
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
        let held = self.held(place, reference, Trust::Rule(None)).await?;
        self.served(held, place, reference, asker).await
    }

    /// What is said of the manifest that `reference` means in `place` now, to who does not want the manifest itself.
    ///
    /// What is not here is not fetched for that: many look at tags that they never pull, and upstreams count GETs.
    pub(crate) async fn describe(
        &self,
        place: &Place,
        reference: &Reference,
        asker: Option<Uuid>,
    ) -> Result<Described, PullError> {
        match (self.held(place, reference, Trust::Rule(None)).await?, &place.fill) {
            (Held::Nothing(_), Some(fill)) => {
                self.refusals.remembered(&place.repository, fill, Question::Manifest(reference)).await?;
                if let Some(told) = self.told(place, fill, reference, asker).await? {
                    return Ok(Described::Told(told));
                }
                self.asked(place, fill, reference, asker).await.map(Described::Here)
            }
            (held, _) => self.served(held, place, reference, asker).await.map(Described::Here),
        }
    }

    /// What is served of what the records have, or in its place.
    async fn served(
        &self,
        held: Held,
        place: &Place,
        reference: &Reference,
        asker: Option<Uuid>,
    ) -> Result<Resolved, PullError> {
        match (held, &place.fill) {
            (Held::Fresh(resolved), _) => Ok(resolved),
            (Held::Stale(stale), None) => {
                trail::because(|| "no rule covers this name: what is cached is served, and never confirmed".to_owned());
                Ok(stale.resolved)
            }
            (Held::Gone | Held::Nothing(Some(_)), None) => {
                Err(place.unfilled(PullError::NotFound { asked: Asked::Manifest, rule: None }))
            }
            (Held::Nothing(None), None) => Err(place.unfilled(PullError::NoRule)),
            (Held::Gone, Some(fill)) => Err(gone(fill)),
            (Held::Stale(stale), Some(fill)) if stale.decision == Decision::ServeThenAsk => {
                self.serve_then_ask(place, fill, *stale, asker).await
            }
            (Held::Stale(_), Some(fill)) => self.asked(place, fill, reference, asker).await,
            (Held::Nothing(_), Some(fill)) => {
                self.refusals.remembered(&place.repository, fill, Question::Manifest(reference)).await?;
                self.asked(place, fill, reference, asker).await
            }
        }
    }

    /// What comes of asking the upstream, which is done once for all who wait for it.
    pub(super) async fn asked(
        &self,
        place: &Place,
        fill: &FillFrom,
        reference: &Reference,
        asker: Option<Uuid>,
    ) -> Result<Resolved, PullError> {
        let key = (fill.origin, place.repository.clone(), reference.clone());
        loop {
            let mut is_ours = false;
            let work = || {
                is_ours = true;
                self.asking(key.clone(), place, fill, asker)
            };
            let (answer, reasons) = self.manifests.join_or_start(key.clone(), work).await.ok_or(PullError::Busy)?;
            if !is_ours {
                trail::because(|| "another pull was asking the upstream for the same: waited with it".to_owned());
            }
            trail::take_over(&reasons);
            // A sync had to leave what is left of the budget to others; a pull is one of them.
            match answer {
                Err(PullError::OverBudget { .. }) if !is_ours && fill.priority == Priority::Pull => {}
                answer => return answer,
            }
        }
    }

    /// Asks the upstream, for all who wait, and for its own sake.
    pub(super) fn asking(
        &self,
        key: super::ManifestKey,
        place: &Place,
        fill: &FillFrom,
        asker: Option<Uuid>,
    ) -> impl Future<Output = super::Resolution> + Send + use<> {
        let (resolver, place, fill) = (self.clone(), place.clone(), fill.clone());
        Trail::of(async move {
            let answer = resolver.ask(&key, &place, &fill).await;
            // Before the flight ends, so that whoever comes then knows.
            let question = Question::Manifest(&key.2);
            resolver.refusals.learn(&place.repository, &fill, question, asker, &answer).await;
            answer
        })
    }

    /// What the records have.
    pub(super) async fn held(&self, place: &Place, reference: &Reference, trust: Trust) -> Result<Held, PullError> {
        let fill = place.fill.as_ref();
        within_limit(async {
            let Some(live) = self.repositories.live(&place.repository).await? else {
                trail::because(|| format!("there was no repository `{}`", place.repository));
                return Ok(Held::Nothing(None));
            };
            let (digest, tag, validated, revision) = match reference {
                Reference::Digest(digest) => (digest.clone(), None, None, 0),
                Reference::Tag(tag) => match self.repositories.tag(&live, tag, fill).await? {
                    Some(TagRecord { digest: Some(digest), validate_time, revision, .. }) => {
                        (digest, Some(tag), validate_time, revision)
                    }
                    Some(TagRecord { digest: None, validate_time, .. }) if self.is_just_gone(validate_time, trust) => {
                        trail::because(|| format!("the upstream had tag `{tag}` no more a moment ago"));
                        return Ok(Held::Gone);
                    }
                    Some(_) | None => {
                        trail::because(|| format!("tag `{tag}` was not known in this repository under its rule"));
                        return Ok(Held::Nothing(Some(live)));
                    }
                },
            };
            let decision = tag.map_or(Decision::Serve, |tag| self.decision(place, &live, tag, validated, trust));
            let Some(link) = self.repositories.manifest_link(&live, &digest, fill).await? else {
                trail::because(|| format!("no link to manifest `{digest}` in this repository under its rule"));
                return Ok(Held::Nothing(Some(live)));
            };
            let Some(media_type) = link.media_type.known() else { return Ok(Held::Nothing(Some(live))) };
            // A link whose content is missing is a miss, and heals.
            let Some(bytes) = self.repositories.manifest_bytes(&live, &digest, &link).await? else {
                trail::because(|| format!("manifest `{digest}` is linked, but was not in the store"));
                return Ok(Held::Nothing(Some(live)));
            };
            trail::because(|| format!("manifest `{digest}` is linked in this repository, and was in the store"));
            let resolved = Resolved {
                digest,
                media_type,
                bytes,
                outcome: Outcome::Hit,
                incarnation: Some(live.record.incarnation),
                validated,
            };
            Ok(match tag.filter(|_| decision != Decision::Serve) {
                None => Held::Fresh(resolved),
                Some(tag) => Held::Stale(Box::new(Stale { tag: tag.clone(), resolved, live, decision, revision })),
            })
        })
        .await
    }

    /// Asks the upstream, or lets another node do it.
    async fn ask(&self, key: &super::ManifestKey, place: &Place, fill: &FillFrom) -> Result<Resolved, PullError> {
        let (reference, began) = (&key.2, self.now());
        let in_vain = self.asked_in_vain(key).await;
        let (held, lease) = match in_vain {
            Some(_) => (self.held(place, reference, Trust::Rule(Some(began))).await?, None),
            None => self.coordinated(place, fill, reference, Trust::Rule(Some(began))).await?,
        };
        failpoint::hit("manifest.after_claim");
        let answer = match (held, in_vain) {
            (Held::Fresh(resolved), _) => Ok(resolved),
            (Held::Gone, _) => Err(gone(fill)),
            (Held::Nothing(_), _) => self.fetch(place, fill, reference, None).await,
            (Held::Stale(stale), None) => self.refresh(key, place, fill, *stale).await,
            (Held::Stale(stale), Some(error)) => {
                trail::because(|| "the upstream could not confirm the tag a moment ago, and was left alone".to_owned());
                self.unconfirmed(place, fill, *stale, error).await
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
    pub(super) async fn coordinated(
        &self,
        place: &Place,
        fill: &FillFrom,
        reference: &Reference,
        trust: Trust,
    ) -> Result<(Held, Option<Lease>), PullError> {
        let key = LeaseKey::reference(fill.origin, &place.repository, reference);
        let (mut lost, limit) = (None, Instant::now() + limits::OTHERS_WORK);
        loop {
            let turn = self.turn(&key, &mut lost, limit).await;
            let held = self.held(place, reference, trust).await?;
            match turn {
                Turn::Ours(lease) => return Ok((held, lease)),
                Turn::Theirs if matches!(held, Held::Fresh(_) | Held::Gone) => return Ok((held, None)),
                Turn::Theirs => {}
            }
        }
    }

    /// Fetches a manifest, verifies it, stores it and makes it visible. `known` is what a tag means, where that is known.
    pub(super) async fn fetch(
        &self,
        place: &Place,
        fill: &FillFrom,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<Resolved, PullError> {
        let tag = match reference {
            Reference::Digest(_) => None,
            Reference::Tag(tag) => Some(tag),
        };
        self.fetch_as(place, fill, reference, known, tag).await
    }

    /// Fetches a manifest, verifies it, stores it and makes it visible: by its digest, and by `tag` where there is one.
    pub(super) async fn fetch_as(
        &self,
        place: &Place,
        fill: &FillFrom,
        reference: &Reference,
        known: Option<&Digest>,
        tag: Option<&Tag>,
    ) -> Result<Resolved, PullError> {
        let _turn = self.fills.turn().await?;
        let client = fill.client();
        let question = client.manifest_known_as(&fill.repository, reference, known);
        let asked = self.now();
        let fetched = upstream::request(fill, "GET", question).await;
        let fetched = fetched.map_err(|error| upstream::failure(fill, Asked::Manifest, &error))?;
        failpoint::hit("manifest.after_fetch");
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(_) => Digest::sha256(&fetched.bytes),
        };
        let manifest = Manifest::parse(fetched.content_type.as_deref(), &fetched.bytes)
            .map_err(|error| bad_manifest(fill, &error))?;
        let verified = Verified { digest, bytes: fetched.bytes, manifest };

        let commit = self.repositories.commit_manifest(&place.repository, fill, &verified, tag.map(|tag| (tag, asked)));
        let incarnation = within_limit(commit).instrument(info_span!("fill.commit")).await.ok().flatten();
        if tag.is_none() && incarnation.is_some() {
            self.note_told(place, fill, &verified.digest).await;
        }
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
            validated: matches!(reference, Reference::Tag(_)).then(|| self.now()),
        })
    }
}

pub(super) fn bad_manifest(fill: &FillFrom, error: &ManifestError) -> PullError {
    let (rule, upstream) = (fill.rule.id.clone(), fill.source.upstream.id.clone());
    warn!(rule.name = %rule, upstream.id = %upstream, "upstream `{upstream}` delivered a bad manifest: {}", chain(error));
    PullError::BadContent { rule, upstream, what: error.to_string() }
}
