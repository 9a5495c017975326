//! Manifests: by digest, which never changes, and by tag, which the upstream must confirm from time to time.

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

use super::leadership::Leadership;
use super::refusals::Question;
use super::tag::{Stale, tag_gone};
use super::{Content, Resolver, Trust, Want};
use crate::auth::Asker;
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::failpoint;
use crate::lease::{Lease, LeaseKey};
use crate::outcome::Outcome;
use crate::place::{Kind, Place};
use crate::repository::{Verified, within_limit};
use crate::trail::{self, Note, Trail};
use crate::upstream;

/// A manifest with its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    pub(crate) media_type: MediaType,
    pub(crate) bytes: Bytes,
    pub(crate) outcome: Outcome,
    /// The incarnation of its repository; `None` if it was not stored.
    pub(crate) incarnation: Option<Uuid>,
    /// When the upstream last confirmed the tag.
    pub(crate) validated: Option<DateTime<Utc>>,
}

/// What the records have for a reference.
pub(crate) enum Cached {
    /// Everything that is needed.
    Fresh(Resolved),
    /// A tag that the upstream should confirm.
    Stale(Box<Stale>),
    /// A tag that was dropped because the upstream recently reported it as gone.
    Gone,
    Nothing,
}

impl Resolver {
    /// The manifest that `reference` means in `place` now, on behalf of the node itself.
    pub(super) async fn manifest(&self, place: &Place, reference: &Reference) -> Result<Resolved, PullError> {
        let cached = self.read_cached(place, reference, Trust::Rule(None)).await?;
        match self.fill_manifest(place, reference, cached, Want::Bytes, &Asker::NODE).await? {
            Content::Manifest(manifest) => Ok(manifest),
            Content::ManifestHead(_) | Content::Blob(_) => Err(PullError::Internal),
        }
    }

    /// What is served from the records, or in place of what they lack.
    ///
    /// If the caller does not want the bytes, a missing manifest is not fetched: many clients look at tags that they
    /// never pull, and upstreams count GETs.
    pub(super) async fn fill_manifest(
        &self,
        place: &Place,
        reference: &Reference,
        cached: Cached,
        want: Want,
        asker: &Asker,
    ) -> Result<Content, PullError> {
        let manifest = match (cached, place.fill()) {
            (Cached::Fresh(manifest), _) => Ok(manifest),
            (Cached::Stale(stale), None) => {
                if matches!(place.kind, Kind::Unknown) {
                    trail::note(Note::NoRuleForContent);
                }
                Ok(stale.resolved)
            }
            (Cached::Gone | Cached::Nothing, None) if place.live.is_some() => {
                Err(place.unfilled(PullError::NotFound { asked: Asked::Manifest, rule: None }))
            }
            (Cached::Gone | Cached::Nothing, None) => Err(place.unfilled(PullError::NoRule)),
            (Cached::Gone, Some(fill)) => Err(tag_gone(fill)),
            (Cached::Stale(stale), Some(fill)) => match asker.may_fill() {
                // The rule says what is served while the upstream does not confirm the tag.
                Err(denied) => self.apply_remedy(fill, *stale, denied).await,
                Ok(()) if stale.decision == Decision::ServeThenAsk => {
                    self.serve_then_ask(fill, *stale, asker.principal).await
                }
                Ok(()) => self.ask_upstream(fill, reference, asker.principal).await,
            },
            (Cached::Nothing, Some(fill)) => {
                asker.may_fill()?;
                self.refusals.check(fill, Question::Manifest(reference)).await?;
                if want == Want::Presence
                    && let Some(head) = self.head_from_upstream(fill, reference, asker.principal).await?
                {
                    return Ok(Content::ManifestHead(head));
                }
                self.ask_upstream(fill, reference, asker.principal).await
            }
        };
        manifest.map(Content::Manifest)
    }

    /// The result of asking the upstream, which is done once for all callers that wait.
    pub(super) async fn ask_upstream(
        &self,
        fill: &FillFrom,
        reference: &Reference,
        asker: Option<Uuid>,
    ) -> Result<Resolved, PullError> {
        let key = (fill.origin, fill.name.clone(), reference.clone());
        // What others have asked for before something was deleted tells nothing of what is there since.
        let since = self.repositories.memory.believed_since(&fill.name);
        let accepts = |(answer, _): &super::Resolution, begun| answer.is_err() || Some(begun) >= since;
        loop {
            let mut is_ours = false;
            let work = || {
                is_ours = true;
                self.flight(key.clone(), fill, asker)
            };
            let flown = self.manifests.join_or_start_if(key.clone(), accepts, work).await;
            let (answer, reasons) = flown.ok_or(PullError::GaveUp)?;
            if !is_ours {
                trail::note(Note::WaitedForPull);
            }
            trail::take_over(&reasons);
            match answer {
                // A sync had to leave the rest of the budget to others; a pull is one of these others.
                Err(PullError::OverBudget { .. }) if !is_ours && fill.priority == Priority::Pull => {}
                // The caller that started it has come another way, perhaps in a circle.
                Err(error) if !is_ours && error.is_loop() => {}
                answer => return answer,
            }
        }
    }

    /// Asks the upstream for all callers that wait, and continues when they have gone.
    pub(super) fn flight(
        &self,
        key: super::ManifestKey,
        fill: &FillFrom,
        asker: Option<Uuid>,
    ) -> impl Future<Output = super::Resolution> + Send + use<> {
        let (resolver, fill) = (self.clone(), fill.clone());
        Trail::of(async move {
            let answer = resolver.resolve_anew(&key, &fill).await;
            // Before the flight ends, so that later callers know.
            let question = Question::Manifest(&key.2);
            resolver.refusals.learn(&fill, question, asker, &answer).await;
            answer
        })
    }

    /// What the records have.
    pub(super) async fn read_cached(
        &self,
        place: &Place,
        reference: &Reference,
        trust: Trust,
    ) -> Result<Cached, PullError> {
        let fill = place.fill();
        within_limit(async {
            let Some(live) = &place.live else {
                trail::note(Note::NoRepository(place.repository.clone()));
                return Ok(Cached::Nothing);
            };
            let read_time = self.now();
            let (digest, tag, validated, revision) = match reference {
                Reference::Digest(digest) => (digest.clone(), None, None, 0),
                Reference::Tag(tag) => match self.repositories.tag(live, tag, fill).await? {
                    Some(TagRecord { digest: Some(digest), validate_time, revision, .. }) => {
                        (digest, Some(tag), validate_time, revision)
                    }
                    Some(TagRecord { digest: None, validate_time, .. }) if self.is_just_gone(validate_time, trust) => {
                        trail::note(Note::TagJustGone(tag.clone()));
                        return Ok(Cached::Gone);
                    }
                    Some(_) | None => {
                        trail::note(Note::TagUnknown(tag.clone()));
                        return Ok(Cached::Nothing);
                    }
                },
            };
            let decision = tag.map_or(Decision::Serve, |tag| self.decision(place, live, tag, validated, trust));
            let Some(link) = self.repositories.manifest_link(live, &digest, fill).await? else {
                trail::note(Note::ManifestUnlinked(digest.clone()));
                return Ok(Cached::Nothing);
            };
            // A link whose content is missing is a miss, and heals.
            let Some(bytes) = self.repositories.manifest_bytes(live, &digest, &link).await? else {
                trail::note(Note::ManifestLost(digest.clone()));
                return Ok(Cached::Nothing);
            };
            if let Some(fill) = fill {
                let blobs = link.config.iter().chain(&link.layers);
                self.fills.promises().note(fill, blobs.map(|blob| (&blob.digest, blob.size_bytes)));
            }
            trail::note(Note::ManifestHere(digest.clone()));
            let resolved = Resolved {
                digest,
                media_type: link.media_type,
                bytes,
                outcome: Outcome::Hit,
                incarnation: Some(live.record.incarnation),
                validated,
            };
            Ok(match tag.filter(|_| decision != Decision::Serve) {
                None => Cached::Fresh(resolved),
                Some(tag) => {
                    let (tag, live) = (tag.clone(), live.clone());
                    Cached::Stale(Box::new(Stale { tag, resolved, live, decision, revision, read_time }))
                }
            })
        })
        .await
    }

    /// Asks the upstream, or lets another node do so.
    async fn resolve_anew(&self, key: &super::ManifestKey, fill: &FillFrom) -> Result<Resolved, PullError> {
        let (reference, began) = (&key.2, self.now());
        let in_vain = self.recent_failure(key).await;
        let (held, lease) = match in_vain {
            Some(_) => {
                let place = self.reread(fill).await?;
                (self.read_cached(&place, reference, Trust::Rule(Some(began))).await?, None)
            }
            None => self.claim_and_read(fill, reference, Trust::Rule(Some(began))).await?,
        };
        failpoint::hit("manifest.after_claim");
        let answer = match (held, in_vain) {
            (Cached::Fresh(resolved), _) => Ok(resolved),
            (Cached::Gone, _) => Err(tag_gone(fill)),
            (Cached::Nothing, _) => self.fetch(fill, reference, None).await,
            (Cached::Stale(stale), None) => self.refresh(key, fill, *stale).await,
            (Cached::Stale(stale), Some(error)) => {
                trail::note(Note::UpstreamLeftAlone);
                self.apply_remedy(fill, *stale, error).await
            }
        };
        failpoint::hit("manifest.before_release");
        drop(lease);
        answer
    }

    /// What the records have when it is this node's turn to ask the upstream, or when there is nothing left to ask.
    ///
    /// Of all nodes that want the same, one gets the lease. It checks the records afterwards, since another may have
    /// been faster. The others wait until it has ended, and read what it has written; if it was lost or has failed, one
    /// of them takes its place.
    pub(super) async fn claim_and_read(
        &self,
        fill: &FillFrom,
        reference: &Reference,
        trust: Trust,
    ) -> Result<(Cached, Option<Lease>), PullError> {
        let key = LeaseKey::reference(fill.origin, &fill.name, reference);
        let (mut lost, limit) = (None, Instant::now() + limits::OTHERS_WORK);
        loop {
            let leadership = self.lead_or_wait(&key, &mut lost, limit).await;
            let place = self.reread(fill).await?;
            let held = self.read_cached(&place, reference, trust).await?;
            match leadership {
                Leadership::Ours(lease) => return Ok((held, lease)),
                Leadership::Theirs if matches!(held, Cached::Fresh(_) | Cached::Gone) => return Ok((held, None)),
                Leadership::Theirs => {}
            }
        }
    }

    /// Fetches a manifest, verifies it, stores it and makes it visible. `known` is the tag's digest, if known.
    pub(super) async fn fetch(
        &self,
        fill: &FillFrom,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<Resolved, PullError> {
        let tag = match reference {
            Reference::Digest(_) => None,
            Reference::Tag(tag) => Some(tag),
        };
        self.fetch_as(fill, reference, known, tag).await
    }

    /// Fetches a manifest, verifies it, stores it and makes it visible: by digest, and under `tag` if given.
    pub(super) async fn fetch_as(
        &self,
        fill: &FillFrom,
        reference: &Reference,
        known: Option<&Digest>,
        tag: Option<&Tag>,
    ) -> Result<Resolved, PullError> {
        let _turn = self.fills.manifest_turn(fill).await?;
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
            .map_err(|error| bad_manifest(fill, &error))?
            .with_first_children(self.index_children);
        let blobs = manifest.config.iter().chain(&manifest.layers);
        self.fills.promises().note(fill, blobs.filter_map(|blob| Some((blob.digest.as_ref()?, blob.size_bytes))));
        let verified = Verified { digest, bytes: fetched.bytes, manifest };

        let commit = self.repositories.commit_manifest(&fill.name, fill, &verified, (tag, asked));
        let committed = within_limit(commit).instrument(info_span!("fill.commit")).await;
        // The client gets the verified manifest in any case.
        let incarnation = committed.inspect_err(|_| self.fills.metrics().commit_failed("manifest")).ok().flatten();
        if tag.is_none() && incarnation.is_some() {
            self.note_tag_of_head(fill, &verified.digest).await;
        }
        info!(
            repository.name = %fill.name, content.digest = %verified.digest, rule.name = %fill.rule.id,
            size_bytes = verified.bytes.len(), stored = incarnation.is_some(),
            "fetched manifest `{}` of `{}`", verified.digest, fill.name
        );
        let upstream = fill.source.upstream.id.clone();
        let is_stored = incarnation.is_some();
        trail::note(Note::Fetched { upstream, repository: fill.repository.clone(), is_stored });
        Ok(Resolved {
            digest: verified.digest,
            media_type: verified.manifest.media_type,
            bytes: verified.bytes,
            // Readers get verified bytes even if the store does not accept them.
            outcome: if incarnation.is_some() { Outcome::Miss } else { Outcome::Bypass },
            incarnation,
            validated: matches!(reference, Reference::Tag(_)).then_some(asked),
        })
    }
}

impl Resolver {
    /// Parses a manifest that was verified before; of an index, only as much as is linked.
    pub(super) fn parse(&self, resolved: &Resolved) -> Result<Manifest, ManifestError> {
        let manifest = Manifest::parse(Some(resolved.media_type.as_str()), &resolved.bytes)?;
        Ok(manifest.with_first_children(self.index_children))
    }
}

pub(super) fn bad_manifest(fill: &FillFrom, error: &ManifestError) -> PullError {
    let (rule, upstream) = (fill.rule.id.clone(), fill.source.upstream.id.clone());
    warn!(rule.name = %rule, upstream.id = %upstream, "upstream `{upstream}` delivered a bad manifest: {}", chain(error));
    PullError::BadContent { rule, upstream, what: error.to_string() }
}
