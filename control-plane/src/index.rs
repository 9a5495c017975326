//! Takes in what nodes have learned. The records in the store are the truth; the rows here are an index of them.
//!
//! Events may be late, repeated, and out of order between nodes, without harm: each is applied once, tags only move
//! forward, times of last pulls only grow, and events about a dead incarnation are ignored. An event may also arrive
//! before its record is written, so a repository without a record is accepted at first; the reconciling pass removes it
//! again if the record never appears.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName};
use entrepot_proto::convert::Violations;
use entrepot_proto::convert::event::{Event, Image, Kind, Unread};
use entrepot_proto::node::v1::ReportEventsRequest;
use entrepot_records::layout;
use entrepot_records::{self as records, ManifestLink, RepositoryRecord, State};
use entrepot_runtime::chain;
use entrepot_store::Error;
use tokio::time::timeout;
use tracing::error;
use uuid::Uuid;

use crate::at_once;
use crate::db::repositories::{self, Created};
use crate::db::tags::{self, Moved};
use crate::db::{self, Tx, events, images};
use crate::error::ApiError;
use crate::metrics::EventOutcome;
use crate::plane::Plane;

/// How many events a batch may have.
const MAX_EVENTS: usize = 1000;
/// How often a batch is tried if others are in its way, or if a record for it is not written yet.
const ATTEMPTS: u32 = 5;
/// Each further attempt waits this much longer.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the store may take for a record.
const STORE_LIMIT: Duration = Duration::from_secs(3);

/// What a repository's record says about an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Live,
    /// It was deleted, or never existed.
    Dead,
    /// Its record is not written yet, or never will be.
    Undecided,
}

impl Verdict {
    /// What `record` says about `incarnation`.
    pub(crate) fn of(record: Option<&RepositoryRecord>, incarnation: Uuid) -> Self {
        match record {
            Some(record) if record.incarnation == incarnation => match record.state.known() {
                Some(State::Live) => Self::Live,
                Some(State::Deleted) => Self::Dead,
                // Only another release can tell.
                None => Self::Undecided,
            },
            // The name belongs to another incarnation: this one is older, or has lost a race against it.
            Some(record) if record.state == State::Live => Self::Dead,
            Some(_) | None => Self::Undecided,
        }
    }
}

/// Applies a node's batch, and retries if other batches are in its way.
///
/// # Errors
/// [`ApiError::UnknownEvents`] if some events are of a later release; [`ApiError::DamagedRecord`] if some are about a
/// repository whose record cannot be read. Then all others were applied, and these must be reported again.
pub(crate) async fn report(plane: &Plane, request: &ReportEventsRequest) -> Result<(), ApiError> {
    if request.events.len() > MAX_EVENTS {
        return Err(ApiError::field("events", format!("must be at most {MAX_EVENTS}")));
    }
    let (mut events, mut unknown) = (Vec::with_capacity(request.events.len()), Vec::new());
    let mut violations = Violations::default();
    for (i, event) in request.events.iter().enumerate() {
        match Event::read(&format!("events[{i}]"), event) {
            Ok(event) => events.push(event),
            Err(Unread::Unknown { field }) => unknown.push(field),
            Err(Unread::Wrong(wrong)) => drop(violations.merge::<()>(Err(wrong))),
        }
    }
    let events = violations.finish(Some(events))?;
    let damaged = apply_patiently(plane, &events).await?;
    match (unknown.first(), damaged) {
        (Some(first), _) => {
            plane.instruments.unknown_events(unknown.len());
            Err(ApiError::UnknownEvents { count: unknown.len(), first: first.clone() })
        }
        (None, Some(damaged)) => Err(damaged),
        (None, None) => Ok(()),
    }
}

async fn apply_patiently(plane: &Plane, events: &[Event]) -> Result<Option<ApiError>, ApiError> {
    for attempt in 1..ATTEMPTS {
        match apply(plane, events, Rivals::Wait).await {
            Err(ApiError::Contended(_)) => tokio::time::sleep(PAUSE * attempt).await,
            settled => return settled,
        }
    }
    apply(plane, events, Rivals::Replace).await
}

/// What to do when two nodes have reported that they create the same repository, and its record does not yet tell which
/// of them won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rivals {
    /// Try the batch again in a moment.
    Wait,
    /// Believe the later report; the reconciling pass corrects it if needed.
    Replace,
}

/// Applies either all or no events, except for those about repositories whose records cannot be read. If there are such
/// events, returns the reason.
async fn apply(plane: &Plane, batch: &[Event], rivals: Rivals) -> Result<Option<ApiError>, ApiError> {
    let now = plane.clock.now();
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("find_incarnations").await?;
    let unknown = unknown(&tx, batch).await?;
    drop(tx);
    drop(connection);
    // No database connection is held here, since the store may take its time.
    let (records, damaged) = read_records(plane, unknown).await?;
    let batch: Vec<&Event> = batch.iter().filter(|event| !damaged.contains(&event.incarnation)).collect();

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("apply_events").await?;
    let alive = alive(&tx, &batch, &records, rivals, now).await?;

    // An ignored event may come again when its repository is known.
    let ids: Vec<Uuid> =
        batch.iter().filter(|event| alive.contains(&event.incarnation)).map(|event| event.id).collect();
    let fresh: HashSet<Uuid> = events::note(&tx, &ids, now).await?.into_iter().collect();
    let mut rows = Rows::default();
    let mut applied = HashSet::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for event in &batch {
        let outcome = if !alive.contains(&event.incarnation) {
            EventOutcome::Ignored
        } else if fresh.contains(&event.id) && applied.insert(event.id) {
            rows.note(event);
            EventOutcome::Applied
        } else {
            EventOutcome::Repeated
        };
        outcomes.push((&event.kind, outcome));
    }
    rows.write(&tx).await?;
    tx.commit().await?;
    // Only counted now, since a rolled-back event has not happened.
    outcomes.into_iter().for_each(|(kind, outcome)| plane.instruments.event(kind, outcome));
    Ok(damaged.cause)
}

/// Makes sure that the index has the repository with the live record `record`. Returns whether it was missing.
pub(crate) async fn ensure(tx: &Tx<'_>, name: &RepositoryName, record: &RepositoryRecord) -> Result<bool, db::Error> {
    repositories::lock_name(tx, name).await?;
    let is_new = repositories::known(tx, &[record.incarnation]).await?.is_empty();
    if is_new {
        repositories::put(tx, &created(name, record)).await?;
    }
    Ok(is_new)
}

/// What the index keeps of a manifest link.
pub(crate) fn image(digest: &Digest, link: &ManifestLink) -> Image {
    Image {
        digest: digest.clone(),
        media_type: link.media_type.clone(),
        manifest_size_bytes: i64::try_from(link.size_bytes).unwrap_or(i64::MAX),
        content_size_bytes: i64::try_from(link.content_size_bytes).unwrap_or(i64::MAX),
        platforms: link.platforms.clone(),
        children: link.children.iter().map(|child| child.digest.clone()).collect(),
        config: link.config.as_ref().map(|config| config.digest.clone()),
        cache_time: link.cache_time,
        revision: link.revision,
    }
}

/// A repository in a batch, and its record.
type Met<'b> = ((&'b RepositoryName, Uuid), Option<RepositoryRecord>);

/// The repositories in a batch that the index does not know, sorted by name so that two batches lock them in the same
/// order.
async fn unknown<'b>(tx: &Tx<'_>, batch: &'b [Event]) -> Result<BTreeSet<(&'b RepositoryName, Uuid)>, ApiError> {
    let all: BTreeSet<Uuid> = batch.iter().map(|event| event.incarnation).collect();
    let all: Vec<Uuid> = all.into_iter().collect();
    let known: HashMap<Uuid, bool> = repositories::known(tx, &all).await?.into_iter().collect();
    let unknown = batch.iter().filter(|event| !known.contains_key(&event.incarnation));
    Ok(unknown.map(|event| (&event.repository, event.incarnation)).collect())
}

/// The repositories in a batch whose records cannot be read.
#[derive(Default)]
struct Damaged {
    incarnations: HashSet<Uuid>,
    cause: Option<ApiError>,
}

impl Damaged {
    fn contains(&self, incarnation: &Uuid) -> bool {
        self.incarnations.contains(incarnation)
    }
}

async fn read_records<'b>(
    plane: &Plane,
    unknown: BTreeSet<(&'b RepositoryName, Uuid)>,
) -> Result<(Vec<Met<'b>>, Damaged), ApiError> {
    let read = unknown.into_iter().map(|(name, incarnation)| async move {
        let key = layout::repository(name);
        let record = timeout(STORE_LIMIT, records::read::<RepositoryRecord>(&*plane.store, &key)).await;
        let record = record.map_err(|elapsed| ApiError::Away { what: "the store", cause: elapsed.into() })?;
        Ok::<_, ApiError>(((name, incarnation), record))
    });
    let (mut met, mut damaged) = (Vec::new(), Damaged::default());
    for (repository, record) in at_once::all::<_, ApiError, _>(read).await? {
        match record {
            Ok(record) => met.push((repository, record.map(|(record, _)| record))),
            Err(error @ (Error::BadRecord { .. } | Error::TooLarge { .. })) => {
                error!(error = %chain(&error), "the record of `{}` is damaged: events about it wait", repository.0);
                damaged.incarnations.insert(repository.1);
                damaged.cause = Some(ApiError::DamagedRecord { repository: repository.0.to_string() });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((met, damaged))
}

/// Locks and returns the live incarnations in a batch, after adding those that the index did not know.
async fn alive(
    tx: &Tx<'_>,
    batch: &[&Event],
    records: &[Met<'_>],
    rivals: Rivals,
    now: DateTime<Utc>,
) -> Result<HashSet<Uuid>, ApiError> {
    for ((name, incarnation), record) in records {
        meet(tx, (name, *incarnation), record.as_ref(), batch, rivals, now).await?;
    }
    let all: BTreeSet<Uuid> = batch.iter().map(|event| event.incarnation).collect();
    let all: Vec<Uuid> = all.into_iter().collect();
    Ok(repositories::lock(tx, &all).await?.into_iter().collect())
}

/// Decides about an incarnation that the index does not know, by a record that was read before. Whoever deletes the
/// repository meanwhile writes the record first and then waits for the name, so the deletion wins.
async fn meet(
    tx: &Tx<'_>,
    (name, incarnation): (&RepositoryName, Uuid),
    record: Option<&RepositoryRecord>,
    batch: &[&Event],
    rivals: Rivals,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    repositories::lock_name(tx, name).await?;
    if !repositories::known(tx, &[incarnation]).await?.is_empty() {
        return Ok(());
    }
    match (Verdict::of(record, incarnation), record) {
        (Verdict::Live, Some(record)) => repositories::put(tx, &created(name, record)).await?,
        (Verdict::Dead, _) => {
            repositories::bury(tx, &[incarnation], now).await?;
        }
        (Verdict::Live | Verdict::Undecided, _) => {
            if let Some(created) = creation(batch, name, incarnation) {
                if rivals == Rivals::Wait && repositories::get(tx, name).await?.is_some() {
                    return Err(ApiError::Contended(None));
                }
                repositories::put(tx, &created).await?;
            }
        }
    }
    Ok(())
}

/// What a batch says about the creation of a repository.
fn creation<'n>(batch: &[&Event], name: &'n RepositoryName, incarnation: Uuid) -> Option<Created<'n>> {
    batch.iter().filter(|event| event.incarnation == incarnation).find_map(|event| match &event.kind {
        Kind::RepositoryCreated { rule_uid, create_time, settings } => {
            let (rule_uid, create_time, settings) = (*rule_uid, *create_time, settings.into());
            Some(Created { incarnation, name, rule_uid, create_time, settings, automatic_sync: None })
        }
        Kind::ImageCached(_) | Kind::TagMoved { .. } | Kind::Pulled { .. } | Kind::ConfigCached { .. } => None,
    })
}

fn created<'n>(name: &'n RepositoryName, record: &RepositoryRecord) -> Created<'n> {
    Created {
        incarnation: record.incarnation,
        name,
        rule_uid: record.rule_uid,
        create_time: record.create_time,
        settings: record.settings.clone(),
        automatic_sync: record.automatic_sync,
    }
}

/// The last thing that a batch says about each row. So the rows are written in a handful of statements, however many
/// events there are.
#[derive(Default)]
struct Rows<'e> {
    rules: BTreeMap<Uuid, Option<Uuid>>,
    images: BTreeMap<(Uuid, &'e Digest), &'e Image>,
    configs: BTreeMap<(Uuid, &'e Digest), &'e str>,
    tags: BTreeMap<(Uuid, &'e str), Moved<'e>>,
    pulls: BTreeMap<(Uuid, &'e Digest), DateTime<Utc>>,
    repository_pulls: BTreeMap<Uuid, DateTime<Utc>>,
}

impl<'e> Rows<'e> {
    fn note(&mut self, event: &'e Event) {
        let incarnation = event.incarnation;
        match &event.kind {
            // The index has the repository by now, but it may have come under another rule since it was created.
            Kind::RepositoryCreated { rule_uid, .. } => {
                self.rules.insert(incarnation, *rule_uid);
            }
            Kind::ImageCached(image) => {
                let latest = self.images.entry((incarnation, &image.digest)).or_insert(image);
                if image.revision > latest.revision {
                    *latest = image;
                }
            }
            Kind::TagMoved { tag, digest, revision, validate_time } => {
                let moved = Moved { tag, digest: digest.as_ref(), revision: *revision, validate_time: *validate_time };
                let latest = self.tags.entry((incarnation, tag.as_str())).or_insert(moved);
                if moved.supersedes(latest) {
                    *latest = moved;
                }
            }
            Kind::ConfigCached { digest, platform } => {
                self.configs.entry((incarnation, digest)).or_insert(platform);
            }
            Kind::Pulled { digest, pull_time } => {
                let image = self.pulls.entry((incarnation, digest)).or_insert(*pull_time);
                *image = (*pull_time).max(*image);
                let repository = self.repository_pulls.entry(incarnation).or_insert(*pull_time);
                *repository = (*pull_time).max(*repository);
            }
        }
    }

    async fn write(self, tx: &Tx<'_>) -> Result<(), db::Error> {
        for (incarnation, rule_uid) in self.rules {
            repositories::adopt(tx, incarnation, rule_uid).await?;
        }
        let images: Vec<_> = self.images.into_iter().map(|((incarnation, _), image)| (incarnation, image)).collect();
        images::put_all(tx, &images).await?;
        let tags: Vec<_> = self.tags.into_iter().map(|((incarnation, _), moved)| (incarnation, moved)).collect();
        tags::put_all(tx, &tags).await?;
        let configs: Vec<_> =
            self.configs.into_iter().map(|((incarnation, digest), platform)| (incarnation, digest, platform)).collect();
        images::put_configs(tx, &configs).await?;
        let pulls: Vec<_> =
            self.pulls.into_iter().map(|((incarnation, digest), time)| (incarnation, digest, time)).collect();
        images::pulled(tx, &pulls).await?;
        let pulls: Vec<_> = self.repository_pulls.into_iter().collect();
        repositories::pulled(tx, &pulls).await
    }
}
