//! Deletes what the store's records show, by tombstones: invisible from then on, whatever the index says.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_records::layout;
use entrepot_records::{self as records, ManifestLink, RepositoryRecord, State, TagRecord};
use entrepot_store::{BlobStore, Error, Key};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// How often somebody else may be faster before it is given up.
const ATTEMPTS: usize = 16;

/// Deletes a repository, and returns the record that was live.
pub(crate) async fn bury_repository(
    store: &dyn BlobStore,
    name: &RepositoryName,
    now: DateTime<Utc>,
) -> Result<Option<RepositoryRecord>, Error> {
    bury(store, &layout::repository(name), |record: &mut RepositoryRecord| {
        let is_live = record.state == State::Live;
        (record.state, record.update_time) = (State::Deleted, now);
        is_live
    })
    .await
}

/// Deletes a tag that passes `is_meant`; returns the record before and the tombstone's revision.
pub(crate) async fn bury_tag(
    store: &dyn BlobStore,
    name: &RepositoryName,
    incarnation: Uuid,
    tag: &Tag,
    is_meant: impl Fn(&Digest) -> bool + Send + Sync,
) -> Result<Option<(TagRecord, i64)>, Error> {
    let key = layout::tag(name, incarnation, tag);
    let before = bury(store, &key, |record: &mut TagRecord| {
        let meant = record.digest.as_ref().is_some_and(&is_meant);
        (record.digest, record.validate_time) = (None, None);
        record.revision += 1;
        meant
    });
    Ok(before.await?.map(|record| {
        let revision = record.revision + 1;
        (record, revision)
    }))
}

/// Deletes the link of a manifest, and returns it, also if it was deleted before.
pub(crate) async fn bury_manifest(
    store: &dyn BlobStore,
    name: &RepositoryName,
    incarnation: Uuid,
    digest: &Digest,
) -> Result<Option<ManifestLink>, Error> {
    let key = layout::manifest_link(name, incarnation, digest);
    let buried = bury(store, &key, |link: &mut ManifestLink| !std::mem::replace(&mut link.deleted, true)).await?;
    match buried {
        Some(link) => Ok(Some(link)),
        None => Ok(records::read::<ManifestLink>(store, &key).await?.map(|(link, _)| link)),
    }
}

/// Replaces a record by the tombstone that `to_tombstone` makes of it, unless that says that it is not to be deleted;
/// returns the record before.
async fn bury<T: Clone + Serialize + DeserializeOwned + Send + Sync>(
    store: &dyn BlobStore,
    key: &Key,
    to_tombstone: impl Fn(&mut T) -> bool + Send,
) -> Result<Option<T>, Error> {
    for _ in 0..ATTEMPTS {
        let Some((before, version)) = records::read::<T>(store, key).await? else { return Ok(None) };
        let mut tombstone = before.clone();
        if !to_tombstone(&mut tombstone) {
            return Ok(None);
        }
        match records::replace(store, key, Some(&version), &tombstone).await {
            Ok(_) => return Ok(Some(before)),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Conflict)
}
