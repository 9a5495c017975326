//! Looking at a manifest that is not here: its upstream is asked by HEAD, and nothing is fetched.
//!
//! Many clients look at a tag and then pull what it means by its digest. The tag is noted when they do, so that the next
//! pull finds it, and finds it without its upstream, too.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, MediaType, Reference, RepositoryName, Tag};
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

/// What an upstream says of a manifest. Nothing of it is verified: what is pulled is.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamHead {
    pub(crate) digest: Digest,
    pub(crate) media_type: MediaType,
    pub(crate) size_bytes: u64,
    /// When it said so.
    at: DateTime<Utc>,
}

/// What is being looked at. Clones share it.
#[derive(Clone)]
pub(super) struct Heads {
    flights: Arc<Flights<ManifestKey, Result<Option<UpstreamHead>, PullError>>>,
    /// Tags that were looked at, by what they mean: the origin, the repository and the digest.
    tags: Cache<(Uuid, RepositoryName, Digest), (Tag, DateTime<Utc>)>,
    /// Tags that are noted as soon as another node has pulled what they mean.
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
    /// What the upstream says of a manifest that is not here, once for all who ask; `None` if it does not say all that
    /// clients want to know.
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
        let told = self.heads.flights.join_or_start(key, work).await.ok_or(PullError::GaveUp)??;
        let note = told.as_ref().map(|told| Note::HeadSays(told.digest.clone()));
        trail::note(note.unwrap_or(Note::HeadSaysTooLittle));
        Ok(told)
    }

    async fn request_head(&self, fill: &FillFrom, reference: &Reference) -> Result<Option<UpstreamHead>, PullError> {
        let question = fill.source.client.describe_manifest(&fill.repository, reference);
        let said = upstream::request(fill, "HEAD", question)
            .await
            .map_err(|error| upstream::failure(fill, Asked::Manifest, &error))?;
        let digest = match reference {
            // Whatever it calls it: this is what it will be verified against.
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => said.digest,
        };
        let (Some(digest), Some(media_type), Some(size_bytes)) = (digest, said.media_type, said.size_bytes) else {
            return Ok(None);
        };
        Ok(Some(UpstreamHead { digest, media_type, size_bytes, at: self.now() }))
    }

    /// Notes a tag at once if what it means is here, or else when it comes.
    async fn remember_head(&self, key: &ManifestKey, fill: &FillFrom, tag: &Tag, told: &UpstreamHead) {
        let by_digest = (key.0, key.1.clone(), told.digest.clone());
        self.heads.tags.insert(by_digest.clone(), (tag.clone(), told.at)).await;
        // Looked for after that: what is pulled meanwhile is found here, or notes the tag itself.
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
                // A node that stops does not wait for what may never come.
                if stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
                if resolver.note_tag_if_cached(&name, &fill, &tag, &told).await {
                    return;
                }
            }
        });
    }

    /// Notes the tag that was looked at before its manifest was pulled by digest, if one was.
    pub(super) async fn note_tag_of_head(&self, fill: &FillFrom, digest: &Digest) {
        let key = (fill.origin, fill.name.clone(), digest.clone());
        let Some((tag, at)) = self.heads.tags.remove(&key).await else { return };
        if let Ok(Some(live)) = within_limit(self.repositories.live(&fill.name)).await {
            self.note_tag_if_linked(&live, fill, &tag, (digest, at)).await;
        }
    }

    /// Notes what a tag means, if its repository and its manifest are here.
    async fn note_tag_if_cached(&self, name: &RepositoryName, fill: &FillFrom, tag: &Tag, told: &UpstreamHead) -> bool {
        match within_limit(self.repositories.live(name)).await {
            Ok(Some(live)) => self.note_tag_if_linked(&live, fill, tag, (&told.digest, told.at)).await,
            Ok(None) | Err(_) => false,
        }
    }

    /// Notes what a tag means, if its manifest is here. Whoever comes later notes it otherwise.
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
