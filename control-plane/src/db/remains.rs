//! Rows of repositories that have gone from the index.

use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};

/// Removes at most `limit` rows from each table of one repository that has gone. Returns false if there is no such
/// repository, or if somebody else is at work. The repository is forgotten once nothing is left of it.
pub(crate) async fn remove(tx: &Tx<'_>, limit: i64) -> Result<bool, Error> {
    const NEXT: &str = "-- remains.next
        SELECT incarnation FROM remains ORDER BY delete_time LIMIT 1 FOR UPDATE SKIP LOCKED";
    // What lists images goes before them, so that nothing is counted twice.
    const TABLES: [&str; 4] = [
        "-- remains.tags
        DELETE FROM tags WHERE incarnation = $1
           AND tag IN (SELECT tag FROM tags WHERE incarnation = $1 LIMIT $2)",
        "-- remains.image_children
        DELETE FROM image_children WHERE incarnation = $1
           AND (parent, child) IN (SELECT parent, child FROM image_children WHERE incarnation = $1 LIMIT $2)",
        "-- remains.image_configs
        DELETE FROM image_configs WHERE incarnation = $1
           AND digest IN (SELECT digest FROM image_configs WHERE incarnation = $1 LIMIT $2)",
        "-- remains.images
        DELETE FROM images WHERE incarnation = $1
           AND digest IN (SELECT digest FROM images WHERE incarnation = $1 LIMIT $2)",
    ];
    const FORGET: &str = "-- remains.forget
        DELETE FROM remains WHERE incarnation = $1";
    let Some(row) = tx.query_opt(NEXT, &[]).await? else { return Ok(false) };
    let incarnation: Uuid = column(&row, "incarnation")?;
    for sql in TABLES {
        if tx.execute(sql, &[&incarnation, &limit]).await? > 0 {
            return Ok(true);
        }
    }
    tx.execute(FORGET, &[&incarnation]).await?;
    Ok(true)
}
