//! Blobs: known bytes are no permission. A repository shows a blob that it links, or that its upstream has just
//! confirmed for it.

use entrepot_domain::Digest;
use entrepot_domain::manifest::platform_of_config;
use entrepot_records::Content;
use entrepot_store::Key;
use tracing::warn;
use uuid::Uuid;

use super::Resolver;
use super::refusals::Question;
use crate::control::{FillFrom, Place};
use crate::error::{Asked, PullError};
use crate::fill::{Landed, Landing};
use crate::outcome::Outcome;
use crate::repository::within_limit;
use crate::trail;
use crate::upstream;

/// The largest blob that is looked at for being an image's configuration.
const CONFIG_BYTES: u64 = 1024 * 1024;
/// How often a blob is looked for anew because its fill found it in the store.
const LOOKS: usize = 3;
/// How often, besides, because the upstream refused the repository that its fill was begun for.
const REFUSALS: usize = 100;

/// A blob, ready to be served.
pub(crate) enum Blob {
    /// In the store.
    Stored {
        /// The object that holds it.
        object: Key,
        /// Its size.
        size_bytes: u64,
        /// How it came to be served.
        outcome: Outcome,
    },
    /// On its way from the upstream.
    Landing(Landed),
    /// At the upstream, where only its presence was asked for.
    Known {
        /// Its size, if the upstream says it.
        size_bytes: Option<u64>,
    },
}

/// What a client wants of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Its bytes.
    Bytes,
    /// To know that it is there, and how large.
    Presence,
}

impl Resolver {
    /// The blob `digest`, as `place` may show it.
    pub(crate) async fn blob(
        &self,
        place: &Place,
        digest: &Digest,
        want: Want,
        asker: Option<Uuid>,
    ) -> Result<Blob, PullError> {
        if let Some(stored) = self.linked(place, digest).await? {
            return Ok(stored);
        }
        let fill = place.fill.as_ref();
        let fill = fill.ok_or_else(|| place.unfilled(PullError::NotFound { asked: Asked::Blob, rule: None }))?;
        let question = Question::Blob(digest);
        self.refusals.remembered(&place.repository, fill, question).await?;
        let answer = match want {
            Want::Presence => {
                trail::because(|| "only its presence was asked for, so the upstream was asked by HEAD".to_owned());
                self.presence(fill, digest).await
            }
            Want::Bytes => self.unlinked(place, fill, digest).await,
        };
        self.refusals.learn(&place.repository, fill, question, asker, &answer).await;
        answer
    }

    /// A blob that the repository does not link yet: from where it is, if the upstream has it there, too.
    async fn unlinked(&self, place: &Place, fill: &FillFrom, digest: &Digest) -> Result<Blob, PullError> {
        let mut looks = 0..LOOKS;
        let mut refusals = 0..REFUSALS;
        while looks.next().is_some() {
            let landing = match self.fills.running(fill.origin, digest) {
                Some(landing) => {
                    let about = landing.about();
                    let age = trail::ago(about.began, self.now());
                    trail::because(|| format!("joined the fill that was begun {age} ago for `{}`", about.repository));
                    landing
                }
                None => {
                    if let Some(stored) = self.permitted(place, fill, digest).await? {
                        return Ok(stored);
                    }
                    let upstream = &fill.source.upstream.id;
                    trail::because(|| format!("filled from upstream `{upstream}`, repository `{}`", fill.repository));
                    self.fills.join_or_start(place, fill, digest)
                }
            };
            if let Some(stored) = self.confirm(&landing, place, fill, digest).await? {
                return Ok(stored);
            }
            match landing.head().await {
                Ok(Some(landed)) => {
                    if let Some(leader) = &landed.leader {
                        trail::because(|| format!("it came by way of node `{leader}`, which was fetching it"));
                    }
                    return Ok(Blob::Landing(landed));
                }
                // The fill found it in the store: look there.
                Ok(None) => {
                    trail::because(|| "the fill found it in the store: it had come meanwhile".to_owned());
                    if let Some(stored) = self.linked(place, digest).await? {
                        return Ok(stored);
                    }
                }
                // The upstream refuses the repository that the fill was begun for, which is not ours.
                Err(error) if error.is_refusal() && !landing.is_begun_for(&place.repository) => {
                    if refusals.next().is_some() {
                        looks = 0..LOOKS;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(PullError::Busy)
    }

    /// The blob, if the repository links it and the bytes are there.
    async fn linked(&self, place: &Place, digest: &Digest) -> Result<Option<Blob>, PullError> {
        let fill = place.fill.as_ref();
        within_limit(async {
            let Some(live) = self.repositories.live(&place.repository).await? else {
                trail::because(|| format!("there was no repository `{}`", place.repository));
                return Ok(None);
            };
            let Some(link) = self.repositories.blob_link(&live, digest, fill).await? else {
                trail::because(|| "no link to this digest in this repository under its rule".to_owned());
                return Ok(None);
            };
            // A link whose content is missing is a miss, and heals.
            let content = self.repositories.blob_content(&live, digest, &link).await?;
            let found = if content.is_some() { "and was in the store" } else { "but was not in the store" };
            trail::because(|| format!("the blob is linked in this repository, {found}"));
            Ok(content.map(|content| stored(content, Outcome::Hit)))
        })
        .await
    }

    /// Asks the upstream whether its repository has the blob, for a client that wants no bytes.
    async fn presence(&self, fill: &FillFrom, digest: &Digest) -> Result<Blob, PullError> {
        let size = upstream::request(fill, "HEAD", fill.source.client.head_blob(&fill.repository, digest)).await;
        let size_bytes = size.map_err(|error| upstream::failure(fill, Asked::Blob, &error))?;
        Ok(Blob::Known { size_bytes })
    }

    /// Makes sure that the upstream has the blob in this repository, too, before its readers get a running fill's
    /// bytes. A fill that is about to end no longer links the repository; then it is linked here, to what was stored.
    async fn confirm(
        &self,
        landing: &Landing,
        place: &Place,
        fill: &FillFrom,
        digest: &Digest,
    ) -> Result<Option<Blob>, PullError> {
        if landing.is_confirmed_for(&place.repository) {
            return Ok(None);
        }
        let seen = upstream::request(fill, "HEAD", fill.source.client.head_blob(&fill.repository, digest)).await;
        seen.map_err(|error| upstream::failure(fill, Asked::Blob, &error))?;
        trail::because(|| "the upstream confirmed that this repository has it, too".to_owned());
        if landing.confirm_for(place, fill) {
            return Ok(None);
        }
        match within_limit(self.repositories.delivered(digest, fill)).await? {
            Some(content) => self.link(place, fill, digest, &content).await,
            None => Ok(None),
        }
    }

    /// The blob, if its bytes are in the store already, this upstream has delivered them once, and it says that this
    /// repository has it, too.
    async fn permitted(&self, place: &Place, fill: &FillFrom, digest: &Digest) -> Result<Option<Blob>, PullError> {
        let Some(content) = within_limit(self.repositories.delivered(digest, fill)).await? else { return Ok(None) };
        match upstream::request(fill, "HEAD", fill.source.client.head_blob(&fill.repository, digest)).await {
            Ok(_) => {}
            Err(error @ entrepot_upstream::Error::NotFound) => {
                return Err(upstream::failure(fill, Asked::Blob, &error));
            }
            // Some upstreams refuse HEAD; a GET decides.
            Err(_) => return Ok(None),
        }
        trail::because(|| "the bytes were in the store, and the upstream confirmed this repository".to_owned());
        self.link(place, fill, digest, &content).await
    }

    /// The blob that is in the store, linked: the upstream has just said that this repository has it.
    async fn link(
        &self,
        place: &Place,
        fill: &FillFrom,
        digest: &Digest,
        content: &Content,
    ) -> Result<Option<Blob>, PullError> {
        let platform = self.platform(content, digest).await;
        let link = self.repositories.link_known(&place.repository, fill, digest, platform);
        match within_limit(link).await {
            Ok(content) => Ok(content.map(|content| stored(content, Outcome::Revalidated))),
            Err(error) => {
                warn!("blob `{digest}` is not linked in `{}`: {error}", place.repository);
                Ok(Some(stored(content.clone(), Outcome::Revalidated)))
            }
        }
    }

    async fn platform(&self, content: &Content, digest: &Digest) -> Option<String> {
        if content.size_bytes > CONFIG_BYTES {
            return None;
        }
        let config = within_limit(self.repositories.store.get_content(&content.object, digest)).await.ok()??;
        platform_of_config(&config)
    }
}

fn stored(Content { object, size_bytes }: Content, outcome: Outcome) -> Blob {
    Blob::Stored { object, size_bytes, outcome }
}
