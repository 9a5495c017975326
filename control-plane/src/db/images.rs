//! The index of images: manifests and indexes, what they name, and the platforms of single images.
//!
//! The children of an index are looked up row by row; the `OFFSET 0` and the subquery force this. With a join, Postgres
//! would read all images of the repository, since it cannot know how few children there are.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Tag};
use entrepot_proto::convert::event::Image as Cached;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::comparison::Table;
use super::row::{Understood, column, id, named, parsed, understood};
use super::{Error, Tx, tags};

/// An image in the index.
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
            digest: digest_of(row)?,
            media_type: column(row, "media_type")?,
            platforms: column(row, "platforms")?,
            manifest_size_bytes: column(row, "manifest_size_bytes")?,
            content_size_bytes: column(row, "all_content_size_bytes")?,
            cache_time: column(row, "cache_time")?,
            last_pull_time: column(row, "last_pull_time")?,
        })
    }
}

/// Selects images to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) tag: Option<Tag>,
    /// Only images that have a tag, or only those that have none.
    pub(crate) tagged: Option<bool>,
}

/// The image with this digest, on any level.
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

/// At most `limit` images that match the filter, the newest first, only those after `after`.
///
/// A manifest that an index of the repository lists is part of that image, and is listed on its own only if it has a
/// tag.
pub(crate) async fn list(
    tx: &Tx<'_>,
    incarnation: Uuid,
    filter: &Filter,
    after: Option<&(DateTime<Utc>, String)>,
    limit: i64,
) -> Result<Vec<Image>, Error> {
    // A statement for each filter, since each has its index.
    macro_rules! list {
        ($filter:literal) => {
            concat!(
                "-- images.list
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
         WHERE i.incarnation = $1 AND (cache_time, i.digest) < (coalesce($2::timestamptz, 'infinity'), coalesce($3, '~'))
           AND ",
                $filter,
                " ORDER BY cache_time DESC, i.digest DESC LIMIT $4"
            )
        };
    }
    const ALL: &str = list!("listed");
    const TAGGED: &str = list!("listed AND tag_count > 0");
    const UNTAGGED: &str = list!("listed AND tag_count = 0");
    let sql = match filter.tagged {
        None => ALL,
        Some(true) => TAGGED,
        Some(false) => UNTAGGED,
    };
    if let Some(tag) = &filter.tag {
        let tagged = tags::get(tx, incarnation, tag).await?.filter(|_| filter.tagged != Some(false) && after.is_none());
        let Some(tagged) = tagged else { return Ok(Vec::new()) };
        return Ok(get(tx, incarnation, &tagged.digest).await?.into_iter().collect());
    }
    let (mut time, mut digest) = after.map(|(time, digest)| (*time, digest.clone())).unzip();
    let mut page = Understood::new(limit);
    while let Some(wanted) = page.wanted() {
        let rows = tx.query(sql, &[&incarnation, &time, &digest, &wanted]).await?;
        if let Some(last) = page.take(tx, &rows, Image::from_row)? {
            (time, digest) = (Some(column(last, "cache_time")?), Some(column(last, "digest")?));
        }
    }
    Ok(page.found)
}

/// Notes images, which must be distinct. Each is ignored if the index knows a later revision of it. Returns how many
/// rows have changed.
pub(crate) async fn put_all(tx: &Tx<'_>, images: &[(Uuid, &Cached)]) -> Result<u64, Error> {
    const SQL: &str = "-- images.put_all
        WITH changed AS (
            INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms,
                                config_digest, cache_time, revision)
            SELECT incarnation, digest, media_type, manifest_size, content_size,
                   ARRAY(SELECT jsonb_array_elements_text(platforms)), config, cache_time, revision
              FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::jsonb[], $7::text[],
                          $8::timestamptz[], $9::bigint[])
                AS given (incarnation, digest, media_type, manifest_size, content_size, platforms, config, cache_time,
                          revision)
             ORDER BY incarnation, digest
            ON CONFLICT ON CONSTRAINT images_pkey DO UPDATE
               SET deleted = false, index_time = now(), cache_time = excluded.cache_time, revision = excluded.revision,
                   record_version = NULL
             WHERE images.revision < excluded.revision
            RETURNING incarnation, digest, revision),
        logged AS (
            INSERT INTO changes (kind, incarnation, repository, digest, revision)
            SELECT 'IMAGE_CACHED', incarnation, name, digest, revision
              FROM changed JOIN repositories USING (incarnation) ORDER BY incarnation, digest)
        SELECT incarnation, digest FROM changed";
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
    let revisions: Vec<i64> = images.iter().map(|(_, image)| image.revision).collect();
    let given: [&(dyn ToSql + Sync); 9] =
        [&incarnations, &digests, &types, &sizes, &content_sizes, &platforms, &configs, &times, &revisions];
    let changed: HashSet<(Uuid, String)> = tx
        .query(SQL, &given)
        .await?
        .iter()
        .map(|row| Ok((column(row, "incarnation")?, column(row, "digest")?)))
        .collect::<Result<_, Error>>()?;
    let is_changed =
        |(incarnation, image): &&(Uuid, &Cached)| changed.contains(&(*incarnation, image.digest.to_string()));
    put_children(tx, images.iter().filter(is_changed)).await?;
    Ok(changed.len() as u64)
}

async fn put_children<'i>(tx: &Tx<'_>, images: impl Iterator<Item = &'i (Uuid, &'i Cached)>) -> Result<(), Error> {
    const SQL: &str = "-- images.put_children
        INSERT INTO image_children (incarnation, parent, child)
        SELECT incarnation, parent, child FROM unnest($1::uuid[], $2::text[], $3::text[]) AS c (incarnation, parent, child)
         ORDER BY incarnation, parent, child
        ON CONFLICT DO NOTHING";
    let (mut owners, mut parents, mut children) = (Vec::new(), Vec::new(), Vec::new());
    for (incarnation, image) in images {
        for child in &image.children {
            owners.push(*incarnation);
            parents.push(image.digest.to_string());
            children.push(child.to_string());
        }
    }
    if !children.is_empty() {
        tx.execute(SQL, &[&owners, &parents, &children]).await?;
    }
    Ok(())
}

/// Makes a row follow a live link: at once if the row has an older revision, and if it has a newer one, once nothing
/// was noted about it for long enough. Returns how many rows have changed, not counting those of which only an event's
/// revision was corrected.
pub(crate) async fn follow(tx: &Tx<'_>, incarnation: Uuid, image: &Cached) -> Result<u64, Error> {
    // An event may announce a link that was never written, since another node was faster. Its revision was not a
    // change.
    const SQL: &str = "-- images.follow
        WITH before AS (
            SELECT deleted FROM images WHERE incarnation = $1 AND digest = $2),
        changed AS (
            UPDATE images SET deleted = false, cache_time = $4, revision = $3, record_version = NULL
             WHERE incarnation = $1 AND digest = $2 AND index_time < now() - interval '1 minute'
               AND (deleted OR revision <> $3)
            RETURNING incarnation, digest, revision)
        INSERT INTO changes (kind, incarnation, repository, digest, revision)
        SELECT 'IMAGE_CACHED', incarnation, name, digest, revision
          FROM changed JOIN repositories USING (incarnation), before WHERE before.deleted";
    let Cached { digest, cache_time, revision, .. } = image;
    let put = put_all(tx, &[(incarnation, image)]).await?;
    if put > 0 {
        return Ok(put);
    }
    let corrected = tx.execute(SQL, &[&incarnation, &digest.to_string(), revision, cache_time]).await?;
    if corrected > 0 {
        put_children(tx, [(incarnation, image)].iter()).await?;
    }
    Ok(corrected)
}

/// Notes that an image is deleted, according to its link's tombstone, with the same rules as [`follow`]. The row stays,
/// or is created, so that a late event does not bring the image back. Returns how many images were listed until now.
pub(crate) async fn bury(tx: &Tx<'_>, incarnation: Uuid, image: &Cached) -> Result<u64, Error> {
    const SQL: &str = "-- images.bury
        WITH before AS (
            SELECT deleted FROM images WHERE incarnation = $1 AND digest = $2),
        changed AS (
            INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms,
                                config_digest, cache_time, revision, deleted)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, true)
            ON CONFLICT ON CONSTRAINT images_pkey DO UPDATE
               SET deleted = true, last_pull_time = NULL, index_time = now(), revision = excluded.revision,
                   record_version = NULL
             WHERE images.revision < excluded.revision
                OR (images.revision = excluded.revision AND NOT images.deleted)
                OR (images.revision > excluded.revision AND images.index_time < now() - interval '1 minute')
            RETURNING incarnation, digest, revision),
        children AS (
            DELETE FROM image_children c USING changed WHERE c.incarnation = $1 AND c.parent = $2)
        INSERT INTO changes (kind, incarnation, repository, digest, revision)
        SELECT 'IMAGE_DELETED', incarnation, name, digest, revision
          FROM changed JOIN repositories USING (incarnation), before WHERE NOT before.deleted";
    let Cached { digest, media_type, manifest_size_bytes, content_size_bytes, platforms, config, .. } = image;
    let config = config.as_ref().map(ToString::to_string);
    let given: [&(dyn ToSql + Sync); 9] = [
        &incarnation,
        &digest.to_string(),
        &media_type.as_str(),
        manifest_size_bytes,
        content_size_bytes,
        platforms,
        &config,
        &image.cache_time,
        &image.revision,
    ];
    tx.execute(SQL, &given).await
}

/// Forgets an image without a link, if nothing was noted about it for long enough. Returns how many rows that were.
pub(crate) async fn forget(tx: &Tx<'_>, incarnation: Uuid, digest: &Digest) -> Result<u64, Error> {
    const SQL: &str = "-- images.forget
        WITH changed AS (
            DELETE FROM images WHERE incarnation = $1 AND digest = $2 AND index_time < now() - interval '1 minute'
            RETURNING incarnation, digest)
        INSERT INTO changes (kind, incarnation, repository, digest)
        SELECT 'IMAGE_DELETED', incarnation, name, digest FROM changed JOIN repositories USING (incarnation)";
    tx.execute(SQL, &[&incarnation, &digest.to_string()]).await
}

/// The manifests that belong only to `parent`: listed by it and by no other index of the repository, and without a tag.
pub(crate) async fn own_children(tx: &Tx<'_>, incarnation: Uuid, parent: &Digest) -> Result<Vec<Digest>, Error> {
    const SQL: &str = "-- images.own_children
        SELECT i.digest
          FROM image_children own JOIN images i ON i.incarnation = own.incarnation AND i.digest = own.child
         WHERE own.incarnation = $1 AND own.parent = $2 AND NOT i.deleted
           AND NOT EXISTS (SELECT FROM image_children other
                            WHERE other.incarnation = $1 AND other.child = own.child AND other.parent <> $2)
           AND NOT EXISTS (SELECT FROM tags t WHERE t.incarnation = $1 AND t.digest = own.child)";
    let rows = tx.query(SQL, &[&incarnation, &parent.to_string()]).await?;
    understood(tx, &rows, digest_of)
}

/// Notes the platform of an image.
pub(crate) async fn put_config(tx: &Tx<'_>, incarnation: Uuid, digest: &Digest, platform: &str) -> Result<(), Error> {
    put_configs(tx, &[(incarnation, digest, platform)]).await
}

/// Notes the platforms of images.
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

/// Notes that a row agrees with its link at `version`, if it does.
pub(crate) async fn note_version(
    tx: &Tx<'_>,
    incarnation: Uuid,
    image: &Cached,
    is_live: bool,
    version: &str,
) -> Result<(), Error> {
    const SQL: &str = "-- images.note_version
        UPDATE images SET record_version = $5
         WHERE incarnation = $1 AND digest = $2 AND revision = $3 AND deleted <> $4";
    tx.execute(SQL, &[&incarnation, &image.digest.to_string(), &image.revision, &is_live, &version]).await?;
    Ok(())
}

/// How these rows are compared with the store's records.
pub(crate) const COMPARISON: Table<Digest> = Table {
    compared: "-- images.compared
        SELECT n - 1 AS n, NOT deleted AS is_live, record_version
          FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (incarnation, digest, n)
          JOIN images i ON i.incarnation = asked.incarnation AND i.digest = asked.digest",
    unlisted: "-- images.unlisted
        SELECT i.incarnation, i.digest
          FROM unnest($1::uuid[], $2::text[], $3::text[]) AS part (incarnation, above, until)
          JOIN images i ON i.incarnation = part.incarnation AND i.digest > above AND i.digest <= until
         WHERE NOT deleted AND (i.incarnation, i.digest) > ($6, $7)
           AND NOT EXISTS (SELECT FROM unnest($4::uuid[], $5::text[]) AS listed (incarnation, digest)
                            WHERE listed.incarnation = i.incarnation AND listed.digest = i.digest)
         ORDER BY i.incarnation, i.digest LIMIT $8",
    id: digest_of,
};

fn digest_of(row: &Row) -> Result<Digest, Error> {
    named(parsed(row, "digest"), || format!("images/{}", id(row, "digest")))
}
