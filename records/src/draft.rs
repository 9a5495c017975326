//! Drafts: records as they will be, with what a conditional write has to find.

use chrono::{DateTime, TimeDelta, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_store::{BlobStore, Error, Key, Version};
use uuid::Uuid;

use crate::commit::{Change, Writer};
use crate::repository::{Kind, Provenance, RepositoryRecord, SettingsRecord, State};
use crate::tag::{Stamp, TagRecord, next_revision};
use crate::{ManifestLink, layout, not_understood, read, read_mendable, replace};

/// A repository as it will be once content is in it.
pub(crate) struct RepositoryDraft {
    pub(crate) record: RepositoryRecord,
    version: Option<Version>,
    is_changed: bool,
}

impl RepositoryDraft {
    /// A cached repository that content of `from` comes into; `settings` are for one that does not exist yet;
    /// `None` if there is none, and none is to be created.
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
            let (rule_uid, origin) = (Some(from.rule_uid), Some(from.origin.clone()));
            RepositoryRecord { rule_uid, origin, update_time: now, ..record }
        };
        let (record, is_changed) = match found.filter(|record| record.state == State::Live) {
            Some(record) if record.kind != Kind::Cached => {
                return Err(not_understood(&key, "a repository that is pushed to is not filled"));
            }
            Some(record) if from.covers(record.rule_uid, record.origin.as_ref()) => (record, false),
            Some(record) => (filled_by(record), true),
            None => {
                let Some(settings) = settings else { return Ok(None) };
                let record = RepositoryRecord::new(Uuid::now_v7(), now);
                (filled_by(RepositoryRecord { settings: settings.clone(), ..record }), true)
            }
        };
        Ok(Some(Self { record, version, is_changed }))
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
        let written = replace(store, &key, self.version.as_ref(), &self.record).await;
        if self.version.is_some() {
            writer.replaced(&key);
        }
        written.map(drop)
    }
}

/// A manifest's link as it will be.
pub(crate) struct LinkDraft {
    pub(crate) key: Key,
    pub(crate) link: ManifestLink,
    version: Option<Version>,
    is_changed: bool,
}

impl LinkDraft {
    /// The link at `key`, which becomes `link`. One that is damaged is replaced.
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
            return Ok(Self { key, link, version, is_changed: true });
        };
        if old.state.known().is_none() {
            return Err(not_understood(&key, format!("its state `{}` is of another release", old.state)));
        }
        let is_ours = old.is_live() && from.covers(old.rule_uid, old.origin.as_ref());
        link.cache_time = if is_ours {
            old.cache_time
        } else {
            // The index goes by this time, so it grows also where the clocks of two nodes differ.
            link.cache_time.max(old.cache_time + TimeDelta::microseconds(1))
        };
        (link.revision, link.write, link.rest) = (old.revision, old.write, old.rest.clone());
        let is_changed = link != old;
        if is_changed {
            link.revision = next_revision(Some(old.revision), now);
        }
        Ok(Self { key, link, version, is_changed })
    }

    pub(crate) async fn write(&self, store: &dyn BlobStore) -> Result<(), Error> {
        if self.is_changed {
            replace(store, &self.key, self.version.as_ref(), &self.link).await?;
        }
        Ok(())
    }
}

/// What a tag is to mean.
pub(crate) struct Meaning<'a> {
    /// The digest; `None` drops the tag.
    pub(crate) digest: Option<&'a Digest>,
    /// The revision of the digest's link, where that is known.
    pub(crate) link_revision: Option<i64>,
    /// Who said so.
    pub(crate) from: &'a Provenance,
    /// When.
    pub(crate) validate_time: DateTime<Utc>,
}

/// A tag as it will be.
pub(crate) struct TagDraft {
    key: Key,
    tag: Tag,
    pub(crate) old: Option<TagRecord>,
    version: Option<Version>,
    pub(crate) record: TagRecord,
}

impl TagDraft {
    /// A tag that gets this meaning at `now`. A record that is damaged is replaced.
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
            origin: Some(meaning.from.origin.clone()),
            rest: old.as_ref().map(|old| old.rest.clone()).unwrap_or_default(),
            ..TagRecord::new(meaning.digest.cloned(), next_revision(old.as_ref().map(|old| old.revision), now))
        };
        Ok(Self { key, tag: tag.clone(), old, version, record })
    }

    /// Whether the upstream has said something to somebody else since it was asked for this. Without leases it may.
    pub(crate) fn is_overtaken(&self, asked: DateTime<Utc>, from: &Provenance) -> bool {
        let of_same = self.old.as_ref().filter(|old| from.covers(old.rule_uid, old.origin.as_ref()));
        of_same.is_some_and(|old| old.validate_time > Some(asked))
    }

    pub(crate) fn change(&self) -> Change {
        Change::Tag { tag: self.tag.clone(), record: Box::new(self.record.clone()) }
    }

    pub(crate) async fn write(&self, store: &dyn BlobStore, writer: &dyn Writer) -> Result<(), Error> {
        let written = replace(store, &self.key, self.version.as_ref(), &self.record).await;
        // What did not exist, and what was confirmed, is told to nobody: it is read before an upstream is asked.
        let before = self.old.as_ref().and_then(|old| old.digest.as_ref());
        if before.is_some() && before != self.record.digest.as_ref() {
            writer.replaced(&self.key);
        }
        written.map(drop)
    }
}
