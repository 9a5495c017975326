//! The index of tags.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Tag};
use tokio_postgres::Row;
use uuid::Uuid;

use super::comparison::Table;
use super::row::{Understood, column, id, named, parsed, understood};
use super::{Error, Tx};

/// A tag in the index.
#[derive(Clone, Debug)]
pub(crate) struct Tagged {
    pub(crate) tag: Tag,
    pub(crate) digest: Digest,
    pub(crate) validate_time: Option<DateTime<Utc>>,
}

impl Tagged {
    fn from_row(row: &Row) -> Result<Self, Error> {
        named(Self::read(row), || format!("tags/{}", id(row, "tag")))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        let validate_time = column(row, "validate_time")?;
        Ok(Self { tag: parsed(row, "tag")?, digest: parsed(row, "digest")?, validate_time })
    }
}

/// The content of a tag's record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved<'a> {
    pub(crate) tag: &'a Tag,
    /// `None` is a tombstone.
    pub(crate) digest: Option<&'a Digest>,
    pub(crate) revision: i64,
    pub(crate) validate_time: Option<DateTime<Utc>>,
}

impl Moved<'_> {
    /// Whether it is newer than `other`, for the same tag. If the revisions are equal, a tombstone wins: it is a
    /// record, while an event may announce a record that was never written. Otherwise the later validation wins, since
    /// a confirmation may have no revision of its own.
    pub(crate) fn supersedes(&self, other: &Self) -> bool {
        if self.revision != other.revision {
            return self.revision > other.revision;
        }
        match (self.digest, other.digest) {
            (None, Some(_)) => true,
            (Some(own), Some(others)) => own == others && self.validate_time > other.validate_time,
            (_, None) => false,
        }
    }
}

/// The digest of a tag, if it has one.
pub(crate) async fn get(tx: &Tx<'_>, incarnation: Uuid, tag: &Tag) -> Result<Option<Tagged>, Error> {
    const SQL: &str = "-- tags.get
        SELECT tag, digest, validate_time FROM tags WHERE incarnation = $1 AND tag = $2 AND digest IS NOT NULL";
    tx.query_opt(SQL, &[&incarnation, &tag.as_str()]).await?.as_ref().map(Tagged::from_row).transpose()
}

/// The tags that mean any of these images, in byte order.
pub(crate) async fn naming(tx: &Tx<'_>, incarnation: Uuid, digests: &[Digest]) -> Result<Vec<Tagged>, Error> {
    const SQL: &str = "-- tags.naming
        SELECT tag, digest, validate_time FROM tags WHERE incarnation = $1 AND digest = ANY($2) ORDER BY tag";
    let digests: Vec<String> = digests.iter().map(ToString::to_string).collect();
    understood(tx, &tx.query(SQL, &[&incarnation, &digests]).await?, Tagged::from_row)
}

/// Notes what records of tags contain, or will contain. The tags must be distinct, and each is ignored if the index
/// knows a later revision. Returns how many rows have changed.
pub(crate) async fn put_all(tx: &Tx<'_>, moved: &[(Uuid, Moved<'_>)]) -> Result<u64, Error> {
    // With the same order as `Moved::supersedes`.
    const SQL: &str = "-- tags.put_all
        WITH given AS (
            SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[])
                AS given (incarnation, tag, digest, revision, validate_time)),
        before AS (
            SELECT t.incarnation, t.tag, t.digest FROM tags t JOIN given USING (incarnation, tag)),
        changed AS (
            INSERT INTO tags (incarnation, tag, digest, revision, validate_time)
            SELECT incarnation, tag, digest, revision, validate_time FROM given ORDER BY incarnation, tag
            ON CONFLICT ON CONSTRAINT tags_pkey DO UPDATE
               SET digest = excluded.digest, revision = excluded.revision, validate_time = excluded.validate_time,
                   index_time = now(), record_version = NULL
             WHERE tags.revision < excluded.revision
                OR (tags.revision = excluded.revision
                    AND ((excluded.digest IS NULL AND tags.digest IS NOT NULL)
                         OR (tags.digest = excluded.digest
                             AND (tags.validate_time IS NULL OR tags.validate_time < excluded.validate_time))))
            RETURNING incarnation, tag, digest, revision)
        INSERT INTO changes (kind, incarnation, repository, digest, tag, revision)
        SELECT CASE WHEN changed.digest IS NULL THEN 'TAG_DELETED'
                    WHEN changed.digest = before.digest THEN 'TAG_VALIDATED'
                    ELSE 'TAG_MOVED' END, incarnation, name, changed.digest, tag, revision
          FROM changed JOIN repositories USING (incarnation) LEFT JOIN before USING (incarnation, tag)
         ORDER BY incarnation, tag";
    if moved.is_empty() {
        return Ok(0);
    }
    let incarnations: Vec<Uuid> = moved.iter().map(|(incarnation, _)| *incarnation).collect();
    let tags: Vec<&str> = moved.iter().map(|(_, moved)| moved.tag.as_str()).collect();
    let digests: Vec<Option<String>> = moved.iter().map(|(_, moved)| moved.digest.map(ToString::to_string)).collect();
    let revisions: Vec<i64> = moved.iter().map(|(_, moved)| moved.revision).collect();
    let times: Vec<Option<DateTime<Utc>>> = moved.iter().map(|(_, moved)| moved.validate_time).collect();
    tx.execute(SQL, &[&incarnations, &tags, &digests, &revisions, &times]).await
}

/// Makes a row follow a tag's record: at once if the row is older, and if it is newer, once nothing was noted about it
/// for long enough. Returns how many rows have changed.
pub(crate) async fn follow(tx: &Tx<'_>, incarnation: Uuid, moved: Moved<'_>) -> Result<u64, Error> {
    const SQL: &str = "-- tags.follow
        WITH changed AS (
            UPDATE tags SET digest = $3, revision = $4, validate_time = $5, record_version = NULL
             WHERE incarnation = $1 AND tag = $2 AND index_time < now() - interval '1 minute'
               AND (digest, revision, validate_time) IS DISTINCT FROM ($3, $4, $5)
            RETURNING incarnation, tag, digest, revision)
        INSERT INTO changes (kind, incarnation, repository, digest, tag, revision)
        SELECT CASE WHEN digest IS NULL THEN 'TAG_DELETED' ELSE 'TAG_MOVED' END, incarnation, name, digest, tag, revision
          FROM changed JOIN repositories USING (incarnation)";
    let put = put_all(tx, &[(incarnation, moved)]).await?;
    if put > 0 {
        return Ok(put);
    }
    let digest = moved.digest.map(ToString::to_string);
    tx.execute(SQL, &[&incarnation, &moved.tag.as_str(), &digest, &moved.revision, &moved.validate_time]).await
}

/// Deletes a tag without a record, if nothing was noted about it for long enough. Returns how many rows that were.
pub(crate) async fn forget(tx: &Tx<'_>, incarnation: Uuid, tag: &Tag) -> Result<u64, Error> {
    const SQL: &str = "-- tags.forget
        WITH changed AS (
            DELETE FROM tags WHERE incarnation = $1 AND tag = $2 AND index_time < now() - interval '1 minute'
            RETURNING incarnation, tag, revision)
        INSERT INTO changes (kind, incarnation, repository, tag, revision)
        SELECT 'TAG_DELETED', incarnation, name, tag, revision FROM changed JOIN repositories USING (incarnation)";
    tx.execute(SQL, &[&incarnation, &tag.as_str()]).await
}

/// At most `limit` tags of an incarnation that have a digest, only those after `after`.
pub(crate) async fn page(tx: &Tx<'_>, incarnation: Uuid, after: &str, limit: i64) -> Result<Vec<Tag>, Error> {
    const SQL: &str = "-- tags.page
        SELECT tag FROM tags
         WHERE incarnation = $1 AND tag > $2 AND digest IS NOT NULL
         ORDER BY tag LIMIT $3";
    let (mut page, mut after) = (Understood::new(limit), after.to_owned());
    while let Some(wanted) = page.wanted() {
        let rows = tx.query(SQL, &[&incarnation, &after, &wanted]).await?;
        if let Some(last) = page.take(tx, &rows, tag_of)? {
            after = column(last, "tag")?;
        }
    }
    Ok(page.found)
}

/// Notes that a row agrees with its record at `version`, if it does.
pub(crate) async fn note_version(tx: &Tx<'_>, incarnation: Uuid, moved: Moved<'_>, version: &str) -> Result<(), Error> {
    const SQL: &str = "-- tags.note_version
        UPDATE tags SET record_version = $6
         WHERE incarnation = $1 AND tag = $2 AND (digest, revision, validate_time) IS NOT DISTINCT FROM ($3, $4, $5)";
    let digest = moved.digest.map(ToString::to_string);
    let Moved { tag, revision, validate_time, .. } = moved;
    tx.execute(SQL, &[&incarnation, &tag.as_str(), &digest, &revision, &validate_time, &version]).await?;
    Ok(())
}

/// How these rows are compared with the store's records.
pub(crate) const COMPARISON: Table<Tag> = Table {
    compared: "-- tags.compared
        SELECT n - 1 AS n, digest IS NOT NULL AS is_live, record_version
          FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (incarnation, tag, n)
          JOIN tags t ON t.incarnation = asked.incarnation AND t.tag = asked.tag",
    unlisted: "-- tags.unlisted
        SELECT t.incarnation, t.tag
          FROM unnest($1::uuid[], $2::text[], $3::text[]) AS part (incarnation, above, until)
          JOIN tags t ON t.incarnation = part.incarnation AND t.tag > above AND t.tag <= until
         WHERE digest IS NOT NULL AND (t.incarnation, t.tag) > ($6, $7)
           AND NOT EXISTS (SELECT FROM unnest($4::uuid[], $5::text[]) AS listed (incarnation, tag)
                            WHERE listed.incarnation = t.incarnation AND listed.tag = t.tag)
         ORDER BY t.incarnation, t.tag LIMIT $8",
    id: tag_of,
};

fn tag_of(row: &Row) -> Result<Tag, Error> {
    named(parsed(row, "tag"), || format!("tags/{}", id(row, "tag")))
}
