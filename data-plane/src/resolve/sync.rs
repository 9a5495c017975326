//! Syncs, which bring a tag up to date, and warming, which fetches an image before anybody pulls it.
//!
//! A sync asks the upstream under the same lease as a pull, so one question is enough for both. If the tag has moved,
//! the sync first fetches the whole new image by its digest, while the tag still means the old one. Then it replaces
//! the tag's record, unless somebody else has changed that meanwhile. So a pull before that gets the old image, which
//! is complete, or has itself asked the upstream and gets the new one like any first pull. All nodes are told to forget
//! the tag's old record. If an operator asked for the sync, it ends only when all of them have done so, or no longer
//! hold the record, so that every later pull gets the new image from each node. If the new image cannot be fetched, the
//! tag stays as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use entrepot_domain::freshness::{Unconfirmed, WhenDeleted};
use entrepot_domain::job::Synced;
use entrepot_domain::sync::{Platforms, Walk};
use entrepot_domain::{Digest, Reference, Tag};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::manifest::{Cached, bad_manifest};
use super::tag::{Stale, TagAnswer, tag_gone, unconfirmed_reason};
use super::{Blob, Resolved, Resolver, Trust};
use crate::config::limits;
use crate::control::{FillFrom, Location};
use crate::error::{Asked, PullError};
use crate::failpoint;
use crate::outcome::Outcome;
use crate::place::Place;
use crate::repository::within_limit;
use crate::trail::Trail;

/// How often a tag is checked again because somebody else has changed it.
const ROUNDS: usize = 5;
/// How often a sync waits for the question of somebody else about the same tag.
const LOOKS: usize = 20;
/// How often a blob is tried.
const TRIES: usize = 5;

/// The progress of a sync, and its limit of parallel fetches.
pub(crate) struct FetchProgress {
    /// How many bytes are cached, and how many there are, as far as that is known.
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    /// Permits to fetch a blob; a node keeps most of its fetches for pulls.
    turns: Arc<Semaphore>,
}

/// The result of checking a tag.
enum TagCheck {
    /// Its meaning was validated, just now or since the time that the caller knew of.
    Valid(Resolved),
    /// It means something else at the upstream, which was asked at `said`. The manifest is cached by its digest; the
    /// tag's record is at revision `base`.
    Moved { base: Option<i64>, to: Resolved, said: DateTime<Utc> },
    /// The upstream does not have it.
    Deleted,
}

impl FetchProgress {
    /// Nothing is cached yet; `turns` limits the fetches of this sync and others together.
    pub(crate) fn new(turns: Arc<Semaphore>) -> Self {
        Self { done_bytes: AtomicU64::new(0), total_bytes: AtomicU64::new(0), turns }
    }

    /// How many bytes are cached, and of how many.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.done_bytes.load(Ordering::Relaxed), self.total_bytes.load(Ordering::Relaxed))
    }

    fn add_total(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The cached bytes of one blob.
struct BlobProgress<'a> {
    progress: &'a FetchProgress,
    bytes: AtomicU64,
}

impl BlobProgress<'_> {
    fn set_done(&self, bytes: u64) {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        self.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.done_bytes.fetch_sub(before, Ordering::Relaxed);
    }
}

impl Resolver {
    /// Brings a tag up to date, and fetches the new image if the tag has moved.
    ///
    /// With `known`, the tag must be cached, and nothing is done if it was validated after that time. Without it, the
    /// upstream is always asked.
    pub(crate) async fn sync(
        &self,
        location: Location,
        tag: &Tag,
        known: Option<DateTime<Utc>>,
        progress: &FetchProgress,
    ) -> Result<Synced, PullError> {
        let began = self.now();
        let place = &Place::find_anew(location, &self.repositories).await?;
        let fill = place.fill().ok_or_else(|| place.unfilled(PullError::NoRule))?;
        if place.live.is_none() {
            return Err(PullError::NotFound { asked: Asked::Repository, rule: None });
        }
        let from = self.cached_digest(place, tag).await?;
        if known.is_some() && from.is_none() {
            return Err(PullError::NotFound { asked: Asked::Manifest, rule: None });
        }
        let trust = Trust::Since(known.map_or(began, |known| known + TimeDelta::milliseconds(1)));
        let platforms = match &from {
            Some(from) => self.platforms_of(place, from).await?,
            None => Platforms::All,
        };
        self.update_tag(place, fill, tag, trust, (from, &platforms), progress).await
    }

    /// Fetches an image before it is pulled: everything that the reference means now, for these platforms. The upstream
    /// is not asked about a tag that is fresh.
    pub(crate) async fn warm(
        &self,
        location: Location,
        reference: &Reference,
        platforms: &[String],
        progress: &FetchProgress,
    ) -> Result<Synced, PullError> {
        let place = &Place::find_anew(location, &self.repositories).await?;
        let fill = place.fill().ok_or_else(|| place.unfilled(PullError::NoRule))?;
        let from = match reference {
            Reference::Tag(tag) => self.cached_digest(place, tag).await?,
            Reference::Digest(digest) => {
                let held = self.read_cached(place, reference, Trust::Rule(None)).await?;
                matches!(held, Cached::Fresh(_)).then(|| digest.clone())
            }
        };
        let platforms = match (platforms, &from) {
            ([], Some(from)) => match self.platforms_of(place, from).await? {
                Platforms::These(cached) if cached.is_empty() => Platforms::All,
                platforms @ (Platforms::All | Platforms::These(_)) => platforms,
            },
            ([], None) => Platforms::All,
            (asked, _) => Platforms::These(asked.to_vec()),
        };
        match reference {
            Reference::Tag(tag) => {
                let trust = Trust::Rule(Some(self.now()));
                let synced = self.update_tag(place, fill, tag, trust, (from, &platforms), progress).await?;
                if let Synced::Unchanged { digest } = &synced {
                    self.fetch_image_by_digest(place, digest, &platforms, progress).await?;
                }
                Ok(synced)
            }
            Reference::Digest(digest) => {
                self.fetch_image_by_digest(place, digest, &platforms, progress).await?;
                Ok(match from {
                    Some(digest) => Synced::Unchanged { digest },
                    None => Synced::Moved { from: None, to: digest.clone() },
                })
            }
        }
    }

    /// Moves a tag to what it means at the upstream, once all of that is cached.
    async fn update_tag(
        &self,
        place: &Place,
        fill: &FillFrom,
        tag: &Tag,
        trust: Trust,
        (from, platforms): (Option<Digest>, &Platforms),
        progress: &FetchProgress,
    ) -> Result<Synced, PullError> {
        for _ in 0..ROUNDS {
            match self.check_tag(place, fill, tag, trust).await? {
                TagCheck::Deleted => {
                    let is_dropped = fill.rule.freshness.when_deleted == WhenDeleted::Drop;
                    return match from {
                        Some(_) => Ok(Synced::Deleted { from, is_dropped }),
                        None => Err(tag_gone(fill)),
                    };
                }
                TagCheck::Valid(resolved) if from.as_ref() == Some(&resolved.digest) => {
                    return Ok(Synced::Unchanged { digest: resolved.digest });
                }
                // A pull was faster.
                TagCheck::Valid(resolved) => {
                    self.fetch_image(fill, &resolved, platforms, progress).await?;
                    return Ok(Synced::Moved { from, to: resolved.digest });
                }
                TagCheck::Moved { base, to, said } => {
                    failpoint::hit("sync.before_content");
                    self.fetch_image(fill, &to, platforms, progress).await?;
                    if self.replace_tag(place, fill, tag, base, (&to, said)).await? {
                        info!(
                            repository.name = %place.repository, tag.name = %tag, content.digest = %to.digest,
                            "synced `{}:{tag}`, which means `{}` now", place.repository, to.digest
                        );
                        return Ok(Synced::Moved { from, to: to.digest });
                    }
                }
            }
        }
        Err(PullError::GaveUp)
    }

    /// Checks a tag. Unless it is trusted, asks the upstream, once for all callers that wait, including pulls.
    async fn check_tag(&self, place: &Place, fill: &FillFrom, tag: &Tag, trust: Trust) -> Result<TagCheck, PullError> {
        let key = (fill.origin, place.repository.clone(), Reference::Tag(tag.clone()));
        for _ in 0..LOOKS {
            let seen: SharedCheck = Arc::default();
            let work = || {
                let (resolver, place, fill, tag) = (self.clone(), place.clone(), fill.clone(), tag.clone());
                let (key, seen) = (key.clone(), seen.clone());
                Trail::of(async move { resolver.check_tag_once(&key, &place, &fill, &tag, (trust, &seen)).await })
            };
            let (_, _) = self.manifests.join_or_start(key.clone(), work).await.ok_or(PullError::GaveUp)?;
            if let Some(look) = seen.lock().take() {
                return look;
            }
            // A pull had asked already: the records tell what came of it, and whether that is new enough.
        }
        Err(PullError::GaveUp)
    }

    /// Checks a tag for a sync, which gets the result through `seen`, and for pulls that have joined, which get the
    /// returned answer.
    async fn check_tag_once(
        &self,
        key: &super::ManifestKey,
        place: &Place,
        fill: &FillFrom,
        tag: &Tag,
        (trust, seen): (Trust, &SharedCheck),
    ) -> Result<Resolved, PullError> {
        let see = |look: Result<TagCheck, PullError>| {
            *seen.lock() = Some(look);
        };
        let coordinated = self.claim_and_read(fill, &key.2, trust).await;
        let (held, lease) = match coordinated {
            Ok(coordinated) => coordinated,
            Err(error) => {
                see(Err(error.clone()));
                return Err(error);
            }
        };
        let answer = match held {
            Cached::Fresh(resolved) => {
                see(Ok(TagCheck::Valid(resolved.clone())));
                Ok(resolved)
            }
            Cached::Gone => {
                see(Ok(TagCheck::Deleted));
                Err(tag_gone(fill))
            }
            Cached::Stale(stale) => self.check_stale_tag(key, place, fill, *stale, see).await,
            Cached::Nothing => {
                let asked = self.now();
                let looked = async {
                    let base = within_limit(self.repositories.tag_revision(&place.repository, tag)).await?;
                    let to = self.fetch_by_digest(place, fill, tag, None, None).await?;
                    Ok::<_, PullError>((base, to))
                };
                match looked.await {
                    Ok((base, to)) => {
                        see(Ok(TagCheck::Moved { base, to: to.clone(), said: asked }));
                        Ok(to)
                    }
                    Err(error) => {
                        see(Err(error.clone()));
                        Err(error)
                    }
                }
            }
        };
        drop(lease);
        answer
    }

    /// Asks the upstream whether a tag still means what it meant.
    async fn check_stale_tag(
        &self,
        key: &super::ManifestKey,
        place: &Place,
        fill: &FillFrom,
        stale: Stale,
        see: impl FnOnce(Result<TagCheck, PullError>),
    ) -> Result<Resolved, PullError> {
        let said = match self.confirm_tag(fill, &stale).await {
            Ok(TagAnswer::Changed(said)) => {
                let known = said.clone().unwrap_or_else(|| stale.resolved.digest.clone());
                self.fetch_by_digest(place, fill, &stale.tag, said, Some(&known)).await
            }
            Ok(TagAnswer::Same(resolved)) => Ok(resolved),
            Err(error) => Err(error),
        };
        match said {
            // An upstream that does not answer HEAD shows by GET that nothing has changed.
            Ok(same) if same.digest == stale.resolved.digest => {
                let is_noted = same.outcome == Outcome::Revalidated;
                let resolved = if is_noted { same } else { self.note_confirmed(fill, &stale).await };
                self.unconfirmed.invalidate(key).await;
                see(Ok(TagCheck::Valid(resolved.clone())));
                Ok(resolved)
            }
            Ok(to) => {
                let (base, said) = (Some(stale.revision), stale.read_time);
                see(Ok(TagCheck::Moved { base, to: to.clone(), said }));
                Ok(to)
            }
            // It tells nothing of the upstream, which pulls may ask.
            Err(error @ PullError::OverBudget { .. }) => {
                see(Err(error.clone()));
                Err(error)
            }
            Err(error) => {
                match unconfirmed_reason(&error) {
                    Unconfirmed::Deleted => see(Ok(TagCheck::Deleted)),
                    Unconfirmed::Denied | Unconfirmed::Away => see(Err(error.clone())),
                }
                self.remember_failure(key, fill, stale, error).await
            }
        }
    }

    /// The manifest that a tag means at the upstream, cached by its digest. It is fetched unless it is cached already.
    async fn fetch_by_digest(
        &self,
        place: &Place,
        fill: &FillFrom,
        tag: &Tag,
        said: Option<Digest>,
        known: Option<&Digest>,
    ) -> Result<Resolved, PullError> {
        if let Some(digest) = said
            && let Cached::Fresh(held) = self.read_cached(place, &Reference::Digest(digest), Trust::Rule(None)).await?
        {
            return Ok(Resolved { outcome: Outcome::Revalidated, validated: Some(self.now()), ..held });
        }
        self.fetch_as(fill, &Reference::Tag(tag.clone()), known, None).await
    }

    /// Replaces a tag's record, unless somebody else has. Returns whether it did.
    async fn replace_tag(
        &self,
        place: &Place,
        fill: &FillFrom,
        tag: &Tag,
        base: Option<i64>,
        (to, said): (&Resolved, DateTime<Utc>),
    ) -> Result<bool, PullError> {
        let incarnation = to.incarnation.ok_or(PullError::StoreAway)?;
        within_limit(async {
            let live = self.repositories.live(&place.repository).await?;
            match live.filter(|live| live.record.incarnation == incarnation) {
                Some(live) => self.repositories.move_tag(&live, fill, tag, base, (&to.digest, said)).await,
                None => Ok(false),
            }
        })
        .await
    }

    /// What a tag means here, if it is known.
    async fn cached_digest(&self, place: &Place, tag: &Tag) -> Result<Option<Digest>, PullError> {
        let Some(live) = &place.live else { return Ok(None) };
        let record = within_limit(self.repositories.tag(live, tag, place.fill())).await?;
        Ok(record.and_then(|record| record.digest))
    }

    /// The platforms for which an index is cached; all of them if this is no index.
    async fn platforms_of(&self, place: &Place, digest: &Digest) -> Result<Platforms, PullError> {
        let held = self.read_cached(place, &Reference::Digest(digest.clone()), Trust::Rule(None)).await?;
        let Cached::Fresh(resolved) = held else { return Ok(Platforms::All) };
        let Ok(manifest) = self.parse(&resolved) else { return Ok(Platforms::All) };
        if !manifest.media_type.is_index() {
            return Ok(Platforms::All);
        }
        let Some(live) = &place.live else { return Ok(Platforms::All) };
        let mut cached = Vec::new();
        for child in &manifest.children {
            let (Some(digest), Some(platform)) = (&child.digest, &child.platform) else { continue };
            if within_limit(self.repositories.manifest_link(live, digest, place.fill())).await?.is_some() {
                cached.push(platform.clone());
            }
        }
        Ok(Platforms::These(cached))
    }

    /// Fetches everything of an image that is not cached.
    async fn fetch_image_by_digest(
        &self,
        place: &Place,
        digest: &Digest,
        platforms: &Platforms,
        progress: &FetchProgress,
    ) -> Result<(), PullError> {
        let fill = place.fill().ok_or_else(|| place.unfilled(PullError::NoRule))?;
        let resolved = self.manifest(place, &Reference::Digest(digest.clone())).await?;
        self.fetch_image(fill, &resolved, platforms, progress).await
    }

    /// Fetches the parts of an image that are not cached: of an index, the images for the platforms, each with its
    /// configuration and layers.
    async fn fetch_image(
        &self,
        fill: &FillFrom,
        image: &Resolved,
        platforms: &Platforms,
        progress: &FetchProgress,
    ) -> Result<(), PullError> {
        // The first manifest may have created the repository.
        let place = &Place::reread(fill, &self.repositories).await?;
        let mut walk = Walk::begin(image.digest.clone(), platforms.clone(), limits::AHEAD);
        while let Some(visit) = walk.next_manifest() {
            let resolved = match visit.digest == image.digest {
                true => image.clone(),
                false => Box::pin(self.manifest(place, &Reference::Digest(visit.digest.clone()))).await?,
            };
            let manifest = self.parse(&resolved).map_err(|error| bad_manifest(fill, &error))?;
            let size_bytes = resolved.bytes.len() as u64;
            progress.add_total(size_bytes);
            progress.done_bytes.fetch_add(size_bytes, Ordering::Relaxed);
            progress.add_total(walk.note(&visit, size_bytes, &manifest));
        }
        if walk.left_out_count() > 0 {
            warn!(
                repository.name = %place.repository, content.digest = %image.digest,
                "`{}` names more than is fetched progress: {} parts were left out", image.digest, walk.left_out_count()
            );
        }
        let fetches = walk.into_blobs().map(|digest| async move { self.fetch_blob(place, &digest, progress).await });
        stream::iter(fetches).buffer_unordered(limits::JOB_BLOBS).try_collect::<()>().await
    }

    /// Waits until a blob is cached.
    async fn fetch_blob(&self, place: &Place, digest: &Digest, progress: &FetchProgress) -> Result<(), PullError> {
        let counted = BlobProgress { progress, bytes: AtomicU64::new(0) };
        let turn = progress.turns.acquire().await;
        let _turn = turn.map_err(|_| PullError::GaveUp)?;
        let (mut failure, mut has_landed) = (PullError::GaveUp, false);
        for _ in 0..TRIES {
            let landed = match Box::pin(self.blob(place, digest)).await {
                Ok(Blob::Stored { ready, .. }) => {
                    counted.set_done(ready.size_bytes());
                    return Ok(());
                }
                // What has landed and is not stored will not be stored the next time.
                Ok(Blob::Landing(_)) if has_landed => return Err(PullError::StoreAway),
                Ok(Blob::Landing(landed)) => landed.wait(|bytes| counted.set_done(bytes)).await,
                Ok(Blob::Known { .. }) => Err(PullError::GaveUp),
                Err(error) => Err(error),
            };
            match landed {
                Ok(()) => has_landed = true,
                // What an index lists under a type that is not known may be a manifest.
                Err(error @ PullError::NotFound { .. }) => {
                    let manifest = self.manifest(place, &Reference::Digest(digest.clone())).await.map_err(|_| error)?;
                    counted.set_done(manifest.bytes.len() as u64);
                    return Ok(());
                }
                // Pulls are first.
                Err(error @ (PullError::Busy | PullError::GaveUp)) => failure = error,
                Err(error) => return Err(error),
            }
            counted.set_done(0);
        }
        Err(failure)
    }
}

/// Where a check leaves its result for the sync that has asked for it.
type SharedCheck = Arc<Mutex<Option<Result<TagCheck, PullError>>>>;
