//! The ids of applied events.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};

/// How long a repeated event is recognised. Later it would do no harm either, since applying an event twice changes
/// nothing.
const KEPT: TimeDelta = TimeDelta::days(7);

/// Notes events as applied, and returns those that were not applied before.
pub(crate) async fn note(tx: &Tx<'_>, ids: &[Uuid], now: DateTime<Utc>) -> Result<Vec<Uuid>, Error> {
    // The ids are sorted, so that two batches with common events wait for each other without a deadlock.
    const SQL: &str = "-- events.note
        INSERT INTO events (event_id, apply_time)
        SELECT id, $2 FROM unnest($1::uuid[]) AS id ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING event_id";
    tx.query(SQL, &[&ids, &now]).await?.iter().map(|row| column(row, "event_id")).collect()
}

/// Forgets at most `limit` old events, and returns how many.
pub(crate) async fn prune(tx: &Tx<'_>, now: DateTime<Utc>, limit: i64) -> Result<u64, Error> {
    const SQL: &str = "-- events.prune
        DELETE FROM events WHERE event_id IN (SELECT event_id FROM events WHERE apply_time < $1 LIMIT $2)";
    tx.execute(SQL, &[&(now - KEPT), &limit]).await
}
