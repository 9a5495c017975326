//! Content of repositories: manifests in memory or the store, and blobs that are about to be served. What is damaged is
//! as good as missing.

use std::ops::Range;

use bytes::Bytes;
use entrepot_domain::Digest;
use entrepot_records::claim::Lookup;
use entrepot_records::{BlobLink, Content, ManifestLink, claim, commit, layout};
use entrepot_store::{ByteStream, Error, Key, SMALL_BYTES};

use super::{Live, Repositories};
use crate::control::FillFrom;
use crate::memory::{ManifestBytes, Presence};
use crate::trail::{self, Note};

/// A blob that is in the store, ready to be served.
pub(crate) enum Ready {
    /// Its bytes, which were verified.
    Small(Bytes),
    /// Where to read it; it is verified while it is sent.
    Large(Content),
}

impl Ready {
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Small(bytes) => bytes.len() as u64,
            Self::Large(content) => content.size_bytes,
        }
    }
}

impl Repositories {
    /// The content of a digest, if the store has it and the upstream of `fill` has delivered it before.
    pub(crate) async fn find_delivered(&self, digest: &Digest, fill: &FillFrom) -> Result<Option<Content>, Error> {
        let host = fill.provenance().origin.host;
        let found = claim::find(&*self.store, digest, Some(&host)).await?;
        Ok(self.sound(digest, found))
    }

    /// The bytes of a linked manifest. If the link's object is missing or has other content, the pointer's object is
    /// used, and the link is changed to it.
    pub(crate) async fn manifest_bytes(
        &self,
        live: &Live,
        digest: &Digest,
        link: &ManifestLink,
    ) -> Result<Option<Bytes>, Error> {
        let fits = |bytes: &Bytes| bytes.len() as u64 == link.size_bytes;
        let linked = ManifestBytes { object: link.object.clone(), digest: digest.clone() };
        let read = self.ask(live.reads, &linked).await;
        if let Some(bytes) = self.unless_damaged(read)?.filter(fits) {
            return Ok(Some(bytes));
        }
        let Some(content) = self.elsewhere(digest, &link.object, link.size_bytes).await? else { return Ok(None) };
        let bytes = self.small(digest, &content).await?.filter(fits);
        if bytes.is_some() {
            let key = layout::manifest_link(&live.name, live.record.incarnation, digest);
            commit::move_manifest_link(&*self.store, &key, &link.object, &content.object).await?;
        }
        Ok(bytes)
    }

    /// The linked blob, ready to be served. If the link's object is missing or has another size, the pointer's object
    /// is used, and the link is changed to it.
    pub(crate) async fn linked_blob(
        &self,
        live: &Live,
        digest: &Digest,
        link: &BlobLink,
    ) -> Result<Option<Ready>, Error> {
        let linked = Content { object: link.object.clone(), size_bytes: link.size_bytes };
        let is_small = link.size_bytes <= SMALL_BYTES;
        let held = if is_small { None } else { self.ask(live.reads, &Presence(link.object.clone())).await? };
        let is_there = is_small || held == Some(link.size_bytes);
        if is_there && let Some(ready) = self.ready(digest, linked).await? {
            return Ok(Some(ready));
        }
        let Some(content) = self.elsewhere(digest, &link.object, link.size_bytes).await? else {
            if held.is_some() {
                trail::note(Note::Damaged);
            }
            return Ok(None);
        };
        let ready = self.ready(digest, content.clone()).await?;
        if ready.is_some() {
            let key = layout::blob_link(&live.name, live.record.incarnation, digest);
            commit::move_blob_link(&*self.store, &key, &link.object, &content.object).await?;
        }
        Ok(ready)
    }

    /// Existing content, ready to be served, unless it is damaged. Small content is read and verified at once.
    pub(crate) async fn ready(&self, digest: &Digest, content: Content) -> Result<Option<Ready>, Error> {
        if self.damaged.is_known(&content.object) {
            trail::note(Note::Damaged);
            return Ok(None);
        }
        if content.size_bytes > SMALL_BYTES {
            return Ok(Some(Ready::Large(content)));
        }
        let fits = |bytes: &Bytes| bytes.len() as u64 == content.size_bytes;
        Ok(self.small(digest, &content).await?.filter(fits).map(Ready::Small))
    }

    /// The bytes of `range` of an object whose content should be `digest`; `None` if it is missing, or known to be
    /// damaged. If the damage is found later, the stream fails.
    pub(crate) async fn open(
        &self,
        object: &Key,
        range: Range<u64>,
        digest: &Digest,
    ) -> Result<Option<ByteStream>, Error> {
        let read = self.store.read(object, range, Some(digest)).await;
        self.unless_damaged(read)
    }

    /// Reads small content; `None` if it is missing or damaged.
    async fn small(&self, digest: &Digest, content: &Content) -> Result<Option<Bytes>, Error> {
        let read = self.store.get_content(&content.object, digest).await;
        self.unless_damaged(read)
    }

    /// Treats damaged content as missing, and notes the damage.
    fn unless_damaged<T>(&self, read: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
        match read {
            Err(Error::Damaged { key, digest }) => {
                self.damaged.note(&key, &digest);
                trail::note(Note::Damaged);
                Ok(None)
            }
            read => read,
        }
    }

    /// The pointer's content, if it is another object than `object` and has this size.
    async fn elsewhere(&self, digest: &Digest, object: &Key, size_bytes: u64) -> Result<Option<Content>, Error> {
        let found = claim::find(&*self.store, digest, None).await?;
        let found = self.sound(digest, found);
        Ok(found.filter(|content| content.object != *object && content.size_bytes == size_bytes))
    }

    /// The content, unless it is known to be damaged. The pointer to damaged content stays: whoever has the right bytes
    /// replaces it, and to remove it without them takes the word of more than one node.
    fn sound(&self, digest: &Digest, found: Lookup) -> Option<Content> {
        match found {
            Lookup::Content(content) => Some(content).filter(|content| !self.damaged.is_known(&content.object)),
            Lookup::Lost(content) => {
                self.damaged.note(&content.object, digest);
                trail::note(Note::Damaged);
                None
            }
            Lookup::Nothing => None,
        }
    }

    /// Prepares for content that the caller is about to store: removes the pointer to what this node has found damaged.
    pub(crate) async fn make_way(&self, digest: &Digest) -> Result<(), Error> {
        match self.damaged.of_digest(digest) {
            Some(object) => claim::disown(&*self.store, digest, &object, self.clock.now()).await,
            None => Ok(()),
        }
    }
}
