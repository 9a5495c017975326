//! Goes through the store: records whose rows are missing get them.

use std::collections::{BTreeSet, HashMap};

use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{BlobLink, ManifestLink, RepositoryRecord, TagRecord};
use entrepot_store::Key;
use tracing::info;
use uuid::Uuid;

use super::{Books, Position, Reindexed, moved};
use crate::db::{Connection, images, repositories, tags};
use crate::error::ApiError;
use crate::{at_once, index};

/// How many keys of the store are looked at in one step.
const KEYS: usize = 1000;

/// What a part of the store shows, by what the index is asked.
#[derive(Default)]
struct Shown {
    /// Whose own records are among the keys.
    repositories: BTreeSet<RepositoryName>,
    /// Of whom there is anything.
    names: BTreeSet<RepositoryName>,
    images: Vec<(RepositoryName, Uuid, Digest)>,
    tags: Vec<(RepositoryName, Uuid, Tag)>,
}

impl Shown {
    fn of(keys: &[Key]) -> Self {
        let mut shown = Self::default();
        for parsed in keys.iter().filter_map(layout::parse) {
            match parsed {
                Parsed::Repository { name } => {
                    shown.names.insert(name.clone());
                    shown.repositories.insert(name);
                }
                Parsed::ManifestLink { name, incarnation, digest } => {
                    shown.names.insert(name.clone());
                    shown.images.push((name, incarnation, digest));
                }
                Parsed::Tag { name, incarnation, tag } => {
                    shown.names.insert(name.clone());
                    shown.tags.push((name, incarnation, tag));
                }
                Parsed::Version
                | Parsed::Content { .. }
                | Parsed::Pointer { .. }
                | Parsed::PushSession { .. }
                | Parsed::PushTail { .. }
                | Parsed::BlobLink { .. }
                | Parsed::TagList { .. }
                | Parsed::ReferrerList { .. }
                | Parsed::Referrer { .. }
                | Parsed::Upload { .. }
                | Parsed::SnapshotHead
                | Parsed::Snapshot { .. }
                | Parsed::Node { .. }
                | Parsed::Event { .. }
                | Parsed::Probe { .. } => {}
            }
        }
        shown
    }
}

impl Books<'_> {
    /// Looks for the rows of some records that the store has.
    pub(super) async fn check_store(&self, after: Option<&Key>, counts: &mut Reindexed) -> Result<Position, ApiError> {
        let entries = self.store.list(&layout::repositories_prefix(), after, KEYS).await?;
        let keys: Vec<Key> = entries.into_iter().map(|entry| entry.key).collect();
        let mut shown = Shown::of(&keys);
        let records = std::mem::take(&mut shown.names).into_iter().map(|name| async move {
            let record = self.read::<RepositoryRecord>(&layout::repository(&name)).await?.record();
            Ok::<_, ApiError>(record.filter(RepositoryRecord::is_live).map(|record| (name, record)))
        });
        let records: Vec<_> = at_once::all(records).await?;
        let live: HashMap<RepositoryName, RepositoryRecord> = records.into_iter().flatten().collect();
        let is_live = |name: &RepositoryName, incarnation: Uuid| {
            live.get(name).is_some_and(|record| record.incarnation == incarnation)
        };
        shown.images.retain(|(name, incarnation, _)| is_live(name, *incarnation));
        shown.tags.retain(|(name, incarnation, _)| is_live(name, *incarnation));

        let found = shown.repositories.iter().filter(|name| live.contains_key(*name)).count();
        counts.repositories.found += u64::try_from(found).unwrap_or(u64::MAX);
        let mut connection = self.db.connect().await?;
        add_repositories(&mut connection, &live, counts).await?;
        self.add_images(&mut connection, shown.images, counts).await?;
        self.add_tags(&mut connection, shown.tags, counts).await?;
        let is_last = keys.len() < KEYS;
        Ok(if is_last { Position::Begin } else { Position::Store(keys.into_iter().next_back()) })
    }

    async fn add_images(
        &self,
        connection: &mut Connection,
        shown: Vec<(RepositoryName, Uuid, Digest)>,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let asked: Vec<_> = shown.iter().map(|(_, incarnation, digest)| (*incarnation, digest.clone())).collect();
        let tx = connection.begin("reconcile_images").await?;
        let missing = images::missing(&tx, &asked).await?;
        drop(tx);
        counts.images.found += u64::try_from(shown.len() - missing.len()).unwrap_or(u64::MAX);
        let read = missing.into_iter().filter_map(|i| shown.get(i)).map(|(name, incarnation, digest)| async move {
            let link = self.read::<ManifestLink>(&layout::manifest_link(name, *incarnation, digest)).await?.record();
            let link = link.filter(ManifestLink::is_live);
            let config = match link.as_ref().and_then(|link| link.config.as_ref()).map(|config| &config.digest) {
                Some(config) => self.read::<BlobLink>(&layout::blob_link(name, *incarnation, config)).await?.record(),
                None => None,
            };
            Ok::<_, ApiError>(link.map(|link| (*incarnation, digest, link, config.and_then(|config| config.platform))))
        });
        let read: Vec<_> = at_once::all(read).await?.into_iter().flatten().collect();
        let tx = connection.begin("reconcile_images").await?;
        let there: Vec<Uuid> = repositories::lock(&tx, &incarnations(read.iter().map(|row| row.0))).await?;
        for (incarnation, digest, link, platform) in read {
            counts.images.found += 1;
            if !there.contains(&incarnation) {
                continue;
            }
            let Some(image) = index::image(digest, &link) else { continue };
            counts.images.added += images::put(&tx, incarnation, &image).await?;
            if let (Some(config), Some(platform)) = (&link.config, &platform) {
                images::put_config(&tx, incarnation, &config.digest, platform).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    async fn add_tags(
        &self,
        connection: &mut Connection,
        shown: Vec<(RepositoryName, Uuid, Tag)>,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let asked: Vec<_> = shown.iter().map(|(_, incarnation, tag)| (*incarnation, tag.clone())).collect();
        let tx = connection.begin("reconcile_tags").await?;
        let missing = tags::missing(&tx, &asked).await?;
        drop(tx);
        counts.tags.found += u64::try_from(shown.len() - missing.len()).unwrap_or(u64::MAX);
        let read = missing.into_iter().filter_map(|i| shown.get(i)).map(|(name, incarnation, tag)| async move {
            let record = self.read::<TagRecord>(&layout::tag(name, *incarnation, tag)).await?.record();
            Ok::<_, ApiError>(record.map(|record| (*incarnation, tag, record)))
        });
        let read: Vec<_> = at_once::all(read).await?.into_iter().flatten().collect();
        let tx = connection.begin("reconcile_tags").await?;
        let there: Vec<Uuid> = repositories::lock(&tx, &incarnations(read.iter().map(|row| row.0))).await?;
        for (incarnation, tag, record) in read {
            if there.contains(&incarnation) {
                let changed = tags::put(&tx, incarnation, moved(tag, &record)).await?;
                // A tombstone that the index did not have is nothing that it lacked.
                if record.digest.is_some() {
                    counts.tags.found += 1;
                    counts.tags.added += changed;
                }
            }
        }
        Ok(tx.commit().await?)
    }
}

async fn add_repositories(
    connection: &mut Connection,
    live: &HashMap<RepositoryName, RepositoryRecord>,
    counts: &mut Reindexed,
) -> Result<(), ApiError> {
    let all: Vec<Uuid> = live.values().map(|record| record.incarnation).collect();
    let tx = connection.begin("reconcile_repositories").await?;
    let known: HashMap<Uuid, bool> = repositories::known(&tx, &all).await?.into_iter().collect();
    drop(tx);
    for (name, record) in live.iter().filter(|(_, record)| !known.contains_key(&record.incarnation)) {
        let tx = connection.begin("reconcile_repository").await?;
        let added = index::ensure(&tx, name, record).await?;
        tx.commit().await?;
        if added {
            counts.repositories.added += 1;
            info!(repository.name = %name, "added `{name}` to the index: the store has it");
        }
    }
    Ok(())
}

fn incarnations(all: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    let all: BTreeSet<Uuid> = all.collect();
    all.into_iter().collect()
}
