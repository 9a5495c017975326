//! Deletes what nobody needs any more: ids of events, answers to requests, and records of nodes that are long gone.

use std::time::Duration;

use chrono::TimeDelta;
use entrepot_records::layout::{self, Parsed};
use entrepot_store::Entry;
use tracing::info;

use super::{Job, Progress};
use crate::db::{changes, events, operations, requests, runs};
use crate::error::ApiError;
use crate::live_nodes;
use crate::plane::Plane;

/// How many rows of each table a batch deletes.
const BATCH: i64 = 5000;
/// How many operations a batch deletes.
const OPERATIONS: i64 = 50;
/// How many records of nodes are checked.
const NODES: usize = 1000;
/// How long a node must be silent to count as gone for good. If it comes back, it writes its record again.
const GONE: TimeDelta = TimeDelta::hours(24);

pub(super) struct Prune;

impl Job for Prune {
    const NAME: &'static str = "prune";
    const EVERY: Duration = Duration::from_secs(60 * 60);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let now = plane.clock.now();
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("prune").await?;
        let forgotten = events::prune(&tx, now, BATCH).await?.max(requests::prune(&tx, now, BATCH).await?);
        let forgotten = forgotten.max(changes::prune(&tx, BATCH).await?);
        runs::prune(&tx).await?;
        // Deleting an operation deletes its items.
        operations::prune(&tx, OPERATIONS).await?;
        tx.commit().await?;
        drop(connection);
        if i64::try_from(forgotten).unwrap_or(BATCH) >= BATCH {
            return Ok(Progress::More);
        }
        forget_nodes(plane).await?;
        Ok(Progress::Done)
    }
}

/// Deletes the records of nodes that are gone, so that those of short-lived ones do not pile up.
async fn forget_nodes(plane: &Plane) -> Result<(), ApiError> {
    let now = plane.clock.now();
    for Entry { key, modify_time, .. } in plane.store.list(&layout::nodes_prefix(), None, NODES).await? {
        let Some(Parsed::Node { id }) = layout::parse(&key) else { continue };
        if now - modify_time > GONE && live_nodes::read(&*plane.store, &plane.cluster_key, &id).await?.is_some() {
            plane.store.delete(&key).await?;
            info!(node.id = %id, "forgot the node `{id}`, which has been silent for a day");
        }
    }
    Ok(())
}
