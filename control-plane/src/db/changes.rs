//! The log of changes to the rows of images and tags, by whatever caused them: events, repairs, calls.
//!
//! A statement that changes a row also appends to the log; a statement that changes nothing appends nothing. The values
//! of a sequence come in the order of inserts and not of commits, so a reader that goes by them would skip changes that
//! are committed late. Here a change gets its position only after it is committed, from the next reader; see the
//! table's comment.

use chrono::{DateTime, Utc};
use entrepot_domain::RepositoryName;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, parsed};
use super::{Error, Tx};

/// How many positions are assigned at a time.
const BATCH: i64 = 10_000;

/// A change of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) position: i64,
    /// `IMAGE_CACHED`, `IMAGE_DELETED`, `TAG_MOVED`, `TAG_VALIDATED`, `TAG_DELETED` or `REPOSITORY_DELETED`. Readers
    /// skip kinds that they do not know.
    pub(crate) kind: String,
    pub(crate) incarnation: Uuid,
    pub(crate) repository: RepositoryName,
    pub(crate) digest: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) revision: Option<i64>,
    pub(crate) change_time: DateTime<Utc>,
}

impl Change {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            position: column(row, "position")?,
            kind: column(row, "kind")?,
            incarnation: column(row, "incarnation")?,
            repository: parsed(row, "repository")?,
            digest: column(row, "digest")?,
            tag: column(row, "tag")?,
            revision: column(row, "revision")?,
            change_time: column(row, "change_time")?,
        })
    }
}

/// The result of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// The changes after the reader's cursor, in order; may be empty.
    Changes(Vec<Change>),
    /// Some changes were removed before they were read: the reader has to compare everything, and start over.
    Missed,
}

/// Starts, or restarts, reading for `consumer`, after everything that has changed so far.
pub(crate) async fn begin(tx: &Tx<'_>, consumer: &str) -> Result<(), Error> {
    const SQL: &str = "-- changes.begin
        INSERT INTO change_cursors (consumer, position) SELECT $1, last_position FROM change_log
        ON CONFLICT (consumer) DO UPDATE SET position = excluded.position, update_time = now()";
    while give_positions(tx).await? >= BATCH {}
    tx.execute(SQL, &[&consumer]).await?;
    Ok(())
}

/// At most `limit` changes after the cursor of `consumer`, which must have started.
pub(crate) async fn read(tx: &Tx<'_>, consumer: &str, limit: i64) -> Result<Batch, Error> {
    const CURSOR: &str = "-- changes.read: cursor
        SELECT c.position, c.position < l.pruned_position AS missed
          FROM change_cursors c, change_log l WHERE consumer = $1 FOR UPDATE OF c";
    const SQL: &str = "-- changes.read
        SELECT position, kind, incarnation, repository, digest, tag, revision, change_time
          FROM changes WHERE position > $1 ORDER BY position LIMIT $2";
    give_positions(tx).await?;
    let Some(cursor) = tx.query_opt(CURSOR, &[&consumer]).await? else { return Ok(Batch::Missed) };
    if column(&cursor, "missed")? {
        return Ok(Batch::Missed);
    }
    let rows = tx.query(SQL, &[&column::<i64>(&cursor, "position")?, &limit]).await?;
    Ok(Batch::Changes(rows.iter().map(Change::from_row).collect::<Result<_, _>>()?))
}

/// Notes that `consumer` has handled everything up to `position`.
pub(crate) async fn advance(tx: &Tx<'_>, consumer: &str, position: i64) -> Result<(), Error> {
    const SQL: &str = "-- changes.advance
        UPDATE change_cursors SET position = $2, update_time = now() WHERE consumer = $1 AND position < $2";
    tx.execute(SQL, &[&consumer, &position]).await?;
    Ok(())
}

/// Removes at most `limit` changes: those that are a day old and that all readers have passed, and those that are 30
/// days old. Returns how many.
pub(crate) async fn prune(tx: &Tx<'_>, limit: i64) -> Result<u64, Error> {
    const SQL: &str = "-- changes.prune
        WITH gone AS (
            DELETE FROM changes
             WHERE seq IN (SELECT seq FROM changes
                            WHERE position IS NOT NULL AND change_time < now() - interval '1 day'
                              AND (change_time < now() - interval '30 days'
                                   OR position <= ALL (SELECT position FROM change_cursors))
                            ORDER BY change_time LIMIT $1)
            RETURNING position)
        UPDATE change_log SET pruned_position = greatest(pruned_position, (SELECT max(position) FROM gone))
        RETURNING (SELECT count(*) FROM gone) AS n";
    while give_positions(tx).await? >= BATCH {}
    let count: i64 = column(&tx.query_one(SQL, &[&limit]).await?, "n")?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// Assigns positions to committed changes that have none. Returns how many.
async fn give_positions(tx: &Tx<'_>) -> Result<i64, Error> {
    // The lock is a statement of its own, so that the next one sees what the previous holder of the lock has committed.
    const LOCK: &str = "-- changes.give_positions: lock
        SELECT last_position FROM change_log FOR UPDATE";
    const SQL: &str = "-- changes.give_positions
        WITH new AS (
            SELECT seq, row_number() OVER (ORDER BY seq) AS n
              FROM (SELECT seq FROM changes WHERE position IS NULL ORDER BY seq LIMIT $1) waiting),
        given AS (
            UPDATE changes SET position = last_position + n FROM new, change_log WHERE changes.seq = new.seq
            RETURNING changes.position)
        UPDATE change_log SET last_position = greatest(last_position, (SELECT max(position) FROM given))
        RETURNING (SELECT count(*) FROM given) AS n";
    tx.query_one(LOCK, &[]).await?;
    column(&tx.query_one(SQL, &[&BATCH]).await?, "n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use entrepot_domain::{Digest, MediaType, Secret, Tag};
    use entrepot_proto::convert::event::Image;
    use entrepot_test_support::Postgres;

    use super::*;
    use crate::config::Config;
    use crate::db::repositories::{self, Created};
    use crate::db::tags::{self, Moved};
    use crate::db::{Db, images, runs};

    async fn migrated() -> Db {
        let url = Postgres::shared().await.database().await;
        let db = Db::new(Config::new(&Secret::new(url), 8).unwrap().database, 8);
        db.migrate().await.unwrap();
        db
    }

    async fn create(tx: &Tx<'_>, name: &str) -> Uuid {
        let (incarnation, name) = (Uuid::now_v7(), name.parse().unwrap());
        let (rule_uid, create_time, settings, automatic_sync) = (None, DateTime::UNIX_EPOCH, Default::default(), None);
        let created = Created { incarnation, name: &name, rule_uid, create_time, settings, automatic_sync };
        repositories::put(tx, &created).await.unwrap();
        incarnation
    }

    async fn put_tag(tx: &Tx<'_>, incarnation: Uuid, revision: i64, content: &[u8], seconds: i64) -> u64 {
        let (tag, digest): (Tag, Digest) = ("v1".parse().unwrap(), Digest::sha256(content));
        let validate_time = DateTime::from_timestamp(seconds, 0);
        let moved = Moved { tag: &tag, digest: Some(&digest), revision, validate_time };
        tags::put_all(tx, &[(incarnation, moved)]).await.unwrap()
    }

    /// Reads everything available and marks it as read.
    async fn take(db: &Db, consumer: &str) -> Vec<(String, String)> {
        let mut connection = db.connect().await.unwrap();
        let tx = connection.begin("test").await.unwrap();
        let Batch::Changes(changes) = read(&tx, consumer, 100).await.unwrap() else { panic!("{consumer} missed some") };
        if let Some(last) = changes.last() {
            advance(&tx, consumer, last.position).await.unwrap();
        }
        tx.commit().await.unwrap();
        changes.into_iter().map(|change| (change.kind, change.repository.to_string())).collect()
    }

    fn change(kind: &str, repository: &str) -> (String, String) {
        (kind.to_owned(), repository.to_owned())
    }

    #[tokio::test]
    async fn what_commits_late_is_read_all_the_same_and_nothing_twice() {
        let db = migrated().await;
        let (mut early, mut late) = (db.connect().await.unwrap(), db.connect().await.unwrap());
        let tx = early.begin("test").await.unwrap();
        let (one, two) = (create(&tx, "demo/one").await, create(&tx, "demo/two").await);
        begin(&tx, "reader").await.unwrap();
        tx.commit().await.unwrap();

        let slow = late.begin("test").await.unwrap();
        put_tag(&slow, one, 1, b"a", 1).await;
        let fast = early.begin("test").await.unwrap();
        put_tag(&fast, two, 1, b"a", 1).await;
        fast.commit().await.unwrap();
        assert_eq!(take(&db, "reader").await, [change("TAG_MOVED", "demo/two")]);
        slow.commit().await.unwrap();
        assert_eq!(take(&db, "reader").await, [change("TAG_MOVED", "demo/one")], "it was inserted first");
        assert_eq!(take(&db, "reader").await, []);
    }

    fn image(revision: i64) -> Image {
        Image {
            digest: Digest::sha256(b"a"),
            media_type: MediaType::OciIndex,
            manifest_size_bytes: 1,
            content_size_bytes: 2,
            platforms: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            children: vec![Digest::sha256(b"child")],
            config: None,
            cache_time: DateTime::UNIX_EPOCH,
            revision,
        }
    }

    #[tokio::test]
    async fn an_image_goes_by_revisions_and_by_its_record_once_that_is_settled() {
        let db = migrated().await;
        let mut connection = db.connect().await.unwrap();
        let tx = connection.begin("test").await.unwrap();
        let app = create(&tx, "demo/app").await;
        let is_listed = async || images::get(&tx, app, &Digest::sha256(b"a")).await.unwrap().is_some();
        let settle = async || {
            tx.execute("UPDATE images SET index_time = index_time - interval '2 minutes'", &[]).await.unwrap();
        };
        begin(&tx, "reader").await.unwrap();
        // Two nodes cached it at once, and the link with revision 2 won.
        images::put_all(&tx, &[(app, &image(9))]).await.unwrap();
        assert_eq!(images::bury(&tx, app, &image(3)).await.unwrap(), 0, "it may have come back since");
        settle().await;
        assert_eq!(images::follow(&tx, app, &image(2)).await.unwrap(), 0, "it was listed, be it at another revision");
        assert_eq!(images::bury(&tx, app, &image(3)).await.unwrap(), 1);
        for late in [2, 3] {
            assert_eq!(images::put_all(&tx, &[(app, &image(late))]).await.unwrap(), 0, "{late}");
        }
        assert_eq!(images::follow(&tx, app, &image(2)).await.unwrap(), 0, "what was just deleted may not be read yet");
        assert!(!is_listed().await);
        assert_eq!(images::put_all(&tx, &[(app, &image(4))]).await.unwrap(), 1);
        assert!(is_listed().await, "it was cached again");
        // The tombstone of an image that the index never had prevents that a late event creates the image.
        let other = create(&tx, "demo/other").await;
        assert_eq!(images::bury(&tx, other, &image(5)).await.unwrap(), 0);
        assert_eq!(images::put_all(&tx, &[(other, &image(4))]).await.unwrap(), 0);
        tx.commit().await.unwrap();
        let kinds: Vec<String> = take(&db, "reader").await.into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, ["IMAGE_CACHED", "IMAGE_DELETED", "IMAGE_CACHED"]);
    }

    #[tokio::test]
    async fn every_change_is_appended_and_what_changes_nothing_is_not() {
        let db = migrated().await;
        let mut connection = db.connect().await.unwrap();
        let tx = connection.begin("test").await.unwrap();
        let app = create(&tx, "demo/app").await;
        begin(&tx, "reader").await.unwrap();
        let digest = Digest::sha256(b"a");
        for expected in [1, 0] {
            assert_eq!(images::put_all(&tx, &[(app, &image(1))]).await.unwrap(), expected);
            assert_eq!(put_tag(&tx, app, 1, b"a", 1).await, expected);
            assert_eq!(put_tag(&tx, app, 1, b"a", 2).await, expected);
            assert_eq!(put_tag(&tx, app, 2, b"b", 3).await, expected);
        }
        let listed = images::get(&tx, app, &digest).await.unwrap().unwrap();
        assert_eq!(listed.platforms, ["linux/amd64", "linux/arm64"]);
        for expected in [1, 0] {
            assert_eq!(images::bury(&tx, app, &image(2)).await.unwrap(), expected);
        }
        for expected in [1, 0] {
            assert_eq!(repositories::bury(&tx, &[app], DateTime::UNIX_EPOCH).await.unwrap(), expected);
        }
        tx.commit().await.unwrap();
        let kinds: Vec<String> = take(&db, "reader").await.into_iter().map(|(kind, _)| kind).collect();
        let expected =
            ["IMAGE_CACHED", "TAG_MOVED", "TAG_VALIDATED", "TAG_MOVED", "IMAGE_DELETED", "REPOSITORY_DELETED"];
        assert_eq!(kinds, expected);
    }

    #[tokio::test]
    async fn changes_are_kept_for_the_slowest_reader_but_not_for_ever() {
        let db = migrated().await;
        let mut connection = db.connect().await.unwrap();
        let tx = connection.begin("test").await.unwrap();
        let app = create(&tx, "demo/app").await;
        begin(&tx, "slow").await.unwrap();
        begin(&tx, "fast").await.unwrap();
        put_tag(&tx, app, 1, b"a", 1).await;
        tx.commit().await.unwrap();
        assert_eq!(take(&db, "fast").await.len(), 1);

        let tx = connection.begin("test").await.unwrap();
        let age = async |days: &str| {
            let sql = format!("UPDATE changes SET change_time = now() - interval '{days} days'");
            tx.execute(&sql, &[]).await.unwrap();
        };
        age("2").await;
        assert_eq!(prune(&tx, 10).await.unwrap(), 0, "one has not read it");
        age("31").await;
        assert_eq!(prune(&tx, 10).await.unwrap(), 1);
        assert_eq!(read(&tx, "slow", 10).await.unwrap(), Batch::Missed);
        assert_eq!(read(&tx, "fast", 10).await.unwrap(), Batch::Changes(Vec::new()));
        begin(&tx, "slow").await.unwrap();
        put_tag(&tx, app, 2, b"b", 2).await;
        tx.commit().await.unwrap();
        assert_eq!(take(&db, "slow").await, [change("TAG_MOVED", "demo/app")]);
        assert_eq!(take(&db, "fast").await.len(), 1);
        let tx = connection.begin("test").await.unwrap();
        tx.execute("UPDATE changes SET change_time = now() - interval '2 days'", &[]).await.unwrap();
        assert_eq!(prune(&tx, 10).await.unwrap(), 1, "all have read it");
    }

    #[tokio::test]
    async fn one_control_plane_at_a_time_compares_store_and_index() {
        const LEASE: Duration = Duration::from_secs(30);
        let db = migrated().await;
        let mut connection = db.connect().await.unwrap();
        let tx = connection.begin("test").await.unwrap();
        let begin = async |holder, pause| runs::begin(&tx, holder, LEASE, pause).await.unwrap();
        let lost = begin("one", Duration::ZERO).await.unwrap();
        assert!(runs::renew(&tx, lost, LEASE).await.unwrap());
        assert_eq!(begin("two", Duration::ZERO).await, None, "it is the first one's");
        tx.execute("UPDATE reconcile_runs SET lease_until = now() - interval '1 second'", &[]).await.unwrap();
        assert!(!runs::renew(&tx, lost, LEASE).await.unwrap());
        let taken = begin("two", LEASE).await.unwrap();
        assert!(!runs::complete(&tx, lost).await.unwrap(), "what lost its lease is not complete");
        assert!(runs::complete(&tx, taken).await.unwrap());
        assert_eq!(begin("one", LEASE).await, None, "a complete one has just ended");
        assert!(begin("one", Duration::ZERO).await.is_some());
    }
}
