//! Deletes images and tags: the store's records first, which decide, then the index.

use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_proto::convert::names::ImageSelector;
use entrepot_proto::convert::{names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::tombstone::{self, Buried};
use entrepot_records::{self as records, ManifestLink, RepositoryRecord, TagRecord};
use entrepot_store::Key;

use super::images::{self as images_api, absent};
use super::repositories as repositories_api;
use crate::db::tags::{self, Moved};
use crate::db::{Tx, images, repositories};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::{at_once, index};

/// How many keys the store lists at a time.
const LISTED: usize = 1000;

/// What is deleted of a repository, as the store's records have it; some of it may have been deleted before.
#[derive(Default)]
struct Deleted {
    /// Tags with their tombstones' revisions.
    tags: Vec<(Tag, i64)>,
    /// Manifests with what is left of their links.
    manifests: Vec<(Digest, Buried)>,
}

impl Deleted {
    /// The keys of the deleted records, and that of the repository: a node that has not heard yet that it was created anew
    /// looks for them in an earlier incarnation.
    fn keys(&self, name: &RepositoryName, record: &RepositoryRecord) -> Vec<Key> {
        let tags = self.tags.iter().map(|(tag, _)| layout::tag(name, record.incarnation, tag));
        let links = self.manifests.iter().map(|(digest, _)| layout::manifest_link(name, record.incarnation, digest));
        [layout::repository(name)].into_iter().chain(tags).chain(links).collect()
    }
}

/// Deletes an image with all its tags, or only a tag, and returns the image as it was.
pub(super) async fn delete(plane: &Plane, request: &pb::DeleteImageRequest) -> Result<pb::Image, ApiError> {
    let (name, selector) = images_api::parse_name(&request.name)?;
    let record = records::read::<RepositoryRecord>(&*plane.store, &layout::repository(&name)).await?;
    let record = record.map(|(record, _)| record).filter(RepositoryRecord::is_live);
    let record = record.ok_or_else(|| repositories_api::absent(&name))?;

    let (before, children) = find(plane, &name, &record, &selector).await?;
    let mut deleted = Deleted::default();
    let done = match &selector {
        ImageSelector::Tag(tag) => delete_tag(plane, &name, &record, tag, &mut deleted).await,
        ImageSelector::Digest(digest) => delete_manifest(plane, &name, &record, digest, children, &mut deleted).await,
    };
    let unlisted = match done {
        Ok(unlisted) => unlisted,
        Err(error) => {
            // Some of it may have been deleted before that.
            plane.tell_below(layout::incarnation_prefix(&name, record.incarnation).as_str()).await;
            return Err(error);
        }
    };

    let lagging = plane.tell_keys(&deleted.keys(&name, &record)).await;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("delete_image").await?;
    index::ensure(&tx, &name, &record).await?;
    note(&tx, &record, &deleted).await?;
    tx.commit().await?;
    // What only the index has may be an image whose record is about to be written: nothing of it could be deleted.
    let before = before.filter(|_| !deleted.tags.is_empty() || !deleted.manifests.is_empty());
    let image = before.or(unlisted).ok_or_else(|| absent(&request.name))?;
    Ok(pb::Image { lagging_node_count: lagging, ..image })
}

/// The image as the index has it, and the children that are only its own, if it is deleted by its digest.
async fn find(
    plane: &Plane,
    name: &RepositoryName,
    record: &RepositoryRecord,
    selector: &ImageSelector,
) -> Result<(Option<pb::Image>, Vec<Digest>), ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("find_image").await?;
    let image = images_api::find(&tx, name, record.incarnation, selector).await?;
    let children = match selector {
        ImageSelector::Tag(_) => Vec::new(),
        ImageSelector::Digest(digest) => images::own_children(&tx, record.incarnation, digest).await?,
    };
    Ok((image, children))
}

/// Deletes a tag, and returns the image that it meant, as far as the store says.
async fn delete_tag(
    plane: &Plane,
    name: &RepositoryName,
    record: &RepositoryRecord,
    tag: &Tag,
    deleted: &mut Deleted,
) -> Result<Option<pb::Image>, ApiError> {
    let store = &*plane.store;
    let (of, now) = ((name, record.incarnation), plane.clock.now());
    let Some((before, revision)) = tombstone::bury_tag(store, of, tag, now, |_| true).await? else {
        // It may have been deleted by a call that did not get to the index.
        let stale = records::read::<TagRecord>(store, &layout::tag(name, record.incarnation, tag)).await?;
        deleted.tags.extend(stale.map(|(stale, _)| (tag.clone(), stale.revision)));
        return Ok(None);
    };
    deleted.tags.push((tag.clone(), revision));
    let Some(digest) = before.digest else { return Ok(None) };
    let link = records::read::<ManifestLink>(store, &layout::manifest_link(name, record.incarnation, &digest)).await?;
    let tag = pb::Tag { tag: tag.to_string(), validate_time: before.validate_time.map(timestamp) };
    Ok(link.map(|(link, _)| to_wire(name, &digest, &link, vec![tag])))
}

/// Deletes a manifest, its tags and the children that are only its own; returns it as far as the store says.
async fn delete_manifest(
    plane: &Plane,
    name: &RepositoryName,
    record: &RepositoryRecord,
    digest: &Digest,
    children: Vec<Digest>,
    deleted: &mut Deleted,
) -> Result<Option<pb::Image>, ApiError> {
    let store = &*plane.store;
    deleted.tags = delete_tags_of(plane, name, record, digest).await?;
    let now = plane.clock.now();
    let bury = |digest: Digest| async move {
        let buried = tombstone::bury_manifest(store, (name, record.incarnation), &digest, now).await?;
        Ok::<_, ApiError>((digest, buried))
    };
    let all = [digest.clone()].into_iter().chain(children);
    let buried: Vec<_> = at_once::all(all.map(bury)).await?;
    deleted.manifests = buried.into_iter().filter_map(|(digest, buried)| Some((digest, buried?))).collect();
    let own = deleted.manifests.iter().find(|(own, buried)| own == digest && buried.was_live);
    let tag = |(tag, _): &(Tag, i64)| pb::Tag { tag: tag.to_string(), validate_time: None };
    Ok(own.map(|(_, own)| to_wire(name, digest, &own.link, deleted.tags.iter().map(tag).collect())))
}

/// Deletes all tags that mean `digest`, also those that the index does not have yet.
async fn delete_tags_of(
    plane: &Plane,
    name: &RepositoryName,
    record: &RepositoryRecord,
    digest: &Digest,
) -> Result<Vec<(Tag, i64)>, ApiError> {
    let store = &*plane.store;
    let prefix = layout::tags_prefix(name, record.incarnation);
    let bury = |tag: Tag| async move {
        let of = (name, record.incarnation);
        let buried = tombstone::bury_tag(store, of, &tag, plane.clock.now(), |meant| meant == digest).await?;
        Ok::<_, ApiError>(buried.map(|(_, revision)| (tag, revision)))
    };
    let (mut after, mut deleted) = (None, Vec::new());
    loop {
        let entries = store.list(&prefix, after.as_ref(), LISTED).await?;
        let tags = entries.iter().filter_map(|entry| match layout::parse(&entry.key) {
            Some(Parsed::Tag { tag, .. }) => Some(tag),
            Some(_) | None => None,
        });
        let buried: Vec<_> = at_once::all(tags.map(bury)).await?;
        deleted.extend(buried.into_iter().flatten());
        if entries.len() < LISTED {
            return Ok(deleted);
        }
        after = entries.into_iter().next_back().map(|entry| entry.key);
    }
}

/// Notes in the index what was deleted in the store.
async fn note(tx: &Tx<'_>, record: &RepositoryRecord, deleted: &Deleted) -> Result<(), ApiError> {
    repositories::lock(tx, &[record.incarnation]).await?;
    for (tag, revision) in &deleted.tags {
        let moved = Moved { tag, digest: None, revision: *revision, validate_time: None };
        tags::follow(tx, record.incarnation, moved).await?;
    }
    for (digest, buried) in &deleted.manifests {
        images::bury(tx, record.incarnation, &index::image(digest, &buried.link)).await?;
    }
    Ok(())
}

fn to_wire(name: &RepositoryName, digest: &Digest, link: &ManifestLink, tags: Vec<pb::Tag>) -> pb::Image {
    let image = index::image(digest, link);
    pb::Image {
        name: names::image(name, digest),
        digest: digest.to_string(),
        tags,
        media_type: image.media_type.to_string(),
        platforms: image.platforms,
        manifest_size_bytes: image.manifest_size_bytes,
        content_size_bytes: image.content_size_bytes,
        cache_time: Some(timestamp(image.cache_time)),
        ..Default::default()
    }
}
