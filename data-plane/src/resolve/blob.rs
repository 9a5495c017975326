//! Blobs: known bytes are no permission. A repository shows a blob that it links, or that its upstream has just
//! confirmed for it.

use entrepot_domain::Digest;
use entrepot_domain::manifest::platform_of_config;
use entrepot_records::Content;
use entrepot_store::Key;
use tracing::warn;

use super::Resolver;
use super::refusals::Question;
use crate::auth::Asker;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::fill::{Landed, Landing};
use crate::outcome::Outcome;
use crate::place::Place;
use crate::repository::within_limit;
use crate::trail::{self, Note};
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
    /// The blob `digest`, as `place` may show it, for the node's own sake.
    pub(super) async fn blob(&self, place: &Place, digest: &Digest) -> Result<Blob, PullError> {
        match self.read_linked(place, digest).await? {
            Some(blob) => Ok(blob),
            None => self.fill_blob(place, digest, Want::Bytes, &Asker::NODE).await,
        }
    }

    /// A blob that `place` does not link, from the upstream.
    pub(super) async fn fill_blob(
        &self,
        place: &Place,
        digest: &Digest,
        want: Want,
        asker: &Asker,
    ) -> Result<Blob, PullError> {
        let unknown = PullError::NotFound { asked: Asked::Blob, rule: None };
        let fill = place.fill().ok_or_else(|| place.unfilled(unknown))?;
        asker.may_fill()?;
        let question = Question::Blob(digest);
        self.refusals.remembered(fill, question).await?;
        let answer = match want {
            Want::Presence => {
                trail::note(Note::HeadOfBlob);
                self.head_blob(fill, digest).await
            }
            Want::Bytes => self.join_or_fill(fill, digest).await,
        };
        self.refusals.learn(fill, question, asker.principal, &answer).await;
        answer
    }

    /// A blob that the repository does not link yet: from where it is, if the upstream has it there, too.
    async fn join_or_fill(&self, fill: &FillFrom, digest: &Digest) -> Result<Blob, PullError> {
        let mut looks = 0..LOOKS;
        let mut refusals = 0..REFUSALS;
        while looks.next().is_some() {
            let landing = match self.fills.running(fill.origin, digest) {
                Some(landing) => {
                    let about = landing.about();
                    let age = trail::age(about.began, self.now());
                    trail::note(Note::JoinedFill { age, repository: about.repository.clone() });
                    landing
                }
                None => {
                    if let Some(stored) = self.link_stored(fill, digest).await? {
                        return Ok(stored);
                    }
                    let upstream = fill.source.upstream.id.clone();
                    trail::note(Note::Filled { upstream, repository: fill.repository.clone() });
                    self.fills.join_or_start(fill, digest)
                }
            };
            if let Some(stored) = self.confirm(&landing, fill, digest).await? {
                return Ok(stored);
            }
            match landing.head().await {
                Ok(Some(landed)) => {
                    if let Some(leader) = &landed.leader {
                        trail::note(Note::CameByNode(leader.clone()));
                    }
                    return Ok(Blob::Landing(landed));
                }
                // The fill found it in the store: look there.
                Ok(None) => {
                    trail::note(Note::FoundByFill);
                    let place = self.reread(fill).await?;
                    if let Some(stored) = self.read_linked(&place, digest).await? {
                        return Ok(stored);
                    }
                }
                // The upstream refuses the repository that the fill was begun for, which is not ours.
                Err(error) if error.is_refusal() && !landing.is_begun_for(&fill.name) => {
                    if refusals.next().is_some() {
                        looks = 0..LOOKS;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(PullError::GaveUp)
    }

    /// The blob, if the repository links it and the bytes are there.
    pub(super) async fn read_linked(&self, place: &Place, digest: &Digest) -> Result<Option<Blob>, PullError> {
        let Some(live) = &place.live else {
            trail::note(Note::NoRepository(place.repository.clone()));
            return Ok(None);
        };
        within_limit(async {
            let Some(link) = self.repositories.blob_link(live, digest, place.fill()).await? else {
                trail::note(Note::BlobUnlinked);
                return Ok(None);
            };
            // A link whose content is missing is a miss, and heals.
            let content = self.repositories.blob_content(live, digest, &link).await?;
            trail::note(if content.is_some() { Note::BlobHere } else { Note::BlobLost });
            Ok(content.map(|content| stored(content, Outcome::Hit)))
        })
        .await
    }

    /// Asks the upstream whether its repository has the blob, for a client that wants no bytes.
    async fn head_blob(&self, fill: &FillFrom, digest: &Digest) -> Result<Blob, PullError> {
        let size = upstream::request(fill, "HEAD", fill.source.client.head_blob(&fill.repository, digest)).await;
        let size_bytes = size.map_err(|error| upstream::failure(fill, Asked::Blob, &error))?;
        Ok(Blob::Known { size_bytes })
    }

    /// Makes sure that the upstream has the blob in this repository, too, before its readers get a running fill's
    /// bytes. A fill that is about to end no longer links the repository; then it is linked here, to what was stored.
    async fn confirm(&self, landing: &Landing, fill: &FillFrom, digest: &Digest) -> Result<Option<Blob>, PullError> {
        if landing.is_confirmed_for(&fill.name) {
            return Ok(None);
        }
        let seen = upstream::request(fill, "HEAD", fill.source.client.head_blob(&fill.repository, digest)).await;
        seen.map_err(|error| upstream::failure(fill, Asked::Blob, &error))?;
        trail::note(Note::RepositoryConfirmed);
        if landing.confirm_for(fill) {
            return Ok(None);
        }
        match within_limit(self.repositories.delivered(digest, fill)).await? {
            Some(content) => self.link(fill, digest, &content).await,
            None => Ok(None),
        }
    }

    /// The blob, if its bytes are in the store already, this upstream has delivered them once, and it says that this
    /// repository has it, too.
    async fn link_stored(&self, fill: &FillFrom, digest: &Digest) -> Result<Option<Blob>, PullError> {
        let Some(content) = within_limit(self.repositories.delivered(digest, fill)).await? else { return Ok(None) };
        match upstream::request(fill, "HEAD", fill.source.client.head_blob(&fill.repository, digest)).await {
            Ok(_) => {}
            Err(error @ entrepot_upstream::Error::NotFound) => {
                return Err(upstream::failure(fill, Asked::Blob, &error));
            }
            // Some upstreams refuse HEAD; a GET decides.
            Err(_) => return Ok(None),
        }
        trail::note(Note::StoredAndConfirmed);
        self.link(fill, digest, &content).await
    }

    /// The blob that is in the store, linked: the upstream has just said that this repository has it.
    async fn link(&self, fill: &FillFrom, digest: &Digest, content: &Content) -> Result<Option<Blob>, PullError> {
        let platform = self.platform(content, digest).await;
        match within_limit(self.repositories.link_known(fill, digest, platform)).await {
            Ok(content) => Ok(content.map(|content| stored(content, Outcome::Revalidated))),
            Err(error) => {
                warn!("blob `{digest}` is not linked in `{}`: {error}", fill.name);
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
