//! Takes in events that a node has left in the store because it ended before it could report them.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use entrepot_proto::node::v1::ReportEventsRequest;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::chain;
use entrepot_store::{Entry, Key, Prefix};
use prost::Message as _;
use tracing::{info, warn};
use uuid::Uuid;

use super::{Job, Progress};
use crate::error::ApiError;
use crate::index;
use crate::plane::Plane;

/// How many objects a pass takes in.
const BATCH: usize = 200;
/// How long a node has time to report its events itself.
const PATIENCE: TimeDelta = TimeDelta::minutes(1);
/// How many objects with events of a later release are remembered.
const UNKNOWN: usize = 100_000;

#[derive(Default)]
pub(super) struct Leftovers {
    /// Where the last pass ended. Younger events are skipped, so a pass need not begin at the first.
    after: Option<Key>,
    /// Objects with events of a later release. This process cannot learn to read them, so it does not read them again.
    unknown: HashSet<Key>,
}

impl Job for Leftovers {
    const NAME: &'static str = "leftover events";
    const EVERY: Duration = Duration::from_secs(60);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let now = plane.clock.now();
        let all = Prefix::below("events").expect("a legal folder");
        let entries = plane.store.list(&all, self.after.as_ref(), BATCH).await?;
        for Entry { key, .. } in &entries {
            let is_due = matches!(layout::parse(key), Some(Parsed::Event { event, .. }) if is_due(event, now));
            if is_due && !self.unknown.contains(key) {
                match take_in(plane, key).await {
                    Err(error @ ApiError::UnknownEvents { .. }) => {
                        warn!(error = %chain(&error), "left the events at `{key}` to a control plane of a later release");
                        if self.unknown.len() < UNKNOWN {
                            self.unknown.insert(key.clone());
                        }
                    }
                    // An event that cannot be taken in must not delay the others.
                    Err(error) if !error.may_retry() => {
                        warn!(error = %chain(&error), "left the events at `{key}`, which cannot be taken in");
                    }
                    taken => taken?,
                }
            }
        }
        let progress = if entries.len() < BATCH { Progress::Done } else { Progress::More };
        self.after = entries.into_iter().next_back().map(|entry| entry.key).filter(|_| progress == Progress::More);
        Ok(progress)
    }
}

async fn take_in(plane: &Plane, key: &Key) -> Result<(), ApiError> {
    let Some(object) = plane.store.get(key).await? else { return Ok(()) };
    let batch = ReportEventsRequest::decode(object.bytes).map_err(|error| ApiError::field("events", error));
    let applied = match batch {
        Ok(batch) => index::report(plane, &batch).await,
        Err(error) => Err(error),
    };
    match applied {
        Ok(()) => info!("took in the events that a node left at `{key}`"),
        // Trying again would not help; the reconciling pass finds in the store what the events were about.
        Err(ApiError::Invalid(violations)) => {
            warn!(error = %chain(&violations), "deleting events at `{key}` that cannot be read");
        }
        Err(error) => return Err(error),
    }
    Ok(plane.store.delete(key).await?)
}

fn is_due(event: Uuid, now: DateTime<Utc>) -> bool {
    let time = event.get_timestamp().and_then(|time| {
        let (seconds, nanos) = time.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    });
    time.is_none_or(|time| now - time >= PATIENCE)
}
