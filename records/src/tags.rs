//! Tags that an upstream confirms, moves or drops while their manifests are linked already.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_store::{BlobStore, Error};
use uuid::Uuid;

use crate::commit::{Step, Writer};
use crate::draft::{Meaning, TagDraft};
use crate::repository::Provenance;

/// A tag of one incarnation of a repository, and what it is filled by.
pub struct FilledTag<'a> {
    /// The repository.
    pub name: &'a RepositoryName,
    /// Its incarnation.
    pub incarnation: Uuid,
    /// By what it is filled.
    pub from: &'a Provenance,
    /// The tag.
    pub tag: &'a Tag,
}

impl FilledTag<'_> {
    /// Notes that the upstream has just confirmed that the tag means `digest`, if its record still says so.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn confirm(&self, store: &dyn BlobStore, writer: &dyn Writer, digest: &Digest) -> Result<(), Error> {
        let draft = self.draft(store, writer, Some(digest), writer.now()).await?;
        self.settle(store, writer, draft, digest).await
    }

    /// Notes that the upstream has just said that the tag is gone, if its record still means `digest`.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn forget(&self, store: &dyn BlobStore, writer: &dyn Writer, digest: &Digest) -> Result<(), Error> {
        let draft = self.draft(store, writer, None, writer.now()).await?;
        self.settle(store, writer, draft, digest).await
    }

    /// Notes what the upstream said at `validated` that the tag means, unless it has said something since. Somebody
    /// else's change in between wins.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn note(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        digest: &Digest,
        validated: DateTime<Utc>,
    ) -> Result<(), Error> {
        let draft = self.draft(store, writer, Some(digest), validated).await?;
        let known = draft.old.as_ref().filter(|old| self.from.covers(old.rule_uid, old.origin.as_ref()));
        if known.is_some_and(|known| known.validate_time >= Some(validated)) {
            return Ok(());
        }
        self.write(store, writer, draft).await
    }

    /// Lets the tag mean `digest`, as the upstream said at `said`, if its record is still at revision `base`. Says
    /// whether it was.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn set_if(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        base: Option<i64>,
        (digest, said): (&Digest, DateTime<Utc>),
    ) -> Result<bool, Error> {
        let draft = self.draft(store, writer, Some(digest), said).await?;
        if draft.old.as_ref().map(|old| old.revision) != base {
            return Ok(false);
        }
        writer.record(self.name, self.incarnation, vec![draft.change()]).await?;
        writer.passed(Step::MoveReported);
        is_first(draft.write(store, writer).await)
    }

    async fn draft(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        digest: Option<&Digest>,
        validate_time: DateTime<Utc>,
    ) -> Result<TagDraft, Error> {
        let meaning = Meaning { digest, link_revision: None, from: self.from, validate_time };
        TagDraft::read(store, (self.name, self.incarnation), self.tag, meaning, writer.now()).await
    }

    /// Writes what is new of a tag that meant `digest`, if it still does.
    async fn settle(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        draft: TagDraft,
        digest: &Digest,
    ) -> Result<(), Error> {
        if draft.old.as_ref().and_then(|old| old.digest.as_ref()) != Some(digest) {
            return Ok(());
        }
        self.write(store, writer, draft).await
    }

    /// Somebody else's change in between wins.
    async fn write(&self, store: &dyn BlobStore, writer: &dyn Writer, draft: TagDraft) -> Result<(), Error> {
        writer.record(self.name, self.incarnation, vec![draft.change()]).await?;
        is_first(draft.write(store, writer).await).map(drop)
    }
}

/// Whether nobody else was faster.
fn is_first(written: Result<(), Error>) -> Result<bool, Error> {
    match written {
        Err(error) if error.is_conflict() => Ok(false),
        done => done.map(|()| true),
    }
}
