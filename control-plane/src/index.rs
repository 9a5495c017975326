//! Takes in what nodes have learnt. The records in the store are the truth; the rows here are their index.
//!
//! Events come late, twice, and out of order between nodes, and no harm is done: each is applied once, tags only go
//! forward, last pulls only grow, and what is said of a dead incarnation is ignored. An event may also come before the
//! record that it tells of is written, so a repository without a record is taken on trust; the reconciling pass
//! removes it again if the record never appears.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName};
use entrepot_proto::convert::Violations;
use entrepot_proto::convert::event::{Event, Image, Kind, Unread};
use entrepot_proto::node::v1::ReportEventsRequest;
use entrepot_records::layout;
use entrepot_records::{self as records, ManifestLink, RepositoryRecord, State};
use tokio::time::timeout;
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
/// How often a batch is tried again when others are in its way, or a record that it tells of is not written yet.
const ATTEMPTS: u32 = 5;
/// How much longer it waits before each further attempt.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the store may take for a record.
const STORE_LIMIT: Duration = Duration::from_secs(3);

/// What a repository's record says about an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the live one.
    Live,
    /// It was deleted, or never came to be.
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
                // Another release knows.
                None => Self::Undecided,
            },
            // The name is another's: this one came before it, or has lost against it.
            Some(record) if record.state == State::Live => Self::Dead,
            Some(_) | None => Self::Undecided,
        }
    }
}

/// Applies a batch as a node sends it, also when other batches are in its way.
///
/// # Errors
/// [`ApiError::UnknownEvents`] if some are of a later release. All others were applied then.
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
    apply_patiently(plane, &events).await?;
    match unknown.first() {
        Some(first) => {
            plane.instruments.unknown_events(unknown.len());
            Err(ApiError::UnknownEvents { count: unknown.len(), first: first.clone() })
        }
        None => Ok(()),
    }
}

async fn apply_patiently(plane: &Plane, events: &[Event]) -> Result<(), ApiError> {
    for attempt in 1..ATTEMPTS {
        match apply(plane, events, Rivals::Wait).await {
            Err(ApiError::Contended(_)) => tokio::time::sleep(PAUSE * attempt).await,
            settled => return settled,
        }
    }
    apply(plane, events, Rivals::Replace).await
}

/// What happens when two nodes have reported that they create the same repository, and its record does not say yet which
/// of them it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rivals {
    /// The batch is tried again in a moment.
    Wait,
    /// The later report is believed; the reconciling pass has the last word.
    Replace,
}

/// Applies events, all or none of them.
async fn apply(plane: &Plane, batch: &[Event], rivals: Rivals) -> Result<(), ApiError> {
    let now = plane.clock.now();
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("find_incarnations").await?;
    let unknown = unknown(&tx, batch).await?;
    drop(tx);
    drop(connection);
    // With no connection to the database, since the store may take its time.
    let records = read_records(plane, unknown).await?;

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("apply_events").await?;
    let alive = alive(&tx, batch, &records, rivals, now).await?;

    let ids: Vec<Uuid> = batch.iter().map(|event| event.id).collect();
    let fresh: HashSet<Uuid> = events::note(&tx, &ids, now).await?.into_iter().collect();
    let mut rows = Rows::default();
    let mut applied = HashSet::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for event in batch {
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
    // What was rolled back has not happened.
    outcomes.into_iter().for_each(|(kind, outcome)| plane.instruments.event(kind, outcome));
    Ok(())
}

/// Makes sure that the index has a repository whose live record is `record`; says whether it lacked it.
pub(crate) async fn ensure(tx: &Tx<'_>, name: &RepositoryName, record: &RepositoryRecord) -> Result<bool, db::Error> {
    repositories::lock_name(tx, name).await?;
    let is_new = repositories::known(tx, &[record.incarnation]).await?.is_empty();
    if is_new {
        repositories::put(tx, &created(name, record)).await?;
    }
    Ok(is_new)
}

/// What the index keeps of a manifest link; `None` if it is of a kind that only another release knows.
pub(crate) fn image(digest: &Digest, link: &ManifestLink) -> Option<Image> {
    Some(Image {
        digest: digest.clone(),
        media_type: link.media_type.known()?,
        manifest_size_bytes: i64::try_from(link.size_bytes).unwrap_or(i64::MAX),
        content_size_bytes: i64::try_from(link.content_size_bytes).unwrap_or(i64::MAX),
        platforms: link.platforms.clone(),
        children: link.children.iter().map(|child| child.digest.clone()).collect(),
        config: link.config.as_ref().map(|config| config.digest.clone()),
        cache_time: link.cache_time,
    })
}

/// A repository of a batch, and what its record says.
type Met<'b> = ((&'b RepositoryName, Uuid), Option<RepositoryRecord>);

/// The repositories of a batch that the index does not know, by name, so that two batches lock names in one order.
async fn unknown<'b>(tx: &Tx<'_>, batch: &'b [Event]) -> Result<BTreeSet<(&'b RepositoryName, Uuid)>, ApiError> {
    let all: BTreeSet<Uuid> = batch.iter().map(|event| event.incarnation).collect();
    let all: Vec<Uuid> = all.into_iter().collect();
    let known: HashMap<Uuid, bool> = repositories::known(tx, &all).await?.into_iter().collect();
    let unknown = batch.iter().filter(|event| !known.contains_key(&event.incarnation));
    Ok(unknown.map(|event| (&event.repository, event.incarnation)).collect())
}

async fn read_records<'b>(
    plane: &Plane,
    unknown: BTreeSet<(&'b RepositoryName, Uuid)>,
) -> Result<Vec<Met<'b>>, ApiError> {
    let read = unknown.into_iter().map(|(name, incarnation)| async move {
        let key = layout::repository(name);
        let record = timeout(STORE_LIMIT, records::read::<RepositoryRecord>(&*plane.store, &key)).await;
        let record = record.map_err(|elapsed| ApiError::Away { what: "the store", cause: elapsed.into() })??;
        Ok::<_, ApiError>(((name, incarnation), record.map(|(record, _)| record)))
    });
    at_once::all(read).await
}

/// Those incarnations of a batch that are alive, locked; ones that the index did not know are in it then.
async fn alive(
    tx: &Tx<'_>,
    batch: &[Event],
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

/// Decides about an incarnation that the index does not know, by a record that was read before: who deletes the
/// repository meanwhile writes its record first and then waits for the name, so that the deletion has the last word.
async fn meet(
    tx: &Tx<'_>,
    (name, incarnation): (&RepositoryName, Uuid),
    record: Option<&RepositoryRecord>,
    batch: &[Event],
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
fn creation<'n>(batch: &[Event], name: &'n RepositoryName, incarnation: Uuid) -> Option<Created<'n>> {
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

/// What a batch says of each row, one word for each however many events there are: the index's rows are written in a
/// handful of statements.
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
            // The index has it by now; a repository may have come under another rule since it was created.
            Kind::RepositoryCreated { rule_uid, .. } => {
                self.rules.insert(incarnation, *rule_uid);
            }
            Kind::ImageCached(image) => {
                let latest = self.images.entry((incarnation, &image.digest)).or_insert(image);
                if image.cache_time > latest.cache_time {
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
