//! Repairs the index: what the store's records show is in it, what they do not show is not.
//!
//! A run first goes through the index and looks up each row's record, then through the store and looks for each
//! record's row. So a lost event delays a listing by one run, and loses nothing.

use std::collections::HashMap;
use std::time::Duration;

use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_store::layout::{self, Parsed};
use entrepot_store::records::{self, BlobLink, ManifestLink, RepositoryRecord, State, TagRecord};
use entrepot_store::{BlobStore, Key};
use serde::de::DeserializeOwned;
use tracing::info;
use uuid::Uuid;

use super::{Job, Progress};
use crate::api::error::ApiError;
use crate::app::Plane;
use crate::at_once;
use crate::db::tags::{self, Moved};
use crate::db::{Connection, images, repositories};
use crate::index::{self, Verdict};

/// How many repositories of the index a pass looks at.
const REPOSITORIES: i64 = 50;
/// How many rows of one repository are looked up at a time.
const ROWS: i64 = 500;
/// How many keys of the store a pass looks at.
const KEYS: usize = 1000;

/// How far a run has come.
#[derive(Default)]
pub(super) enum Reconcile {
    /// Nothing is done yet.
    #[default]
    Begin,
    /// Going through the index; the repositories up to this name are done.
    Index(String),
    /// Going through the store; the keys up to this one are done.
    Store(Option<Key>),
}

impl Job for Reconcile {
    const NAME: &'static str = "reconcile";
    const EVERY: Duration = Duration::from_secs(10 * 60);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let next = match self {
            Self::Begin => check_index(plane, "").await?,
            Self::Index(after) => check_index(plane, after).await?,
            Self::Store(after) => check_store(plane, after.as_ref()).await?,
        };
        *self = next;
        Ok(if matches!(self, Self::Begin) { Progress::Done } else { Progress::More })
    }
}

/// Looks up the records of some repositories that the index has.
async fn check_index(plane: &Plane, after: &str) -> Result<Reconcile, ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("reconcile_repositories").await?;
    let rows = repositories::settled(&tx, after, REPOSITORIES).await?;
    drop(tx);
    for (name, incarnation) in &rows {
        let record = read::<RepositoryRecord>(plane, &layout::repository(name)).await?;
        let verdict = Verdict::of(record.as_ref(), *incarnation);
        if let (Verdict::Live, Some(record)) = (verdict, &record) {
            let tx = connection.begin("reconcile_rule").await?;
            repositories::adopt(&tx, *incarnation, record.rule_uid).await?;
            tx.commit().await?;
            check_images(plane, &mut connection, name, *incarnation).await?;
            check_tags(plane, &mut connection, name, *incarnation).await?;
            continue;
        }
        let tx = connection.begin("reconcile_gone").await?;
        repositories::lock_name(&tx, name).await?;
        if verdict == Verdict::Dead {
            repositories::bury(&tx, &[*incarnation], plane.clock.now()).await?;
        } else {
            repositories::forget(&tx, *incarnation).await?;
        }
        tx.commit().await?;
        info!(repository.name = %name, "removed `{name}` from the index: the store does not have it");
    }
    Ok(match rows.last() {
        Some((last, _)) => Reconcile::Index(last.to_string()),
        None => Reconcile::Store(None),
    })
}

/// Removes images from the index whose links are gone.
async fn check_images(
    plane: &Plane,
    connection: &mut Connection,
    name: &RepositoryName,
    incarnation: Uuid,
) -> Result<(), ApiError> {
    let mut after = String::new();
    loop {
        let tx = connection.begin("reconcile_images").await?;
        let rows = images::settled(&tx, incarnation, &after, ROWS).await?;
        drop(tx);
        let Some(last) = rows.last() else { return Ok(()) };
        after = last.to_string();
        let links = rows.into_iter().map(|digest| async move {
            let link = read::<ManifestLink>(plane, &layout::manifest_link(name, incarnation, &digest)).await?;
            Ok::<_, ApiError>((digest, link))
        });
        let links = at_once::all(links).await?;
        let tx = connection.begin("reconcile_images").await?;
        for (digest, link) in links {
            match link {
                Some(link) if link.deleted => images::delete(&tx, incarnation, &digest, link.cache_time).await?,
                Some(_) => {}
                None => images::forget(&tx, incarnation, &digest).await?,
            }
        }
        tx.commit().await?;
    }
}

/// Brings tags of the index up to their records.
async fn check_tags(
    plane: &Plane,
    connection: &mut Connection,
    name: &RepositoryName,
    incarnation: Uuid,
) -> Result<(), ApiError> {
    let mut after = String::new();
    loop {
        let tx = connection.begin("reconcile_tags").await?;
        let rows = tags::settled(&tx, incarnation, &after, ROWS).await?;
        drop(tx);
        let Some(last) = rows.last() else { return Ok(()) };
        after = last.to_string();
        let read = rows.into_iter().map(|tag| async move {
            let record = read::<TagRecord>(plane, &layout::tag(name, incarnation, &tag)).await?;
            Ok::<_, ApiError>((tag, record))
        });
        let read: Vec<_> = at_once::all(read).await?;
        let tx = connection.begin("reconcile_tags").await?;
        for (tag, record) in read {
            match record {
                Some(record) => tags::correct(&tx, incarnation, moved(&tag, &record)).await?,
                None => tags::forget(&tx, incarnation, &tag).await?,
            }
        }
        tx.commit().await?;
    }
}

/// What a part of the store shows, by what the index is asked.
#[derive(Default)]
struct Shown {
    names: Vec<RepositoryName>,
    images: Vec<(RepositoryName, Uuid, Digest)>,
    tags: Vec<(RepositoryName, Uuid, Tag)>,
}

impl Shown {
    fn of(keys: &[Key]) -> Self {
        let mut shown = Self::default();
        for parsed in keys.iter().filter_map(layout::parse) {
            match parsed {
                Parsed::Repository { name } => shown.names.push(name),
                Parsed::ManifestLink { name, incarnation, digest } => {
                    shown.names.push(name.clone());
                    shown.images.push((name, incarnation, digest));
                }
                Parsed::Tag { name, incarnation, tag } => {
                    shown.names.push(name.clone());
                    shown.tags.push((name, incarnation, tag));
                }
                Parsed::Blob { .. }
                | Parsed::BlobLink { .. }
                | Parsed::Upload { .. }
                | Parsed::SnapshotHead
                | Parsed::Snapshot { .. }
                | Parsed::Node { .. }
                | Parsed::Event { .. } => {}
            }
        }
        shown.names.sort();
        shown.names.dedup();
        shown
    }
}

/// Looks for the rows of some records that the store has.
async fn check_store(plane: &Plane, after: Option<&Key>) -> Result<Reconcile, ApiError> {
    let keys = plane.store.list(&layout::repositories_prefix(), after, KEYS).await?;
    let mut shown = Shown::of(&keys);
    let records = shown.names.drain(..).map(|name| async move {
        let record = read::<RepositoryRecord>(plane, &layout::repository(&name)).await?;
        Ok::<_, ApiError>(record.filter(|record| record.state == State::Live).map(|record| (name, record)))
    });
    let records: Vec<_> = at_once::all(records).await?;
    let live: HashMap<RepositoryName, RepositoryRecord> = records.into_iter().flatten().collect();
    let is_live = |name: &RepositoryName, incarnation: Uuid| {
        live.get(name).is_some_and(|record| record.incarnation == incarnation)
    };
    shown.images.retain(|(name, incarnation, _)| is_live(name, *incarnation));
    shown.tags.retain(|(name, incarnation, _)| is_live(name, *incarnation));

    let mut connection = plane.db.connect().await?;
    add_repositories(&mut connection, &live).await?;
    add_images(plane, &mut connection, shown.images).await?;
    add_tags(plane, &mut connection, shown.tags).await?;
    let is_last = keys.len() < KEYS;
    Ok(if is_last { Reconcile::Begin } else { Reconcile::Store(keys.into_iter().next_back()) })
}

async fn add_repositories(
    connection: &mut Connection,
    live: &HashMap<RepositoryName, RepositoryRecord>,
) -> Result<(), ApiError> {
    let all: Vec<Uuid> = live.values().map(|record| record.incarnation).collect();
    let tx = connection.begin("reconcile_repositories").await?;
    let known: HashMap<Uuid, bool> = repositories::known(&tx, &all).await?.into_iter().collect();
    drop(tx);
    for (name, record) in live.iter().filter(|(_, record)| !known.contains_key(&record.incarnation)) {
        let tx = connection.begin("reconcile_repository").await?;
        index::ensure(&tx, name, record).await?;
        tx.commit().await?;
        info!(repository.name = %name, "added `{name}` to the index: the store has it");
    }
    Ok(())
}

async fn add_images(
    plane: &Plane,
    connection: &mut Connection,
    shown: Vec<(RepositoryName, Uuid, Digest)>,
) -> Result<(), ApiError> {
    let asked: Vec<_> = shown.iter().map(|(_, incarnation, digest)| (*incarnation, digest.clone())).collect();
    let tx = connection.begin("reconcile_images").await?;
    let missing = images::missing(&tx, &asked).await?;
    drop(tx);
    let read = missing.into_iter().filter_map(|i| shown.get(i)).map(|(name, incarnation, digest)| async move {
        let link = read::<ManifestLink>(plane, &layout::manifest_link(name, *incarnation, digest)).await?;
        let config = link.as_ref().filter(|link| !link.deleted).and_then(|link| link.config.as_ref());
        let config = match config {
            Some(config) => read::<BlobLink>(plane, &layout::blob_link(name, *incarnation, config)).await?,
            None => None,
        };
        Ok::<_, ApiError>((*incarnation, digest, link, config.and_then(|config| config.platform)))
    });
    let read: Vec<_> = at_once::all(read).await?;
    let tx = connection.begin("reconcile_images").await?;
    let there: Vec<Uuid> = repositories::lock(&tx, &incarnations(read.iter().map(|row| row.0))).await?;
    for (incarnation, digest, link, platform) in read {
        let Some(link) = link.filter(|link| !link.deleted && there.contains(&incarnation)) else { continue };
        images::put(&tx, incarnation, &index::image(digest, &link)).await?;
        if let (Some(config), Some(platform)) = (&link.config, &platform) {
            images::put_config(&tx, incarnation, config, platform).await?;
        }
    }
    Ok(tx.commit().await?)
}

async fn add_tags(
    plane: &Plane,
    connection: &mut Connection,
    shown: Vec<(RepositoryName, Uuid, Tag)>,
) -> Result<(), ApiError> {
    let asked: Vec<_> = shown.iter().map(|(_, incarnation, tag)| (*incarnation, tag.clone())).collect();
    let tx = connection.begin("reconcile_tags").await?;
    let missing = tags::missing(&tx, &asked).await?;
    drop(tx);
    let read = missing.into_iter().filter_map(|i| shown.get(i)).map(|(name, incarnation, tag)| async move {
        let record = read::<TagRecord>(plane, &layout::tag(name, *incarnation, tag)).await?;
        Ok::<_, ApiError>((*incarnation, tag, record))
    });
    let read: Vec<_> = at_once::all(read).await?;
    let tx = connection.begin("reconcile_tags").await?;
    let there: Vec<Uuid> = repositories::lock(&tx, &incarnations(read.iter().map(|row| row.0))).await?;
    for (incarnation, tag, record) in read {
        if let Some(record) = record.filter(|_| there.contains(&incarnation)) {
            tags::put(&tx, incarnation, moved(tag, &record)).await?;
        }
    }
    Ok(tx.commit().await?)
}

fn moved<'r>(tag: &'r Tag, record: &'r TagRecord) -> Moved<'r> {
    Moved { tag, digest: record.digest.as_ref(), revision: record.revision, validate_time: record.validate_time }
}

fn incarnations(all: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    let all: std::collections::BTreeSet<Uuid> = all.collect();
    all.into_iter().collect()
}

async fn read<T: DeserializeOwned>(plane: &Plane, key: &Key) -> Result<Option<T>, ApiError> {
    let store: &dyn BlobStore = &*plane.store;
    Ok(records::read::<T>(store, key).await?.map(|(record, _)| record))
}
