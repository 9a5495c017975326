//! Ids of events that were applied.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};

/// For how long a repeated event is known as such. Later it would do no harm either: what events say only grows.
const KEPT: TimeDelta = TimeDelta::days(7);

/// Notes events as applied, and returns those that were not before.
pub(crate) async fn note(tx: &Tx<'_>, ids: &[Uuid], now: DateTime<Utc>) -> Result<Vec<Uuid>, Error> {
    // In order, so that two batches that share events wait for each other and never in a circle.
    const SQL: &str = "-- events.note
        INSERT INTO events (event_id, apply_time)
        SELECT id, $2 FROM unnest($1::uuid[]) AS id ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING event_id";
    tx.query(SQL, &[&ids, &now]).await?.iter().map(|row| column(row, "event_id")).collect()
}

/// Forgets at most `limit` old events, and says how many.
pub(crate) async fn prune(tx: &Tx<'_>, now: DateTime<Utc>, limit: i64) -> Result<u64, Error> {
    const SQL: &str = "-- events.prune
        DELETE FROM events WHERE event_id IN (SELECT event_id FROM events WHERE apply_time < $1 LIMIT $2)";
    tx.execute(SQL, &[&(now - KEPT), &limit]).await
}
