//! Blobs. Having the bytes is not a permission: a repository shows a blob only if it links it, or if its upstream has
//! just confirmed it.

use entrepot_domain::Digest;
use entrepot_domain::manifest::platform_of_config;
use entrepot_records::Content;
use tracing::warn;

use super::Resolver;
use super::refusals::Question;
use crate::auth::Asker;
use crate::config::LARGEST_BLOB;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::fill::{Landed, Landing};
use crate::outcome::Outcome;
use crate::place::Place;
use crate::repository::{Ready, within_limit};
use crate::trail::{self, Note};
use crate::upstream;

/// The largest blob that is considered to be an image's configuration.
const CONFIG_BYTES: u64 = 1024 * 1024;
/// How often to look for a blob again because its fill found it in the store.
const LOOKS: usize = 3;
/// How often, in addition, because the upstream refused the repository for which the fill was begun.
const REFUSALS: usize = 100;

/// A blob, ready to be served.
pub(crate) enum Blob {
    Stored {
        /// Its bytes, or where they are.
        ready: Ready,
        /// How the pull ended.
        outcome: Outcome,
    },
    /// It is coming from the upstream.
    Landing(Landed),
    /// It is at the upstream, and only its presence was asked for.
    Known {
        /// Its size, if the upstream tells it.
        size_bytes: Option<u64>,
    },
}

/// What a client wants of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Bytes,
    /// Whether it exists, and its size.
    Presence,
}

/// The result of looking for a blob that another repository has fetched.
enum Linked {
    /// It is in the store, and may be shown here, too.
    Here(Blob),
    /// It is in the store, but the upstream has not confirmed it for this repository.
    Unconfirmed(PullError),
    /// It is not in the store.
    Nothing,
}

impl Resolver {
    /// The blob `digest`, as `place` may show it, on behalf of the node itself.
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
        self.refusals.check(fill, question).await?;
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

    /// A blob that the repository does not link yet: from wherever it is, if the upstream confirms it for this
    /// repository.
    async fn join_or_fill(&self, fill: &FillFrom, digest: &Digest) -> Result<Blob, PullError> {
        let mut looks = 0..LOOKS;
        let mut refusals = 0..REFUSALS;
        // Why it was not served from where it is; returned in the end if there is no other error.
        let mut reason = PullError::GaveUp;
        let promised = self.fills.promises().of(fill.origin, &fill.name, digest);
        while looks.next().is_some() {
            let landing = match self.fills.running(fill.origin, digest, promised) {
                Some(landing) => {
                    let about = landing.about();
                    let age = trail::age(about.began, self.now());
                    trail::note(Note::JoinedFill { age, repository: about.repository.clone() });
                    landing
                }
                None => {
                    match self.link_stored(fill, digest).await? {
                        Linked::Here(stored) => return Ok(stored),
                        Linked::Unconfirmed(error) => reason = error,
                        Linked::Nothing => {}
                    }
                    let upstream = fill.source.upstream.id.clone();
                    trail::note(Note::Filled { upstream, repository: fill.repository.clone() });
                    self.fills.join_or_start(fill, digest, promised)
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
                    return Ok(Blob::Landing(self.fills.with_promise(&landing, landed, fill, digest).await));
                }
                // The fill found it in the store, so look there.
                Ok(None) => {
                    trail::note(Note::FoundByFill);
                    let place = self.reread(fill).await?;
                    if let Some(stored) = self.read_linked(&place, digest).await? {
                        return Ok(stored);
                    }
                }
                // The upstream refuses the repository for which the fill was begun, which is another one than ours.
                Err(error) if error.is_refusal() && !landing.is_begun_for(&fill.name) => {
                    if refusals.next().is_some() {
                        looks = 0..LOOKS;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(reason)
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
            let ready = self.repositories.linked_blob(live, digest, &link).await?;
            trail::note(if ready.is_some() { Note::BlobHere } else { Note::BlobLost });
            Ok(ready.map(|ready| Blob::Stored { ready, outcome: Outcome::Hit }))
        })
        .await
    }

    /// Asks the upstream whether its repository has the blob, for a client that does not want the bytes.
    async fn head_blob(&self, fill: &FillFrom, digest: &Digest) -> Result<Blob, PullError> {
        let size = upstream::request(fill, "HEAD", fill.pull_client().head_blob(&fill.repository, digest)).await;
        let size_bytes = size.map_err(|error| upstream::failure(fill, Asked::Blob, &error))?;
        // A size that no blob has is no reason to refuse: the upstream's GET may be right. What is too large to be kept is
        // passed through, with its size.
        let largest = self.fills.largest_blob().max(LARGEST_BLOB);
        Ok(Blob::Known { size_bytes: size_bytes.filter(|size| *size <= largest) })
    }

    /// Makes sure that the upstream has the blob in this repository, too, before its readers get bytes of a running
    /// fill. If the fill is about to end and no longer links repositories, the blob is linked here to what was stored.
    async fn confirm(&self, landing: &Landing, fill: &FillFrom, digest: &Digest) -> Result<Option<Blob>, PullError> {
        if landing.is_confirmed_for(&fill.name) {
            return Ok(None);
        }
        let seen = upstream::request(fill, "HEAD", fill.pull_client().head_blob(&fill.repository, digest)).await;
        seen.map_err(|error| upstream::failure(fill, Asked::Blob, &error))?;
        trail::note(Note::RepositoryConfirmed);
        if landing.confirm_for(fill) {
            return Ok(None);
        }
        match within_limit(self.repositories.find_delivered(digest, fill)).await? {
            Some(content) => self.link(fill, digest, &content).await,
            None => Ok(None),
        }
    }

    /// The blob, if its bytes are in the store already, this upstream has delivered them before, and it confirms them
    /// for this repository.
    async fn link_stored(&self, fill: &FillFrom, digest: &Digest) -> Result<Linked, PullError> {
        let Some(content) = within_limit(self.repositories.find_delivered(digest, fill)).await? else {
            return Ok(Linked::Nothing);
        };
        match upstream::request(fill, "HEAD", fill.pull_client().head_blob(&fill.repository, digest)).await {
            Ok(_) => {}
            Err(error @ entrepot_upstream::Error::NotFound) => {
                return Err(upstream::failure(fill, Asked::Blob, &error));
            }
            // Some upstreams refuse HEAD; a GET decides.
            Err(error) => return Ok(Linked::Unconfirmed(upstream::failure(fill, Asked::Blob, &error))),
        }
        trail::note(Note::StoredAndConfirmed);
        Ok(self.link(fill, digest, &content).await?.map_or(Linked::Nothing, Linked::Here))
    }

    /// Links the blob that is in the store, since the upstream has just confirmed it for this repository.
    async fn link(&self, fill: &FillFrom, digest: &Digest, content: &Content) -> Result<Option<Blob>, PullError> {
        let platform = self.platform(content, digest).await;
        let linked = match within_limit(self.repositories.link_known(fill, digest, platform)).await {
            Ok(linked) => linked,
            Err(error) => {
                warn!("blob `{digest}` is not linked in `{}`: {error}", fill.name);
                Some(content.clone())
            }
        };
        let Some(content) = linked else { return Ok(None) };
        let ready = within_limit(self.repositories.ready(digest, content)).await?;
        Ok(ready.map(|ready| Blob::Stored { ready, outcome: Outcome::Revalidated }))
    }

    async fn platform(&self, content: &Content, digest: &Digest) -> Option<String> {
        if content.size_bytes > CONFIG_BYTES {
            return None;
        }
        let config = within_limit(self.repositories.store.get_content(&content.object, digest)).await.ok()??;
        platform_of_config(&config)
    }
}
