//! Deletions by tombstones. From then on the thing is invisible, whatever the index says.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_store::{BlobStore, Error, Key};
use uuid::Uuid;

use crate::claim::TRIES;
use crate::tag::{Stamp, next_revision};
use crate::{ManifestLink, Record, RepositoryRecord, State, TagRecord, layout, not_understood, read, replace};

/// Deletes a repository, and returns its live record.
///
/// # Errors
/// If the store is away, or the record cannot be read.
pub async fn bury_repository(
    store: &dyn BlobStore,
    name: &RepositoryName,
    now: DateTime<Utc>,
) -> Result<Option<RepositoryRecord>, Error> {
    let key = layout::repository(name);
    bury(store, &key, |record: &mut RepositoryRecord| {
        if let Some(why) = record.not_understood() {
            return Err(not_understood(&key, why));
        }
        let is_live = record.is_live();
        (record.state, record.update_time) = (State::Deleted.into(), now);
        Ok(is_live)
    })
    .await
}

/// Deletes a tag for which `is_meant` is true. Returns the former record and the tombstone's revision.
///
/// # Errors
/// If the store is away, or the record cannot be read.
pub async fn bury_tag(
    store: &dyn BlobStore,
    (name, incarnation): (&RepositoryName, Uuid),
    tag: &Tag,
    now: DateTime<Utc>,
    is_meant: impl Fn(&Digest) -> bool + Send + Sync,
) -> Result<Option<(TagRecord, i64)>, Error> {
    let key = layout::tag(name, incarnation, tag);
    let before = bury(store, &key, |record: &mut TagRecord| {
        let meant = record.digest.as_ref().is_some_and(&is_meant);
        (record.digest, record.link_revision, record.validate_time) = (None, None, None);
        record.stamp = Some(Stamp::at(now));
        record.revision = next_revision(Some(record.revision), now);
        Ok(meant)
    });
    Ok(before.await?.map(|record| {
        let revision = next_revision(Some(record.revision), now);
        (record, revision)
    }))
}

/// Deletes the link of a manifest. Returns the tombstone, even if the link was deleted before, and whether it was live.
///
/// # Errors
/// If the store is away, or the record cannot be read.
pub async fn bury_manifest(
    store: &dyn BlobStore,
    (name, incarnation): (&RepositoryName, Uuid),
    digest: &Digest,
    now: DateTime<Utc>,
) -> Result<Option<Buried>, Error> {
    let key = layout::manifest_link(name, incarnation, digest);
    let buried = bury(store, &key, |link: &mut ManifestLink| {
        if link.state.known().is_none() {
            return Err(not_understood(&key, format!("its state `{}` is of another release", link.state)));
        }
        let is_live = link.is_live();
        link.state = State::Deleted.into();
        link.revision = next_revision(Some(link.revision), now);
        Ok(is_live)
    });
    match buried.await? {
        Some(link) => {
            let revision = next_revision(Some(link.revision), now);
            Ok(Some(Buried { was_live: true, link: ManifestLink { revision, state: State::Deleted.into(), ..link } }))
        }
        None => {
            let link = read::<ManifestLink>(store, &key).await?.map(|(link, _)| link);
            Ok(link.filter(|link| !link.is_live()).map(|link| Buried { was_live: false, link }))
        }
    }
}

/// A link that was deleted.
#[derive(Clone, Debug)]
pub struct Buried {
    pub was_live: bool,
    pub link: ManifestLink,
}

/// Replaces a record by the tombstone that `to_tombstone` returns, unless it returns that nothing is to be deleted.
/// Returns the former record.
async fn bury<T: Record>(
    store: &dyn BlobStore,
    key: &Key,
    to_tombstone: impl Fn(&mut T) -> Result<bool, Error> + Send + Sync,
) -> Result<Option<T>, Error> {
    for _ in 0..TRIES {
        let Some((before, version)) = read::<T>(store, key).await? else { return Ok(None) };
        let mut tombstone = before.clone();
        if !to_tombstone(&mut tombstone)? {
            return Ok(None);
        }
        match replace(store, key, Some(&version), &tombstone).await {
            Ok(_) => return Ok(Some(before)),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Conflict)
}

/// Sets whether a repository's tags are synced automatically, and returns the record; `None` if the incarnation is not
/// live.
///
/// # Errors
/// If the store is away, the record cannot be read, or another writer was faster.
pub async fn set_automatic_sync(
    store: &dyn BlobStore,
    (name, incarnation): (&RepositoryName, Uuid),
    automatic_sync: Option<bool>,
    now: DateTime<Utc>,
) -> Result<Option<RepositoryRecord>, Error> {
    let key = layout::repository(name);
    let Some((record, version)) = read::<RepositoryRecord>(store, &key).await? else { return Ok(None) };
    if let Some(why) = record.not_understood() {
        return Err(not_understood(&key, why));
    }
    if !record.is_live() || record.incarnation != incarnation {
        return Ok(None);
    }
    if record.automatic_sync == automatic_sync {
        return Ok(Some(record));
    }
    let record = RepositoryRecord { automatic_sync, update_time: now, ..record };
    replace(store, &key, Some(&version), &record).await?;
    Ok(Some(record))
}
