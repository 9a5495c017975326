//! Repositories as the store's records have them: what may be shown, and what a node writes when content is verified.
//!
//! Every write goes in one order: the content, the events that tell of it, the repository, the link, the tag. So
//! whatever is visible is whole and will be listed, wherever a node stops.

mod lists;

use std::future::Future;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Manifest, RepositoryName, Tag};
use entrepot_proto::convert::event::{Image, Kind};
use entrepot_records::layout;
use entrepot_records::layout::Parsed;
use entrepot_records::{self as records, BlobLink, ManifestLink, RepositoryRecord, SettingsRecord, State, TagRecord};
use entrepot_runtime::{Clock, chain};
use entrepot_store::{Error, Key, Store, Version};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tracing::warn;
use uuid::Uuid;

use crate::config::limits;
use crate::control::{FillFrom, LeftOut, Outbox};
use crate::error::PullError;
use crate::failpoint;
use crate::trail;

/// How often a write is tried anew when somebody else was faster. Each try means that another one got through.
const TRIES: usize = 16;

/// Reads and writes the records of repositories.
#[derive(Clone)]
pub(crate) struct Repositories {
    pub(crate) store: Store,
    pub(crate) outbox: Outbox,
    pub(crate) clock: Clock,
}

/// A repository that exists.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) name: RepositoryName,
    pub(crate) record: RepositoryRecord,
}

/// A manifest that was verified and read.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
    pub(crate) manifest: Manifest,
}

impl Repositories {
    /// The repository of this name, if it exists.
    pub(crate) async fn live(&self, name: &RepositoryName) -> Result<Option<Live>, Error> {
        let found = self.record(name).await?;
        let record = found.map(|(record, _)| record).filter(|record| record.state == State::Live);
        Ok(record.map(|record| Live { name: name.clone(), record }))
    }

    /// What lets the repository show a manifest, as far as `origin` may use it.
    pub(crate) async fn manifest_link(
        &self,
        live: &Live,
        digest: &Digest,
        origin: Option<Uuid>,
    ) -> Result<Option<ManifestLink>, Error> {
        let key = layout::manifest_link(&live.name, live.record.incarnation, digest);
        let link = records::read::<ManifestLink>(&*self.store, &key).await?.map(|(link, _)| link);
        Ok(link.filter(|link| !link.deleted && carries_over(link.origin, origin)))
    }

    /// What lets the repository show a blob, as far as `origin` may use it.
    pub(crate) async fn blob_link(
        &self,
        live: &Live,
        digest: &Digest,
        origin: Option<Uuid>,
    ) -> Result<Option<BlobLink>, Error> {
        let key = layout::blob_link(&live.name, live.record.incarnation, digest);
        let link = records::read::<BlobLink>(&*self.store, &key).await?.map(|(link, _)| link);
        Ok(link.filter(|link| !link.deleted && carries_over(link.origin, origin)))
    }

    /// What a tag means, or that it is gone, as far as `origin` may use it.
    pub(crate) async fn tag(&self, live: &Live, tag: &Tag, origin: Option<Uuid>) -> Result<Option<TagRecord>, Error> {
        let key = layout::tag(&live.name, live.record.incarnation, tag);
        let record = records::read::<TagRecord>(&*self.store, &key).await?.map(|(record, _)| record);
        Ok(record.filter(|record| carries_over(record.origin, origin)))
    }

    /// At most `limit` tags that mean something, as far as `origin` may use them, in byte order, those behind `last`
    /// only.
    pub(crate) async fn tags(
        &self,
        live: &Live,
        origin: Option<Uuid>,
        last: &str,
        limit: usize,
    ) -> Result<Vec<Tag>, Error> {
        let prefix = layout::tags_prefix(&live.name, live.record.incarnation);
        // What is no tag cannot be a key, and is compared with instead.
        let mut after = last.parse().ok().map(|last| layout::tag(&live.name, live.record.incarnation, &last));
        let mut tags = Vec::new();
        while tags.len() < limit {
            let keys = self.store.list(&prefix, after.as_ref(), limits::TAG_RECORDS).await?;
            let is_last = keys.len() < limits::TAG_RECORDS;
            after = keys.last().cloned();
            let parsed = keys.iter().filter_map(|key| match layout::parse(key) {
                Some(Parsed::Tag { tag, .. }) if tag.as_str() > last => Some(tag),
                Some(_) | None => None,
            });
            let behind: Vec<Tag> = parsed.collect();
            let mut meant = stream::iter(behind)
                .map(|tag| async move {
                    let record = self.tag(live, &tag, origin).await?;
                    Ok::<_, Error>(record.and_then(|record| record.digest).map(|_| tag))
                })
                .buffered(limits::TAG_READS);
            while let Some(tag) = meant.try_next().await? {
                tags.extend(tag);
                if tags.len() == limit {
                    break;
                }
            }
            if is_last {
                break;
            }
        }
        Ok(tags)
    }

    /// An object with this content, whoever it landed for.
    pub(crate) async fn stored(&self, digest: &Digest) -> Result<Option<Key>, Error> {
        Ok(self.store.list(&layout::blob_prefix(digest), None, 1).await?.pop())
    }

    /// Stores a verified manifest and makes it visible, under a tag where there is one, unless the tag has been validated
    /// since the upstream was asked at that time. Creates the repository if need be. Returns the incarnation that it is in; `None`
    /// if the repository is not to be created here, since its template is not understood.
    pub(crate) async fn commit_manifest(
        &self,
        name: &RepositoryName,
        fill: &FillFrom,
        verified: &Verified,
        tag: Option<(&Tag, DateTime<Utc>)>,
    ) -> Result<Option<Uuid>, Error> {
        let object = match self.stored(&verified.digest).await? {
            Some(object) => object,
            None => {
                let object = layout::blob(&verified.digest, Uuid::now_v7());
                self.store.put_content(&object, &verified.digest, verified.bytes.clone()).await?;
                object
            }
        };
        failpoint::hit("manifest.after_object");
        let now = self.clock.now();
        for _ in 0..TRIES {
            match self.try_commit_manifest(name, fill, verified, &object, tag, now).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(Error::Conflict)
    }

    async fn try_commit_manifest(
        &self,
        name: &RepositoryName,
        fill: &FillFrom,
        verified: &Verified,
        object: &Key,
        tag: Option<(&Tag, DateTime<Utc>)>,
        now: DateTime<Utc>,
    ) -> Result<Option<Uuid>, Error> {
        let Some(draft) = self.draft_repository(name, fill, now).await? else { return Ok(None) };
        let incarnation = draft.record.incarnation;
        let link_key = layout::manifest_link(name, incarnation, &verified.digest);
        let (old_link, link_version) = records::read::<ManifestLink>(&*self.store, &link_key).await?.unzip();
        let mut link = link_of(verified, object, fill, now);
        if let Some(old) = old_link.filter(|old| !old.deleted && old.origin == link.origin) {
            link.cache_time = old.cache_time;
        }
        let tag_draft = match tag {
            Some((tag, asked)) => {
                let draft = self.draft_tag(name, incarnation, tag, Some(&verified.digest), fill, now).await?;
                Some(draft).filter(|draft| !draft.is_overtaken(asked))
            }
            None => None,
        };

        let mut events: Vec<Kind> = draft.event(fill).into_iter().collect();
        events.push(image_cached(&verified.digest, &link));
        events.extend(tag_draft.as_ref().map(TagDraft::event));
        self.outbox.record(name, incarnation, events).await?;
        failpoint::hit("manifest.after_events");

        draft.write(&self.store, name).await?;
        failpoint::hit("manifest.after_repository");
        records::replace(&*self.store, &link_key, link_version.as_ref(), &link).await?;
        failpoint::hit("manifest.after_link");
        self.note_referrer((name, incarnation), verified).await?;
        if let Some(draft) = tag_draft {
            draft.write(&self.store).await?;
            failpoint::hit("manifest.after_tag");
        }
        Ok(Some(incarnation))
    }

    /// Notes that the upstream has just confirmed what a tag means. Somebody else's change in between wins.
    pub(crate) async fn confirm_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), Error> {
        let incarnation = live.record.incarnation;
        let draft = self.draft_tag(&live.name, incarnation, tag, Some(digest), fill, self.clock.now()).await?;
        self.settle_tag(live, draft, digest).await
    }

    /// Notes what the upstream said at `validated` that a tag means, unless it has said something since. The manifest is
    /// linked already. Somebody else's change in between wins.
    pub(crate) async fn note_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        digest: &Digest,
        validated: DateTime<Utc>,
    ) -> Result<(), Error> {
        let known = self.tag(live, tag, Some(fill.origin)).await?;
        if known.is_some_and(|known| known.validate_time >= Some(validated)) {
            return Ok(());
        }
        let incarnation = live.record.incarnation;
        let draft = self.draft_tag(&live.name, incarnation, tag, Some(digest), fill, validated).await?;
        self.outbox.record(&live.name, incarnation, vec![draft.event()]).await?;
        match draft.write(&self.store).await {
            Err(error) if error.is_conflict() => Ok(()),
            done => done,
        }
    }

    /// The revision of a tag's record, whatever that says; `None` if there is none, or no such repository.
    pub(crate) async fn tag_revision(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<i64>, Error> {
        let Some(live) = self.live(name).await? else { return Ok(None) };
        let key = layout::tag(name, live.record.incarnation, tag);
        Ok(records::read::<TagRecord>(&*self.store, &key).await?.map(|(record, _)| record.revision))
    }

    /// Lets a tag mean `digest`, as the upstream said at `said`, if its record is still at revision `base`. Says whether
    /// it was.
    pub(crate) async fn move_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        base: Option<i64>,
        (digest, said): (&Digest, DateTime<Utc>),
    ) -> Result<bool, Error> {
        let incarnation = live.record.incarnation;
        let draft = self.draft_tag(&live.name, incarnation, tag, Some(digest), fill, said).await?;
        if draft.record.revision != base.map_or(1, |base| base + 1) {
            return Ok(false);
        }
        self.outbox.record(&live.name, incarnation, vec![draft.event()]).await?;
        failpoint::hit("sync.before_tag");
        match draft.write(&self.store).await {
            Err(error) if error.is_conflict() => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Notes that the upstream has just said that a tag is gone. Somebody else's change in between wins.
    pub(crate) async fn drop_tag(&self, live: &Live, fill: &FillFrom, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        let incarnation = live.record.incarnation;
        let draft = self.draft_tag(&live.name, incarnation, tag, None, fill, self.clock.now()).await?;
        self.settle_tag(live, draft, digest).await
    }

    /// Writes what is new of a tag that meant `digest`, if it still does.
    async fn settle_tag(&self, live: &Live, draft: TagDraft, digest: &Digest) -> Result<(), Error> {
        if draft.old.as_ref().and_then(|old| old.digest.as_ref()) != Some(digest) {
            return Ok(());
        }
        self.outbox.record(&live.name, live.record.incarnation, vec![draft.event()]).await?;
        match draft.write(&self.store).await {
            Err(error) if error.is_conflict() => Ok(()),
            done => done,
        }
    }

    /// Lets the repository show a blob that its upstream has, if the repository exists: only manifests create one.
    pub(crate) async fn link_blob(
        &self,
        name: &RepositoryName,
        fill: &FillFrom,
        digest: &Digest,
        object: &Key,
        size_bytes: u64,
        platform: Option<String>,
    ) -> Result<(), Error> {
        let Some(live) = self.live(name).await? else { return Ok(()) };
        let key = layout::blob_link(name, live.record.incarnation, digest);
        let version = records::read::<BlobLink>(&*self.store, &key).await?.map(|(_, version)| version);
        let link = BlobLink {
            object: object.clone(),
            size_bytes,
            origin: Some(fill.origin),
            cache_time: self.clock.now(),
            platform,
            deleted: false,
        };
        if let Some(platform) = link.platform.clone() {
            let event = Kind::ConfigCached { digest: digest.clone(), platform };
            self.outbox.record(name, live.record.incarnation, vec![event]).await?;
            failpoint::hit("fill.after_events");
        }
        match records::replace(&*self.store, &key, version.as_ref(), &link).await {
            // Another reader wrote the same.
            Err(error) if error.is_conflict() => {}
            done => drop(done?),
        }
        failpoint::hit("fill.after_link");
        Ok(())
    }

    async fn record(&self, name: &RepositoryName) -> Result<Option<(RepositoryRecord, Version)>, Error> {
        records::read(&*self.store, &layout::repository(name)).await
    }

    /// The repository as it will be once content of `fill` is in it; `None` if it is not to be created here.
    async fn draft_repository(
        &self,
        name: &RepositoryName,
        fill: &FillFrom,
        now: DateTime<Utc>,
    ) -> Result<Option<RepositoryDraft>, Error> {
        let rule_uid = Some(fill.rule.uid);
        let (found, version) = self.record(name).await?.unzip();
        let (record, change) = match found {
            Some(record) if record.state == State::Live && record.rule_uid == rule_uid => (record, Change::None),
            Some(record) if record.state == State::Live => {
                (RepositoryRecord { rule_uid, update_time: now, ..record }, Change::Written)
            }
            Some(_) | None => {
                let incarnation = Uuid::now_v7();
                let settings = match fill.settings() {
                    Ok(settings) => SettingsRecord::from(&settings),
                    Err(LeftOut { item, reason }) => {
                        warn!(repository.name = %name, "`{name}` is not created here, since `{item}` is left out: {reason}");
                        return Ok(None);
                    }
                };
                let (state, create_time, update_time) = (State::Live, now, now);
                let automatic_sync = None;
                let record = RepositoryRecord {
                    incarnation,
                    state,
                    rule_uid,
                    create_time,
                    update_time,
                    settings,
                    automatic_sync,
                };
                (record, Change::Written)
            }
        };
        Ok(Some(RepositoryDraft { record, version, change }))
    }

    async fn draft_tag(
        &self,
        name: &RepositoryName,
        incarnation: Uuid,
        tag: &Tag,
        digest: Option<&Digest>,
        fill: &FillFrom,
        now: DateTime<Utc>,
    ) -> Result<TagDraft, Error> {
        let key = layout::tag(name, incarnation, tag);
        let (old, version) = records::read::<TagRecord>(&*self.store, &key).await?.unzip();
        let record = TagRecord {
            digest: digest.cloned(),
            revision: old.as_ref().map_or(1, |old| old.revision + 1),
            validate_time: Some(now),
            origin: Some(fill.origin),
        };
        Ok(TagDraft { key, tag: tag.clone(), old, version, record })
    }
}

struct RepositoryDraft {
    record: RepositoryRecord,
    version: Option<Version>,
    change: Change,
}

#[derive(PartialEq, Eq)]
enum Change {
    None,
    Written,
}

impl RepositoryDraft {
    fn event(&self, fill: &FillFrom) -> Option<Kind> {
        let (rule_uid, create_time) = (Some(fill.rule.uid), self.record.create_time);
        let settings = self.record.settings.settings();
        (self.change == Change::Written).then_some(Kind::RepositoryCreated { rule_uid, create_time, settings })
    }

    async fn write(&self, store: &Store, name: &RepositoryName) -> Result<(), Error> {
        if self.change == Change::Written {
            records::replace(&**store, &layout::repository(name), self.version.as_ref(), &self.record).await?;
        }
        Ok(())
    }
}

struct TagDraft {
    key: Key,
    tag: Tag,
    old: Option<TagRecord>,
    version: Option<Version>,
    record: TagRecord,
}

impl TagDraft {
    /// Whether the upstream has said something to somebody else since it was asked for this. Without leases it may.
    fn is_overtaken(&self, asked: DateTime<Utc>) -> bool {
        let of_same_origin = self.old.as_ref().filter(|old| old.origin == self.record.origin);
        of_same_origin.is_some_and(|old| old.validate_time > Some(asked))
    }

    fn event(&self) -> Kind {
        Kind::TagMoved {
            tag: self.tag.clone(),
            digest: self.record.digest.clone(),
            revision: self.record.revision,
            validate_time: self.record.validate_time,
        }
    }

    async fn write(&self, store: &Store) -> Result<(), Error> {
        records::replace(&**store, &self.key, self.version.as_ref(), &self.record).await.map(drop)
    }
}

fn link_of(verified: &Verified, object: &Key, fill: &FillFrom, now: DateTime<Utc>) -> ManifestLink {
    let manifest = &verified.manifest;
    ManifestLink {
        object: object.clone(),
        media_type: manifest.media_type,
        size_bytes: verified.bytes.len() as u64,
        config: manifest.config.as_ref().and_then(|config| config.digest.clone()),
        children: manifest.children.iter().filter_map(|child| child.digest.clone()).collect(),
        platforms: manifest.platforms(),
        content_size_bytes: manifest.content_size_bytes(),
        cache_time: now,
        origin: Some(fill.origin),
        deleted: false,
    }
}

fn image_cached(digest: &Digest, link: &ManifestLink) -> Kind {
    let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Kind::ImageCached(Image {
        digest: digest.clone(),
        media_type: link.media_type,
        manifest_size_bytes: signed(link.size_bytes),
        content_size_bytes: signed(link.content_size_bytes),
        platforms: link.platforms.clone(),
        children: link.children.clone(),
        config: link.config.clone(),
        cache_time: link.cache_time,
    })
}

/// Whether a record of one origin means anything to a repository that is filled from another. Without a rule there is
/// nothing to compare with: what was cached goes on being served.
fn carries_over(record: Option<Uuid>, current: Option<Uuid>) -> bool {
    current.is_none() || record == current
}

/// Waits for the store, for as long as it may take, and turns its failures into the reader's.
pub(crate) async fn within_limit<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, PullError> {
    match tokio::time::timeout(limits::STORE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            warn!(error = %chain(&error), "the store did not answer");
            trail::because(|| "the registry's storage was away".to_owned());
            Err(PullError::StoreAway)
        }
        Err(_) => {
            trail::because(|| "the registry's storage took too long".to_owned());
            warn!("the store did not answer within {:?}", limits::STORE);
            Err(PullError::StoreAway)
        }
    }
}
