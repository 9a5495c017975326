//! Updates of tags whose manifests are already linked: an upstream confirms, moves or drops them.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_store::{BlobStore, Error};
use uuid::Uuid;

use crate::commit::{Step, Writer};
use crate::draft::{Meaning, TagDraft};
use crate::repository::Provenance;

/// A tag in one incarnation of a repository, and what fills that repository.
pub struct FilledTag<'a> {
    pub name: &'a RepositoryName,
    pub incarnation: Uuid,
    /// The rule and the place that it comes from.
    pub from: &'a Provenance,
    pub tag: &'a Tag,
}

impl FilledTag<'_> {
    /// Notes that the upstream, asked at `validated`, has confirmed that the tag means `digest`, if its record still says
    /// so, and nothing newer.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn confirm(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        digest: &Digest,
        validated: DateTime<Utc>,
    ) -> Result<(), Error> {
        let draft = self.draft(store, writer, Some(digest), validated).await?;
        self.settle(store, writer, draft, (digest, validated)).await
    }

    /// Notes that the upstream, asked at `validated`, has reported the tag as gone, if its record still means `digest`, and
    /// is no newer.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn forget(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        digest: &Digest,
        validated: DateTime<Utc>,
    ) -> Result<(), Error> {
        let draft = self.draft(store, writer, None, validated).await?;
        self.settle(store, writer, draft, (digest, validated)).await
    }

    /// Notes the meaning that the upstream, asked at `validated`, gave for the tag, unless the record is newer or the tag
    /// was deleted since. If somebody else changes the record meanwhile, their change wins.
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
        // Whichever rule the record's meaning comes from: an older rule's must not replace a newer one's.
        let is_known = draft.old.as_ref().is_some_and(|known| known.validate_time == Some(validated));
        if is_known || draft.is_overtaken(validated, writer.now()) {
            return Ok(());
        }
        self.write(store, writer, draft).await
    }

    /// Sets the tag to `digest`, which the upstream gave that was asked at `said`, if its record is still at revision `base`. Returns
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
        writer.after_step(Step::MoveReported);
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

    /// Updates a tag, if it still means `digest`, and was not validated later.
    async fn settle(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        draft: TagDraft,
        (digest, validated): (&Digest, DateTime<Utc>),
    ) -> Result<(), Error> {
        let means_it = draft.old.as_ref().and_then(|old| old.digest.as_ref()) == Some(digest);
        if !means_it || draft.is_overtaken(validated, writer.now()) {
            return Ok(());
        }
        self.write(store, writer, draft).await
    }

    /// If somebody else changes the record meanwhile, their change wins.
    async fn write(&self, store: &dyn BlobStore, writer: &dyn Writer, draft: TagDraft) -> Result<(), Error> {
        writer.record(self.name, self.incarnation, vec![draft.change()]).await?;
        is_first(draft.write(store, writer).await).map(drop)
    }
}

/// Turns a conflict into `false`: another writer was faster.
fn is_first(written: Result<(), Error>) -> Result<bool, Error> {
    match written {
        Err(error) if error.is_conflict() => Ok(false),
        done => done.map(|()| true),
    }
}
