//! HEAD requests for manifests that are not here: the upstream is asked by HEAD, and nothing is fetched.
//!
//! Many clients look at a tag by HEAD and then pull its manifest by digest. That pull makes the tag known here, so that
//! the next pull finds it, even without its upstream.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::digest::Algorithm;
use entrepot_domain::{Digest, MediaType, Reference, RepositoryName, Tag, manifest};
use entrepot_runtime::Tasks;
use moka::future::Cache;
use tokio::sync::Semaphore;
use tracing::warn;
use uuid::Uuid;

use super::refusals::Question;
use super::{ManifestKey, Resolver};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::flight::Flights;
use crate::repository::{Live, within_limit};
use crate::trail::{self, Note};
use crate::upstream;

/// What an upstream says about a manifest. Nothing of it is verified; a pull is.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamHead {
    pub(crate) digest: Digest,
    pub(crate) media_type: MediaType,
    pub(crate) size_bytes: u64,
    /// When the upstream was asked.
    at: DateTime<Utc>,
}

/// The current HEAD requests. Clones share them.
#[derive(Clone)]
pub(super) struct Heads {
    flights: Arc<Flights<ManifestKey, Result<Option<UpstreamHead>, PullError>>>,
    /// Tags that were looked at, by what they mean: the origin, the repository and the digest.
    tags: Cache<(Uuid, RepositoryName, Digest), (Tag, DateTime<Utc>)>,
    /// Tags that become known as soon as another node has pulled their manifest.
    watched: Arc<Flights<ManifestKey, ()>>,
    room: Arc<Semaphore>,
    tasks: Tasks,
}

impl Heads {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self {
            flights: Arc::new(Flights::new(tasks.clone())),
            tags: Cache::builder().max_capacity(limits::TOLD_TAGS).time_to_live(limits::TOLD).build(),
            watched: Arc::new(Flights::new(tasks.clone())),
            room: Arc::new(Semaphore::new(limits::TOLD_WATCHED)),
            tasks,
        }
    }
}

impl Resolver {
    /// What the upstream says about a manifest that is not here, asked once for all callers; `None` if it does not tell
    /// everything that clients need.
    pub(super) async fn head_from_upstream(
        &self,
        fill: &FillFrom,
        reference: &Reference,
        asker: Option<Uuid>,
    ) -> Result<Option<UpstreamHead>, PullError> {
        let key = (fill.origin, fill.name.clone(), reference.clone());
        let (resolver, fill) = (self.clone(), fill.clone());
        let work_key = key.clone();
        let work = || async move {
            let answer = resolver.request_head(&fill, &work_key.2).await;
            let question = Question::Manifest(&work_key.2);
            resolver.refusals.learn(&fill, question, asker, &answer).await;
            if let (Ok(Some(told)), Reference::Tag(tag)) = (&answer, &work_key.2) {
                resolver.remember_head(&work_key, &fill, tag, told).await;
            }
            answer
        };
        let since = self.repositories.memory.believed_since(&key.1);
        let accepts = |told: &Result<_, PullError>, begun| told.is_err() || Some(begun) >= since;
        let told = self.heads.flights.join_or_start_if(key, accepts, work).await.ok_or(PullError::GaveUp)??;
        let note = told.as_ref().map(|told| Note::HeadSays(told.digest.clone()));
        trail::note(note.unwrap_or(Note::HeadSaysTooLittle));
        Ok(told)
    }

    async fn request_head(&self, fill: &FillFrom, reference: &Reference) -> Result<Option<UpstreamHead>, PullError> {
        let client = fill.pull_client();
        // Read before the request is sent, so that a deletion while the answer is on its way counts as newer.
        let at = self.now();
        let question = client.describe_manifest(&fill.repository, reference);
        let said = upstream::request(fill, "HEAD", question)
            .await
            .map_err(|error| upstream::failure(fill, Asked::Manifest, &error))?;
        let digest = match reference {
            // Whatever the upstream says, the content will be verified against this digest.
            Reference::Digest(digest) => Some(digest.clone()),
            // The answer for a tag has the digest that its manifest will get here.
            Reference::Tag(_) => said.digest.filter(|digest| digest.algorithm() == Algorithm::Sha256),
        };
        // An impossible size is not passed on: a GET will show the right one.
        let size_bytes = said.size_bytes.filter(|size| (1..=manifest::MAX_BYTES as u64).contains(size));
        let (Some(digest), Some(media_type), Some(size_bytes)) = (digest, said.media_type, size_bytes) else {
            return Ok(None);
        };
        Ok(Some(UpstreamHead { digest, media_type, size_bytes, at }))
    }

    /// Makes a tag known at once if its manifest is here, or else when it comes.
    async fn remember_head(&self, key: &ManifestKey, fill: &FillFrom, tag: &Tag, told: &UpstreamHead) {
        let by_digest = (key.0, key.1.clone(), told.digest.clone());
        self.heads.tags.insert(by_digest.clone(), (tag.clone(), told.at)).await;
        // Checked after the tag was remembered: a manifest that is pulled meanwhile is found here, or makes the tag
        // known itself.
        if self.note_tag_if_cached(&key.1, fill, tag, told).await {
            self.heads.tags.invalidate(&by_digest).await;
            return;
        }
        if !self.fills.leases().are_shared() {
            return;
        }
        let Ok(room) = self.heads.room.clone().try_acquire_owned() else { return };
        let (resolver, fill, tag, told) = (self.clone(), fill.clone(), tag.clone(), told.clone());
        let (name, stopping) = (key.1.clone(), self.heads.tasks.stopping());
        self.heads.watched.start(key.clone(), || async move {
            let _room = room;
            for pause in limits::TOLD_LOOKS {
                // A stopping node does not wait for something that may never come.
                if stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
                if resolver.note_tag_if_cached(&name, &fill, &tag, &told).await {
                    return;
                }
            }
        });
    }

    /// If a tag with this digest was looked at before, makes it known.
    pub(super) async fn note_tag_of_head(&self, fill: &FillFrom, digest: &Digest) {
        let key = (fill.origin, fill.name.clone(), digest.clone());
        let Some((tag, at)) = self.heads.tags.remove(&key).await else { return };
        if let Ok(Some(live)) = within_limit(self.repositories.live(&fill.name)).await {
            self.note_tag_if_linked(&live, fill, &tag, (digest, at)).await;
        }
    }

    /// Makes a tag known, if its repository and its manifest are here.
    async fn note_tag_if_cached(&self, name: &RepositoryName, fill: &FillFrom, tag: &Tag, told: &UpstreamHead) -> bool {
        match within_limit(self.repositories.live(name)).await {
            Ok(Some(live)) => self.note_tag_if_linked(&live, fill, tag, (&told.digest, told.at)).await,
            Ok(None) | Err(_) => false,
        }
    }

    /// Makes a tag known, if its manifest is here. If it is pulled later, that pull does it.
    async fn note_tag_if_linked(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        (digest, at): (&Digest, DateTime<Utc>),
    ) -> bool {
        let note = async {
            if self.repositories.manifest_link(live, digest, Some(fill)).await?.is_none() {
                return Ok(false);
            }
            self.repositories.note_tag(live, fill, tag, digest, at).await?;
            Ok(true)
        };
        let noted = within_limit(note).await;
        if let Err(error) = &noted {
            warn!(repository.name = %live.name, "`{}:{tag}` could not be noted: {error}", live.name);
        }
        noted.unwrap_or(false)
    }
}
