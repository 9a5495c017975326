//! The index of images: manifests and indexes, what they name, and the platforms of single images.
//!
//! What is below an index is looked up row by row (the `OFFSET 0` and the subquery see to that): joined, Postgres reads
//! all images of the repository, since it cannot know how few there are below.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Tag};
use entrepot_proto::convert::event::Image as Cached;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, parsed};
use super::{Error, Tx, tags};

/// An image as the index has it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) platforms: Vec<String>,
    pub(crate) manifest_size_bytes: i64,
    pub(crate) content_size_bytes: i64,
    pub(crate) cache_time: DateTime<Utc>,
    pub(crate) last_pull_time: Option<DateTime<Utc>>,
}

impl Image {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            digest: parsed(row, "digest")?,
            media_type: column(row, "media_type")?,
            platforms: column(row, "platforms")?,
            manifest_size_bytes: column(row, "manifest_size_bytes")?,
            content_size_bytes: column(row, "all_content_size_bytes")?,
            cache_time: column(row, "cache_time")?,
            last_pull_time: column(row, "last_pull_time")?,
        })
    }
}

/// Which images to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The one with this tag.
    pub(crate) tag: Option<Tag>,
    /// Those that have, or do not have, a tag.
    pub(crate) tagged: Option<bool>,
}

/// The image with this digest, on whatever level.
pub(crate) async fn get(tx: &Tx<'_>, incarnation: Uuid, digest: &Digest) -> Result<Option<Image>, Error> {
    const SQL: &str = "-- images.get
        SELECT i.digest, media_type, manifest_size_bytes, cache_time, last_pull_time,
               CASE WHEN platforms <> '{}' OR platform IS NULL THEN platforms ELSE ARRAY[platform] END AS platforms,
               content_size_bytes + children.size_bytes AS all_content_size_bytes
          FROM images i LEFT JOIN image_configs ic ON ic.incarnation = i.incarnation AND ic.digest = config_digest,
       LATERAL (WITH RECURSIVE below (digest) AS (
                       SELECT child FROM image_children WHERE incarnation = i.incarnation AND parent = i.digest
                       UNION
                       SELECT c.child FROM below, LATERAL (
                              SELECT child FROM image_children
                               WHERE incarnation = i.incarnation AND parent = below.digest OFFSET 0) c)
                SELECT coalesce(sum((SELECT b.manifest_size_bytes + b.content_size_bytes FROM images b
                                      WHERE b.incarnation = i.incarnation AND b.digest = below.digest
                                        AND NOT b.deleted)), 0)::bigint AS size_bytes
                  FROM below) children
         WHERE i.incarnation = $1 AND i.digest = $2 AND NOT deleted";
    tx.query_opt(SQL, &[&incarnation, &digest.to_string()]).await?.as_ref().map(Image::from_row).transpose()
}

/// At most `limit` images that the filter lets through, the youngest first, those behind `after`.
///
/// A manifest that an index here lists is part of that image, and an image of its own only if it has a tag.
pub(crate) async fn list(
    tx: &Tx<'_>,
    incarnation: Uuid,
    filter: &Filter,
    after: Option<&(DateTime<Utc>, String)>,
    limit: i64,
) -> Result<Vec<Image>, Error> {
    const SQL: &str = "-- images.list
        SELECT i.digest, media_type, manifest_size_bytes, cache_time, last_pull_time,
               CASE WHEN platforms <> '{}' OR platform IS NULL THEN platforms ELSE ARRAY[platform] END AS platforms,
               content_size_bytes + children.size_bytes AS all_content_size_bytes
          FROM images i LEFT JOIN image_configs ic ON ic.incarnation = i.incarnation AND ic.digest = config_digest,
       LATERAL (WITH RECURSIVE below (digest) AS (
                       SELECT child FROM image_children WHERE incarnation = i.incarnation AND parent = i.digest
                       UNION
                       SELECT c.child FROM below, LATERAL (
                              SELECT child FROM image_children
                               WHERE incarnation = i.incarnation AND parent = below.digest OFFSET 0) c)
                SELECT coalesce(sum((SELECT b.manifest_size_bytes + b.content_size_bytes FROM images b
                                      WHERE b.incarnation = i.incarnation AND b.digest = below.digest
                                        AND NOT b.deleted)), 0)::bigint AS size_bytes
                  FROM below) children,
       LATERAL (SELECT EXISTS (SELECT FROM tags t
                                WHERE t.incarnation = i.incarnation AND t.digest = i.digest) AS tagged) own
         WHERE i.incarnation = $1 AND NOT deleted
           AND (cache_time, i.digest) < (coalesce($2::timestamptz, 'infinity'), coalesce($3, '~'))
           AND (tagged OR NOT EXISTS (SELECT FROM image_children c
                                       WHERE c.incarnation = i.incarnation AND c.child = i.digest))
           AND ($4::boolean IS NULL OR tagged = $4)
         ORDER BY cache_time DESC, i.digest DESC LIMIT $5";
    if let Some(tag) = &filter.tag {
        let tagged = tags::get(tx, incarnation, tag).await?.filter(|_| filter.tagged != Some(false) && after.is_none());
        let Some(tagged) = tagged else { return Ok(Vec::new()) };
        return Ok(get(tx, incarnation, &tagged.digest).await?.into_iter().collect());
    }
    let (time, digest) = after.map(|(time, digest)| (*time, digest.as_str())).unzip();
    let rows = tx.query(SQL, &[&incarnation, &time, &digest, &filter.tagged, &limit]).await?;
    rows.iter().map(Image::from_row).collect()
}

/// Notes an image, and says how many rows that has changed. A deleted one comes back only if it was cached again since.
pub(crate) async fn put(tx: &Tx<'_>, incarnation: Uuid, image: &Cached) -> Result<u64, Error> {
    put_all(tx, &[(incarnation, image)]).await
}

/// Notes images, none of them twice, as [`put`] does.
pub(crate) async fn put_all(tx: &Tx<'_>, images: &[(Uuid, &Cached)]) -> Result<u64, Error> {
    const SQL: &str = "-- images.put_all
        WITH changed AS (
            INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms,
                                config_digest, cache_time)
            SELECT incarnation, digest, media_type, manifest_size, content_size,
                   ARRAY(SELECT jsonb_array_elements_text(platforms)), config, cache_time
              FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::jsonb[], $7::text[],
                          $8::timestamptz[])
                AS given (incarnation, digest, media_type, manifest_size, content_size, platforms, config, cache_time)
             ORDER BY incarnation, digest
            ON CONFLICT ON CONSTRAINT images_pkey DO UPDATE
               SET deleted = false, index_time = now(), cache_time = excluded.cache_time
             WHERE images.cache_time < excluded.cache_time
            RETURNING incarnation, digest),
        logged AS (
            INSERT INTO changes (kind, incarnation, repository, digest)
            SELECT 'IMAGE_CACHED', incarnation, name, digest
              FROM changed JOIN repositories USING (incarnation) ORDER BY incarnation, digest)
        SELECT incarnation, digest FROM changed";
    const CHILDREN: &str = "-- images.put_all: children
        INSERT INTO image_children (incarnation, parent, child)
        SELECT incarnation, parent, child FROM unnest($1::uuid[], $2::text[], $3::text[]) AS c (incarnation, parent, child)
         ORDER BY incarnation, parent, child
        ON CONFLICT DO NOTHING";
    if images.is_empty() {
        return Ok(0);
    }
    let incarnations: Vec<Uuid> = images.iter().map(|(incarnation, _)| *incarnation).collect();
    let digests: Vec<String> = images.iter().map(|(_, image)| image.digest.to_string()).collect();
    let types: Vec<&str> = images.iter().map(|(_, image)| image.media_type.as_str()).collect();
    let sizes: Vec<i64> = images.iter().map(|(_, image)| image.manifest_size_bytes).collect();
    let content_sizes: Vec<i64> = images.iter().map(|(_, image)| image.content_size_bytes).collect();
    let platforms: Vec<serde_json::Value> = images.iter().map(|(_, image)| image.platforms.clone().into()).collect();
    let configs: Vec<Option<String>> =
        images.iter().map(|(_, image)| image.config.as_ref().map(ToString::to_string)).collect();
    let times: Vec<DateTime<Utc>> = images.iter().map(|(_, image)| image.cache_time).collect();
    let rows =
        tx.query(SQL, &[&incarnations, &digests, &types, &sizes, &content_sizes, &platforms, &configs, &times]).await?;
    let changed: HashSet<(Uuid, String)> = rows
        .iter()
        .map(|row| Ok((column(row, "incarnation")?, column(row, "digest")?)))
        .collect::<Result<_, Error>>()?;
    let (mut owners, mut parents, mut children) = (Vec::new(), Vec::new(), Vec::new());
    for (incarnation, image) in images {
        let parent = (*incarnation, image.digest.to_string());
        for child in image.children.iter().filter(|_| changed.contains(&parent)) {
            owners.push(parent.0);
            parents.push(parent.1.clone());
            children.push(child.to_string());
        }
    }
    if !children.is_empty() {
        tx.execute(CHILDREN, &[&owners, &parents, &children]).await?;
    }
    Ok(changed.len() as u64)
}

/// Notes that an image is deleted whose link was cached at `cache_time` or before; says how many were not before.
///
/// Of two nodes that cache the same image at once, one may have told of a later time than the link has. What was noted for
/// more than a minute is settled: the tombstone is younger.
pub(crate) async fn delete(
    tx: &Tx<'_>,
    incarnation: Uuid,
    digest: &Digest,
    cache_time: DateTime<Utc>,
) -> Result<u64, Error> {
    const MARK: &str = "-- images.delete: mark
        WITH changed AS (
            UPDATE images SET deleted = true, last_pull_time = NULL
             WHERE incarnation = $1 AND digest = $2 AND NOT deleted
               AND (cache_time <= $3 OR index_time < now() - interval '1 minute')
            RETURNING incarnation, digest)
        INSERT INTO changes (kind, incarnation, repository, digest)
        SELECT 'IMAGE_DELETED', incarnation, name, digest FROM changed JOIN repositories USING (incarnation)";
    const CHILDREN: &str = "-- images.delete: children
        DELETE FROM image_children WHERE incarnation = $1 AND parent = $2";
    let digest = digest.to_string();
    let marked = tx.execute(MARK, &[&incarnation, &digest, &cache_time]).await?;
    if marked > 0 {
        tx.execute(CHILDREN, &[&incarnation, &digest]).await?;
    }
    Ok(marked)
}

/// Forgets an image that has no link, if nothing was noted of it for long enough; says how many that were.
pub(crate) async fn forget(tx: &Tx<'_>, incarnation: Uuid, digest: &Digest) -> Result<u64, Error> {
    const SQL: &str = "-- images.forget
        WITH changed AS (
            DELETE FROM images WHERE incarnation = $1 AND digest = $2 AND index_time < now() - interval '1 minute'
            RETURNING incarnation, digest)
        INSERT INTO changes (kind, incarnation, repository, digest)
        SELECT 'IMAGE_DELETED', incarnation, name, digest FROM changed JOIN repositories USING (incarnation)";
    tx.execute(SQL, &[&incarnation, &digest.to_string()]).await
}

/// The manifests that only belong to `parent`: listed by it and by no other index here, and without a tag.
pub(crate) async fn own_children(tx: &Tx<'_>, incarnation: Uuid, parent: &Digest) -> Result<Vec<Digest>, Error> {
    const SQL: &str = "-- images.own_children
        SELECT i.digest
          FROM image_children own JOIN images i ON i.incarnation = own.incarnation AND i.digest = own.child
         WHERE own.incarnation = $1 AND own.parent = $2 AND NOT i.deleted
           AND NOT EXISTS (SELECT FROM image_children other
                            WHERE other.incarnation = $1 AND other.child = own.child AND other.parent <> $2)
           AND NOT EXISTS (SELECT FROM tags t WHERE t.incarnation = $1 AND t.digest = own.child)";
    let rows = tx.query(SQL, &[&incarnation, &parent.to_string()]).await?;
    rows.iter().map(|row| parsed(row, "digest")).collect()
}

/// Notes for which platform an image is.
pub(crate) async fn put_config(tx: &Tx<'_>, incarnation: Uuid, digest: &Digest, platform: &str) -> Result<(), Error> {
    put_configs(tx, &[(incarnation, digest, platform)]).await
}

/// Notes for which platforms images are.
pub(crate) async fn put_configs(tx: &Tx<'_>, configs: &[(Uuid, &Digest, &str)]) -> Result<(), Error> {
    const SQL: &str = "-- images.put_configs
        INSERT INTO image_configs (incarnation, digest, platform)
        SELECT incarnation, digest, platform FROM unnest($1::uuid[], $2::text[], $3::text[])
            AS given (incarnation, digest, platform)
         ORDER BY incarnation, digest
        ON CONFLICT DO NOTHING";
    let incarnations: Vec<Uuid> = configs.iter().map(|(incarnation, _, _)| *incarnation).collect();
    let digests: Vec<String> = configs.iter().map(|(_, digest, _)| digest.to_string()).collect();
    let platforms: Vec<&str> = configs.iter().map(|(_, _, platform)| *platform).collect();
    tx.execute(SQL, &[&incarnations, &digests, &platforms]).await?;
    Ok(())
}

/// Notes when images were last pulled.
pub(crate) async fn pulled(tx: &Tx<'_>, pulls: &[(Uuid, &Digest, DateTime<Utc>)]) -> Result<(), Error> {
    const SQL: &str = "-- images.pulled
        UPDATE images i SET last_pull_time = given.time
          FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS given (incarnation, digest, time)
         WHERE i.incarnation = given.incarnation AND i.digest = given.digest AND NOT deleted
           AND (last_pull_time IS NULL OR last_pull_time < given.time)";
    let incarnations: Vec<Uuid> = pulls.iter().map(|(incarnation, _, _)| *incarnation).collect();
    let digests: Vec<String> = pulls.iter().map(|(_, digest, _)| digest.to_string()).collect();
    let times: Vec<DateTime<Utc>> = pulls.iter().map(|(_, _, time)| *time).collect();
    tx.execute(SQL, &[&incarnations, &digests, &times]).await?;
    Ok(())
}

/// At most `limit` images of an incarnation, those behind `after`.
pub(crate) async fn page(tx: &Tx<'_>, incarnation: Uuid, after: &str, limit: i64) -> Result<Vec<Digest>, Error> {
    const SQL: &str = "-- images.page
        SELECT digest FROM images
         WHERE incarnation = $1 AND digest > $2 AND NOT deleted
         ORDER BY digest LIMIT $3";
    let rows = tx.query(SQL, &[&incarnation, &after, &limit]).await?;
    rows.iter().map(|row| parsed(row, "digest")).collect()
}

/// Those of these images that the index lacks, as indexes into `images`.
pub(crate) async fn missing(tx: &Tx<'_>, images: &[(Uuid, Digest)]) -> Result<Vec<usize>, Error> {
    const SQL: &str = "-- images.missing
        SELECT n - 1 AS n FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (incarnation, digest, n)
         WHERE NOT EXISTS (SELECT FROM images i
                            WHERE i.incarnation = asked.incarnation AND i.digest = asked.digest AND NOT deleted)";
    let (incarnations, digests): (Vec<Uuid>, Vec<String>) =
        images.iter().map(|(incarnation, digest)| (*incarnation, digest.to_string())).unzip();
    super::row::indexes(&tx.query(SQL, &[&incarnations, &digests]).await?)
}
