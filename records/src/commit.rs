//! The one order in which content becomes visible: first the content with its pointer, then the events about it, the
//! repository, the link and the tag; finally everything is checked again. So wherever a process stops, whatever is
//! visible is complete and will be listed.

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::claim::Claimer;
use entrepot_domain::{Digest, Manifest, Referrer, RepositoryName, Tag};
use entrepot_store::{BlobStore, Error, Key, Version};
use uuid::Uuid;

use crate::claim::{Claim, Claimed, TRIES};
use crate::draft::{LinkDraft, Meaning, RepositoryDraft, TagDraft};
use crate::link::{BlobLink, ManifestLink};
use crate::pointer::Content;
use crate::repository::{Provenance, RepositoryRecord, SettingsRecord};
use crate::tag::{TagRecord, next_revision};
use crate::word::rest_of_new;
use crate::{Mendable, ReferrerRecord, encode, layout, not_understood, read, read_mendable, replace};

/// A writer of records. It has a clock, and makes events durable.
#[async_trait]
pub trait Writer: Send + Sync {
    fn now(&self) -> DateTime<Utc>;

    /// Makes the events about these changes durable. The records are written after that.
    async fn record(&self, name: &RepositoryName, incarnation: Uuid, changes: Vec<Change>) -> Result<(), Error>;

    /// A record was replaced by one with another meaning, or may have been. All nodes should forget it.
    fn on_replaced(&self, _key: &Key) {}

    /// Called after each step. Tests stop a process here.
    fn after_step(&self, _step: Step) {}
}

/// The steps after which a process may stop, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A manifest has its content and its pointer.
    ManifestStored,
    /// The events of a manifest are durable.
    ManifestReported,
    /// The repository has its record.
    RepositoryWritten,
    ManifestLinked,
    /// A manifest has its tag.
    TagWritten,
    /// The event of an image's configuration is durable.
    ConfigReported,
    BlobLinked,
    /// The event of a tag that a sync moves is durable.
    MoveReported,
}

/// A change that is about to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A repository that is created, or moves under another rule.
    Repository(Box<RepositoryRecord>),
    /// A manifest's link.
    Image {
        digest: Digest,
        link: Box<ManifestLink>,
    },
    Tag {
        tag: Tag,
        record: Box<TagRecord>,
    },
    /// The link of an image's configuration.
    Config {
        digest: Digest,
        /// The platform of the image.
        platform: String,
    },
}

/// A verified manifest that an upstream has delivered.
pub struct FilledManifest<'a> {
    /// The repository that gets the manifest.
    pub name: &'a RepositoryName,
    /// The rule and the place that it comes from.
    pub from: &'a Provenance,
    /// The settings with which a missing repository is created; `None` means that it must not be created.
    pub settings: Option<SettingsRecord>,
    /// The digest that the bytes hash to.
    pub digest: &'a Digest,
    pub bytes: &'a Bytes,
    /// The parsed manifest.
    pub manifest: &'a Manifest,
    /// The tag that means it.
    pub tag: Option<&'a Tag>,
    /// The time when the upstream was asked for it.
    pub asked: DateTime<Utc>,
}

/// Stores a manifest and makes it visible, under its tag unless the tag has been validated since the upstream was
/// asked. Creates the repository if needed and allowed. Returns the repository's incarnation; `None` if there is no
/// repository, or if the repository or the manifest was deleted after the upstream was asked.
///
/// # Errors
/// If the store is away, other writers were faster too often, or a record must not be written.
pub async fn commit_manifest(
    store: &dyn BlobStore,
    writer: &dyn Writer,
    filled: &FilledManifest<'_>,
) -> Result<Option<Uuid>, Error> {
    let now = writer.now();
    let host = &filled.from.origin.host;
    let mut claim = Claim::new(store, writer, filled.digest, Claimer::Manifest).delivered_by(host);
    for _ in 0..TRIES {
        let content = match claim.take().await? {
            Claimed::Content(content) => content,
            Claimed::Missing => {
                let begin_time = writer.now();
                let own = store_content(store, filled.digest, filled.bytes).await?;
                claim = claim.with_own(own, begin_time);
                continue;
            }
        };
        writer.after_step(Step::ManifestStored);
        let written = match write_manifest(store, writer, filled, &content.object, now).await {
            Err(error) if error.is_conflict() => continue,
            done => match done? {
                Some(written) => written,
                None => return Ok(None),
            },
        };
        if claim.holds(&content.object).await? && written.is_there(store, filled.name).await? {
            claim.drop_own().await;
            return Ok(Some(written.incarnation));
        }
    }
    Err(Error::Conflict)
}

async fn store_content(store: &dyn BlobStore, digest: &Digest, bytes: &Bytes) -> Result<Content, Error> {
    let object = layout::content(Uuid::now_v7());
    store.put_content(&object, digest, bytes.clone()).await?;
    Ok(Content { object, size_bytes: bytes.len() as u64 })
}

/// The records that a commit has written.
struct Written {
    incarnation: Uuid,
    link_key: Key,
    object: Key,
}

impl Written {
    /// Whether the repository still has the incarnation that was written to, and contains the link. A fill never takes
    /// its own link back, so another writer's link to the same object is as good.
    async fn is_there(&self, store: &dyn BlobStore, name: &RepositoryName) -> Result<bool, Error> {
        if !is_still_live(store, name, self.incarnation).await? {
            return Ok(false);
        }
        let link = read_mendable::<ManifestLink>(store, &self.link_key).await?.record();
        Ok(link.is_some_and(|link| link.is_live() && link.object == self.object))
    }
}

/// Whether a repository still has the given incarnation.
///
/// # Errors
/// If its record cannot be read.
pub async fn is_still_live(store: &dyn BlobStore, name: &RepositoryName, incarnation: Uuid) -> Result<bool, Error> {
    let record = read::<RepositoryRecord>(store, &layout::repository(name)).await?;
    Ok(record.is_some_and(|(record, _)| record.is_live() && record.incarnation == incarnation))
}

async fn write_manifest(
    store: &dyn BlobStore,
    writer: &dyn Writer,
    filled: &FilledManifest<'_>,
    object: &Key,
    now: DateTime<Utc>,
) -> Result<Option<Written>, Error> {
    let FilledManifest { name, from, digest, bytes, manifest, tag, asked, .. } = *filled;
    let settings = filled.settings.as_ref();
    let Some(repository) = RepositoryDraft::read(store, name, from, settings, now).await? else { return Ok(None) };
    if repository.was_deleted_since(asked, writer.now()) {
        return Ok(None);
    }
    let incarnation = repository.record.incarnation;
    let link_key = layout::manifest_link(name, incarnation, digest);
    let link = ManifestLink::of(manifest, bytes, object.clone(), now);
    let link = LinkDraft::read(store, link_key, link, from, now).await?;
    if link.was_deleted_since(asked, writer.now()) {
        return Ok(None);
    }
    let tag = match tag {
        Some(tag) => {
            let link_revision = Some(link.link.revision);
            let meaning = Meaning { digest: Some(digest), link_revision, from, validate_time: asked };
            let draft = TagDraft::read(store, (name, incarnation), tag, meaning, now).await?;
            Some(draft).filter(|draft| !draft.is_overtaken(asked, writer.now()))
        }
        None => None,
    };

    let mut changes: Vec<Change> = repository.change().into_iter().collect();
    changes.push(Change::Image { digest: digest.clone(), link: Box::new(link.link.clone()) });
    changes.extend(tag.as_ref().map(TagDraft::change));
    writer.record(name, incarnation, changes).await?;
    writer.after_step(Step::ManifestReported);

    repository.write(store, writer, name).await?;
    writer.after_step(Step::RepositoryWritten);
    link.write(store).await?;
    writer.after_step(Step::ManifestLinked);
    note_referrer(store, (name, incarnation), filled).await?;
    if let Some(draft) = tag {
        draft.write(store, writer).await?;
        writer.after_step(Step::TagWritten);
    }
    Ok(Some(Written { incarnation, link_key: link.key, object: object.clone() }))
}

/// Records that a manifest refers to another one, if it does. The manifest's link exists already.
async fn note_referrer(
    store: &dyn BlobStore,
    (name, incarnation): (&RepositoryName, Uuid),
    filled: &FilledManifest<'_>,
) -> Result<(), Error> {
    let FilledManifest { digest, bytes, manifest, .. } = *filled;
    let subject = manifest.subject.as_ref().and_then(|subject| subject.digest.as_ref());
    let Some(subject) = subject else { return Ok(()) };
    let Ok(referrer) = Referrer::of_manifest(digest, &manifest.media_type, bytes) else { return Ok(()) };
    let key = layout::referrer(name, incarnation, subject, digest);
    let record = ReferrerRecord { descriptor: referrer.descriptor.to_string() };
    match store.put_once(&key, encode(&record)).await {
        // Every writer writes the same record.
        Err(Error::AlreadyExists) => Ok(()),
        done => done.map(drop),
    }
}

/// A blob that is in the store and that its upstream has.
pub struct FilledBlob<'a> {
    /// The rule and the place that it comes from.
    pub from: &'a Provenance,
    pub digest: &'a Digest,
    pub content: &'a Content,
    /// The platform of the image, if the blob is an image's configuration.
    pub platform: Option<String>,
}

/// Links a blob into a repository, so that the repository may show it. The repository must exist: only manifests create
/// one. Returns the repository's incarnation.
///
/// # Errors
/// If the store is away, or a record must not be written.
pub async fn link_blob(
    store: &dyn BlobStore,
    writer: &dyn Writer,
    name: &RepositoryName,
    filled: &FilledBlob<'_>,
) -> Result<Option<Uuid>, Error> {
    let repository_key = layout::repository(name);
    let Some((repository, _)) = read::<RepositoryRecord>(store, &repository_key).await? else { return Ok(None) };
    if let Some(why) = repository.not_understood() {
        return Err(not_understood(&repository_key, why));
    }
    if !repository.is_live() {
        return Ok(None);
    }
    let (incarnation, now) = (repository.incarnation, writer.now());
    let key = layout::blob_link(name, incarnation, filled.digest);
    let (old, version) = read_mendable::<BlobLink>(store, &key).await?.into_parts();
    if let Some(old) = old.as_ref().filter(|old| old.state.known().is_none()) {
        return Err(not_understood(&key, format!("its state `{}` is of another release", old.state)));
    }
    let Content { object, size_bytes } = filled.content.clone();
    let link = BlobLink {
        rule_uid: Some(filled.from.rule_uid),
        origin: Some(filled.from.origin.in_place_of(old.as_ref().and_then(|old| old.origin.as_ref()))),
        platform: filled.platform.clone(),
        revision: next_revision(old.as_ref().map(|old| old.revision), now),
        rest: old.map_or_else(rest_of_new, |old| old.rest),
        ..BlobLink::new(object, size_bytes, now)
    };
    if let Some(platform) = link.platform.clone() {
        let change = Change::Config { digest: filled.digest.clone(), platform };
        writer.record(name, incarnation, vec![change]).await?;
        writer.after_step(Step::ConfigReported);
    }
    match replace(store, &key, version.as_ref(), &link).await {
        // Another writer wrote the same.
        Err(error) if error.is_conflict() => {}
        done => drop(done?),
    }
    writer.after_step(Step::BlobLinked);
    Ok(Some(incarnation))
}

/// Changes a manifest's link to name the object that the pointer names, since the object in the link is gone. No index
/// shows the object, so the revision stays. If somebody else changes the link meanwhile, their change wins.
///
/// # Errors
/// If the store is away.
pub async fn move_manifest_link(store: &dyn BlobStore, key: &Key, from: &Key, to: &Key) -> Result<(), Error> {
    let Mendable::Record(link, version) = read_mendable::<ManifestLink>(store, key).await? else { return Ok(()) };
    if !link.is_live() || link.object != *from {
        return Ok(());
    }
    ignore_conflict(replace(store, key, Some(&version), &ManifestLink { object: to.clone(), ..link }).await)
}

/// Like [`move_manifest_link`], for a blob's link.
///
/// # Errors
/// If the store is away.
pub async fn move_blob_link(store: &dyn BlobStore, key: &Key, from: &Key, to: &Key) -> Result<(), Error> {
    let Mendable::Record(link, version) = read_mendable::<BlobLink>(store, key).await? else { return Ok(()) };
    if !link.is_live() || link.object != *from {
        return Ok(());
    }
    ignore_conflict(replace(store, key, Some(&version), &BlobLink { object: to.clone(), ..link }).await)
}

fn ignore_conflict(written: Result<Version, Error>) -> Result<(), Error> {
    match written {
        Err(error) if !error.is_conflict() => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
