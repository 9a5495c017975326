//! The index of tags.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Tag};
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, parsed};
use super::{Error, Tx};

/// A tag as the index has it.
#[derive(Clone, Debug)]
pub(crate) struct Tagged {
    pub(crate) tag: Tag,
    pub(crate) digest: Digest,
    pub(crate) validate_time: Option<DateTime<Utc>>,
}

impl Tagged {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let validate_time = column(row, "validate_time")?;
        Ok(Self { tag: parsed(row, "tag")?, digest: parsed(row, "digest")?, validate_time })
    }
}

/// What a tag's record says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved<'a> {
    pub(crate) tag: &'a Tag,
    /// `None` is a tombstone.
    pub(crate) digest: Option<&'a Digest>,
    pub(crate) revision: i64,
    pub(crate) validate_time: Option<DateTime<Utc>>,
}

impl Moved<'_> {
    /// Whether it says more than `other` of the same tag. Of one revision the tombstone stands, since it is a record,
    /// where an event may tell of one that never came to be; and then the latest validation, since a confirmation need
    /// not be a new revision.
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

/// What a tag means, if it means something.
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
    tx.query(SQL, &[&incarnation, &digests]).await?.iter().map(Tagged::from_row).collect()
}

/// Notes what a tag's record says, or will say, unless the index knows a later revision; says how many rows that has
/// changed.
pub(crate) async fn put(tx: &Tx<'_>, incarnation: Uuid, moved: Moved<'_>) -> Result<u64, Error> {
    put_all(tx, &[(incarnation, moved)]).await
}

/// Notes what records of tags say, none of them twice, as [`put`] does.
pub(crate) async fn put_all(tx: &Tx<'_>, moved: &[(Uuid, Moved<'_>)]) -> Result<u64, Error> {
    // As `Moved::supersedes` has it.
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
                   index_time = now()
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

/// Makes the index say what a tag's record says, if nothing was noted of it for long enough; says how many rows said
/// something else.
pub(crate) async fn correct(tx: &Tx<'_>, incarnation: Uuid, moved: Moved<'_>) -> Result<u64, Error> {
    const SQL: &str = "-- tags.correct
        WITH changed AS (
            UPDATE tags SET digest = $3, revision = $4, validate_time = $5
             WHERE incarnation = $1 AND tag = $2 AND index_time < now() - interval '1 minute'
               AND (digest, revision, validate_time) IS DISTINCT FROM ($3, $4, $5)
            RETURNING incarnation, tag, digest, revision)
        INSERT INTO changes (kind, incarnation, repository, digest, tag, revision)
        SELECT CASE WHEN digest IS NULL THEN 'TAG_DELETED' ELSE 'TAG_MOVED' END, incarnation, name, digest, tag, revision
          FROM changed JOIN repositories USING (incarnation)";
    let digest = moved.digest.map(ToString::to_string);
    tx.execute(SQL, &[&incarnation, &moved.tag.as_str(), &digest, &moved.revision, &moved.validate_time]).await
}

/// Forgets a tag that has no record, if nothing was noted of it for long enough; says how many that were.
pub(crate) async fn forget(tx: &Tx<'_>, incarnation: Uuid, tag: &Tag) -> Result<u64, Error> {
    const SQL: &str = "-- tags.forget
        WITH changed AS (
            DELETE FROM tags WHERE incarnation = $1 AND tag = $2 AND index_time < now() - interval '1 minute'
            RETURNING incarnation, tag, revision)
        INSERT INTO changes (kind, incarnation, repository, tag, revision)
        SELECT 'TAG_DELETED', incarnation, name, tag, revision FROM changed JOIN repositories USING (incarnation)";
    tx.execute(SQL, &[&incarnation, &tag.as_str()]).await
}

/// At most `limit` tags of an incarnation that mean something, those behind `after`.
pub(crate) async fn page(tx: &Tx<'_>, incarnation: Uuid, after: &str, limit: i64) -> Result<Vec<Tag>, Error> {
    const SQL: &str = "-- tags.page
        SELECT tag FROM tags
         WHERE incarnation = $1 AND tag > $2 AND digest IS NOT NULL
         ORDER BY tag LIMIT $3";
    tx.query(SQL, &[&incarnation, &after, &limit]).await?.iter().map(|row| parsed(row, "tag")).collect()
}

/// Those of these tags that the index lacks, as indexes into `tags`.
pub(crate) async fn missing(tx: &Tx<'_>, tags: &[(Uuid, Tag)]) -> Result<Vec<usize>, Error> {
    const SQL: &str = "-- tags.missing
        SELECT n - 1 AS n FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (incarnation, tag, n)
         WHERE NOT EXISTS (SELECT FROM tags t WHERE t.incarnation = asked.incarnation AND t.tag = asked.tag
                                                AND t.digest IS NOT NULL)";
    let (incarnations, tags): (Vec<Uuid>, Vec<&str>) =
        tags.iter().map(|(incarnation, tag)| (*incarnation, tag.as_str())).unzip();
    super::row::indexes(&tx.query(SQL, &[&incarnations, &tags]).await?)
}
