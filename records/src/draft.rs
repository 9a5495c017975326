//! Drafts: records about to be written, with the version that the conditional write expects.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_store::{BlobStore, Error, Key, Version};
use uuid::Uuid;

use crate::commit::{Change, Writer};
use crate::repository::{Kind, Provenance, RepositoryRecord, SettingsRecord, State};
use crate::tag::{Stamp, TagRecord, next_revision};
use crate::word::rest_of_new;
use crate::{ManifestLink, layout, not_understood, read, read_mendable, replace};

/// The replacement of a record by one with another meaning. All nodes are told when it ends, even if its caller has
/// stopped waiting, since it may have happened.
struct Replacing<'a> {
    writer: &'a dyn Writer,
    key: &'a Key,
}

impl Drop for Replacing<'_> {
    fn drop(&mut self) {
        self.writer.on_replaced(self.key);
    }
}

/// The future record of a repository that gets content.
pub(crate) struct RepositoryDraft {
    pub(crate) record: RepositoryRecord,
    version: Option<Version>,
    is_changed: bool,
}

/// Whether something was deleted, or asked for by others, after an upstream had been asked. A time in the future says
/// nothing: some clock is wrong.
fn is_since(time: DateTime<Utc>, asked: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    asked < time && time <= now
}

impl RepositoryDraft {
    /// Drafts the record of a cached repository that gets content of `from`. `settings` are for a repository that does
    /// not exist yet. Returns `None` if it does not exist and there are no settings to create it with.
    pub(crate) async fn read(
        store: &dyn BlobStore,
        name: &RepositoryName,
        from: &Provenance,
        settings: Option<&SettingsRecord>,
        now: DateTime<Utc>,
    ) -> Result<Option<Self>, Error> {
        let key = layout::repository(name);
        let (found, version) = read::<RepositoryRecord>(store, &key).await?.unzip();
        if let Some(why) = found.as_ref().and_then(RepositoryRecord::not_understood) {
            return Err(not_understood(&key, why));
        }
        let filled_by = |record: RepositoryRecord| {
            let (rule_uid, origin) = (Some(from.rule_uid), Some(from.origin.in_place_of(record.origin.as_ref())));
            RepositoryRecord { rule_uid, origin, update_time: now, ..record }
        };
        let delete_time = found.as_ref().filter(|found| found.state == State::Deleted).map(|found| found.update_time);
        let (record, is_changed) = match found.filter(|record| record.state == State::Live) {
            Some(record) if record.kind != Kind::Cached => {
                return Err(not_understood(&key, "a repository that is pushed to is not filled"));
            }
            Some(record) if from.covers(record.rule_uid, record.origin.as_ref()) => (record, false),
            Some(record) => (filled_by(record), true),
            None => {
                let Some(settings) = settings else { return Ok(None) };
                let record =
                    RepositoryRecord { delete_time_before: delete_time, ..RepositoryRecord::new(Uuid::now_v7(), now) };
                (filled_by(RepositoryRecord { settings: settings.clone(), ..record }), true)
            }
        };
        Ok(Some(Self { record, version, is_changed }))
    }

    /// Whether the repository of this name was deleted after an upstream had been asked; this may be a later one.
    pub(crate) fn was_deleted_since(&self, asked: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        self.record.delete_time_before.is_some_and(|deleted| is_since(deleted, asked, now))
    }

    pub(crate) fn change(&self) -> Option<Change> {
        self.is_changed.then(|| Change::Repository(Box::new(self.record.clone())))
    }

    pub(crate) async fn write(
        &self,
        store: &dyn BlobStore,
        writer: &dyn Writer,
        name: &RepositoryName,
    ) -> Result<(), Error> {
        if !self.is_changed {
            return Ok(());
        }
        let key = layout::repository(name);
        let _replacing = self.version.is_some().then(|| Replacing { writer, key: &key });
        replace(store, &key, self.version.as_ref(), &self.record).await.map(drop)
    }
}

/// The future link of a manifest.
pub(crate) struct LinkDraft {
    pub(crate) key: Key,
    pub(crate) link: ManifestLink,
    version: Option<Version>,
    is_changed: bool,
    /// When the one that it replaces was deleted, if it was. A revision begins as a time.
    delete_time: Option<DateTime<Utc>>,
}

impl LinkDraft {
    /// Drafts the replacement of the link at `key` by `link`. A damaged link is replaced, too.
    pub(crate) async fn read(
        store: &dyn BlobStore,
        key: Key,
        link: ManifestLink,
        from: &Provenance,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let (old, version) = read_mendable::<ManifestLink>(store, &key).await?.into_parts();
        let mut link = ManifestLink { rule_uid: Some(from.rule_uid), origin: Some(from.origin.clone()), ..link };
        let Some(old) = old else {
            link.revision = next_revision(None, now);
            return Ok(Self { key, link, version, is_changed: true, delete_time: None });
        };
        if old.state.known().is_none() {
            return Err(not_understood(&key, format!("its state `{}` is of another release", old.state)));
        }
        let delete_time = (!old.is_live()).then(|| DateTime::from_timestamp_micros(old.revision)).flatten();
        let is_ours = old.is_live() && from.covers(old.rule_uid, old.origin.as_ref());
        if is_ours {
            link.cache_time = old.cache_time;
        }
        (link.revision, link.write) = (old.revision, old.write);
        link = link.in_place_of(&old);
        let is_changed = link != old;
        if is_changed {
            link.revision = next_revision(Some(old.revision), now);
        }
        Ok(Self { key, link, version, is_changed, delete_time })
    }

    /// Whether the link was deleted after an upstream had been asked.
    pub(crate) fn was_deleted_since(&self, asked: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        self.delete_time.is_some_and(|deleted| is_since(deleted, asked, now))
    }

    pub(crate) async fn write(&self, store: &dyn BlobStore) -> Result<(), Error> {
        if self.is_changed {
            replace(store, &self.key, self.version.as_ref(), &self.link).await?;
        }
        Ok(())
    }
}

/// A new meaning of a tag.
pub(crate) struct Meaning<'a> {
    /// The digest; `None` drops the tag.
    pub(crate) digest: Option<&'a Digest>,
    /// The revision of the digest's link, if known.
    pub(crate) link_revision: Option<i64>,
    /// The rule and the place that gave this meaning.
    pub(crate) from: &'a Provenance,
    /// When it was given.
    pub(crate) validate_time: DateTime<Utc>,
}

/// The future record of a tag.
pub(crate) struct TagDraft {
    key: Key,
    tag: Tag,
    pub(crate) old: Option<TagRecord>,
    version: Option<Version>,
    pub(crate) record: TagRecord,
}

impl TagDraft {
    /// Drafts giving the tag this meaning at `now`. A damaged record is replaced.
    pub(crate) async fn read(
        store: &dyn BlobStore,
        (name, incarnation): (&RepositoryName, Uuid),
        tag: &Tag,
        meaning: Meaning<'_>,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let key = layout::tag(name, incarnation, tag);
        let (old, version) = read_mendable::<TagRecord>(store, &key).await?.into_parts();
        let same = old.as_ref().filter(|old| old.digest.as_ref() == meaning.digest);
        let record = TagRecord {
            link_revision: meaning.link_revision.or_else(|| same.and_then(|old| old.link_revision)),
            stamp: same.and_then(|old| old.stamp.clone()).or_else(|| Some(Stamp::at(now))),
            validate_time: Some(meaning.validate_time),
            rule_uid: Some(meaning.from.rule_uid),
            origin: Some(meaning.from.origin.in_place_of(old.as_ref().and_then(|old| old.origin.as_ref()))),
            rest: old.as_ref().map_or_else(rest_of_new, |old| old.rest.clone()),
            ..TagRecord::new(meaning.digest.cloned(), next_revision(old.as_ref().map(|old| old.revision), now))
        };
        Ok(Self { key, tag: tag.clone(), old, version, record })
    }

    /// Whether somebody else has asked an upstream after `asked`, or the tag was deleted since. This happens without leases,
    /// and to a node that does not know of a new rule yet: what an older rule brings must not replace what a newer one has
    /// brought.
    pub(crate) fn is_overtaken(&self, asked: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let validated = self.old.as_ref().and_then(|old| old.validate_time);
        validated.is_some_and(|validated| is_since(validated, asked, now)) || self.was_deleted_since(asked, now)
    }

    /// Whether the tag was deleted after an upstream had been asked.
    pub(crate) fn was_deleted_since(&self, asked: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let tombstone = self.old.as_ref().filter(|old| old.digest.is_none());
        let deleted = tombstone.and_then(|old| DateTime::from_timestamp_micros(old.revision));
        deleted.is_some_and(|deleted| is_since(deleted, asked, now))
    }

    pub(crate) fn change(&self) -> Change {
        Change::Tag { tag: self.tag.clone(), record: Box::new(self.record.clone()) }
    }

    pub(crate) async fn write(&self, store: &dyn BlobStore, writer: &dyn Writer) -> Result<(), Error> {
        // Nobody needs to be told of a new record or a confirmation: nodes read the record before they ask an upstream.
        let before = self.old.as_ref().and_then(|old| old.digest.as_ref());
        let is_moved = before.is_some() && before != self.record.digest.as_ref();
        let _replacing = is_moved.then(|| Replacing { writer, key: &self.key });
        replace(store, &self.key, self.version.as_ref(), &self.record).await.map(drop)
    }
}
