//! Operations: how they are started, observed and cancelled. Nodes do the work.

use std::collections::HashSet;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use entrepot_domain::job::{SyncPayload, SyncResult, SyncTag, Synced, WarmImage, WarmPayload};
use entrepot_domain::{Digest, Reference, RepositoryName};
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::operations_server::Operations;
use serde::Deserialize as _;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::{Caller, Permission, Session};
use super::filter::{self, Value};
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use crate::db::jobs::{self, Item, NewJob, Outcome};
use crate::db::operations::{self, Filter, Kind, Operation};
use crate::db::{self, Tx};
use crate::error::ApiError;
use crate::plane::Plane;

const KIND: &str = "entrepot.v1.Operation";

/// How many operations may run at once.
const OPERATIONS: i64 = 100;
/// How often watchers get an update.
const EVERY: Duration = Duration::from_millis(500);
/// How long a watcher may fail to take a message.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many items go into one message.
const ITEMS: i64 = 1000;
/// How many of them may be running items.
const RUNNING: i64 = 100;
/// How late a change may become visible to others after its timestamp. Ended items are looked for this far back.
const LATE: TimeDelta = TimeDelta::seconds(10);

/// The end of a page of operations.
type Position = (DateTime<Utc>, Uuid);
type Outgoing = mpsc::Sender<Result<pb::WatchOperationResponse, Status>>;

/// What an operation should do.
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) repository: Option<RepositoryName>,
    /// Repositories and references.
    pub(super) images: Vec<(RepositoryName, Reference)>,
    pub(super) platforms: Vec<String>,
}

#[tonic::async_trait]
impl Operations for Api {
    type WatchOperationStream = Pin<Box<dyn Stream<Item = Result<pb::WatchOperationResponse, Status>> + Send>>;

    async fn get_operation(
        &self,
        request: Request<pb::GetOperationRequest>,
    ) -> Result<Response<pb::Operation>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(get(&self.0, parse_name("name", &request.get_ref().name)?).await?))
    }

    async fn list_operations(
        &self,
        request: Request<pb::ListOperationsRequest>,
    ) -> Result<Response<pb::ListOperationsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }

    async fn list_operation_items(
        &self,
        request: Request<pb::ListOperationItemsRequest>,
    ) -> Result<Response<pb::ListOperationItemsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(items(&self.0, request.get_ref()).await?))
    }

    async fn watch_operation(
        &self,
        request: Request<pb::WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let mut session = self.session(&request, Permission::Administer).await?;
        let uid = parse_name("name", &request.get_ref().name)?;
        let place = std::sync::Arc::clone(&self.0.inquiries.watchers).try_acquire_owned();
        let place = place.map_err(|_| ApiError::TooManyWatchers)?;
        // Check that the operation exists before anything is streamed.
        get(&self.0, uid).await?;
        let (outgoing, messages) = mpsc::channel(1);
        let api = self.clone();
        self.0.tasks.spawn("watch operation", async move {
            let stopping = api.0.tasks.stopping();
            match stopping.run_until_cancelled(watch(&api, &mut session, uid, &outgoing)).await {
                Some(Ok(())) => {}
                // If the watcher is gone, it needs no reason.
                Some(Err(error)) => drop(timeout(PATIENCE, outgoing.send(Err(error.into()))).await),
                None => drop(outgoing.try_send(Err(Status::unavailable("the control plane is stopping")))),
            }
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn cancel_operation(
        &self,
        request: Request<pb::CancelOperationRequest>,
    ) -> Result<Response<pb::Operation>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let uid = parse_name("name", &request.get_ref().name)?;
        let mut connection = self.0.db.connect().await.map_err(ApiError::from)?;
        let cancelled = async {
            let tx = connection.begin("cancel_operation").await?;
            jobs::cancel(&tx, uid).await?;
            operations::cancel(&tx, uid).await?;
            let operation = require(&tx, uid).await?;
            tx.commit().await?;
            Ok::<_, ApiError>(to_wire(&operation))
        };
        Ok(Response::new(cancelled.await?))
    }

    async fn delete_operation(
        &self,
        request: Request<pb::DeleteOperationRequest>,
    ) -> Result<Response<pb::Operation>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(delete(&self.0, parse_name("name", &request.get_ref().name)?).await?))
    }
}

/// Starts an operation, unless the same request has already started one.
pub(super) async fn begin(
    plane: &Plane,
    tx: &Tx<'_>,
    caller: &Caller,
    request_id: &RequestId,
    plan: &Plan,
) -> Result<pb::Operation, ApiError> {
    match request_id.claim(plane, tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(answer) => return Ok(answer),
        Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    if operations::running(tx).await? >= OPERATIONS {
        return Err(ApiError::TooManyOperations { limit: OPERATIONS });
    }
    let count = i32::try_from(plan.images.len()).unwrap_or(i32::MAX);
    let operation = operations::insert(tx, plan.kind, plan.repository.as_ref(), &caller.key_id, count).await?;
    jobs::insert(tx, operation.uid, &items_of(plan)?).await?;
    let answer = to_wire(&operation);
    request_id.answer(tx, caller, &answer).await?;
    Ok(answer)
}

/// The jobs that a plan consists of.
fn items_of(plan: &Plan) -> Result<Vec<NewJob>, db::Error> {
    let item = |(repository, reference): &(RepositoryName, Reference)| match (plan.kind, reference) {
        (Kind::SyncRepository, Reference::Tag(tag)) => {
            let payload = SyncPayload { repository: repository.clone(), tag: tag.clone(), known_validate_time: None };
            NewJob::of::<SyncTag>(repository, reference, &payload)
        }
        (Kind::SyncRepository | Kind::WarmImages, _) => {
            let platforms = plan.platforms.clone();
            let payload = WarmPayload { repository: repository.clone(), reference: reference.clone(), platforms };
            NewJob::of::<WarmImage>(repository, reference, &payload)
        }
    };
    plan.images.iter().map(item).collect()
}

async fn get(plane: &Plane, uid: Uuid) -> Result<pb::Operation, ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_operation").await?;
    Ok(to_wire(&require(&tx, uid).await?))
}

async fn list(plane: &Plane, request: &pb::ListOperationsRequest) -> Result<pb::ListOperationsResponse, ApiError> {
    let mut violations = Violations::default();
    let page = violations.merge(Page::<Position>::read(
        &plane.cluster_key,
        "ListOperations",
        &[&request.filter],
        request.page_size,
        &request.page_token,
    ));
    let filter = violations.merge(read_filter(&request.filter));
    let (page, filter) = violations.finish(page.zip(filter))?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_operations").await?;
    let mut rows = operations::list(&tx, &filter, page.after.as_ref(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| (last.create_time, last.uid));
    Ok(pb::ListOperationsResponse { operations: rows.iter().map(to_wire).collect(), next_page_token })
}

async fn items(
    plane: &Plane,
    request: &pb::ListOperationItemsRequest,
) -> Result<pb::ListOperationItemsResponse, ApiError> {
    let mut violations = Violations::default();
    let uid = violations.take("parent", names::parse_operation(&request.parent));
    let page = violations.merge(Page::<i32>::read(
        &plane.cluster_key,
        "ListOperationItems",
        &[&request.parent],
        request.page_size,
        &request.page_token,
    ));
    let (uid, page) = violations.finish(uid.zip(page))?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_operation_items").await?;
    require(&tx, uid).await?;
    let mut rows = jobs::items(&tx, uid, page.after.unwrap_or_default(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.ordinal);
    Ok(pb::ListOperationItemsResponse { items: rows.iter().map(item_to_wire).collect(), next_page_token })
}

async fn delete(plane: &Plane, uid: Uuid) -> Result<pb::Operation, ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("delete_operation").await?;
    let operation = require(&tx, uid).await?;
    if !operations::delete(&tx, uid).await? {
        let name = names::operation(uid);
        let description = format!("`{name}` has not ended: wait for it, or cancel it first");
        return Err(ApiError::Precondition { kind: "OPERATION_RUNS", subject: name, description });
    }
    tx.commit().await?;
    Ok(to_wire(&operation))
}

/// What a watcher has been told.
#[derive(Default)]
struct Heard {
    /// The numbers of the ended items.
    ended: HashSet<i32>,
    /// The time since when further items may have ended.
    since: DateTime<Utc>,
    /// Once the operation has ended: everything up to this item number has been told.
    until: i32,
    last: Option<pb::WatchOperationResponse>,
}

/// Sends a watcher the state of an operation, until the operation has ended or the watcher leaves.
async fn watch(api: &Api, session: &mut Session, uid: Uuid, outgoing: &Outgoing) -> Result<(), ApiError> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Heard::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = outgoing.closed() => return Ok(()),
        }
        api.confirm(session, Permission::Administer).await?;
        let Some((message, is_last)) = read_progress(&api.0, uid, &mut heard).await? else { return Ok(()) };
        if heard.last.as_ref() != Some(&message) {
            heard.last = Some(message.clone());
            if !matches!(timeout(PATIENCE, outgoing.send(Ok(message))).await, Ok(Ok(()))) {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// The next message, and whether it is the last one; `None` if the operation was forgotten.
async fn read_progress(
    plane: &Plane,
    uid: Uuid,
    heard: &mut Heard,
) -> Result<Option<(pb::WatchOperationResponse, bool)>, ApiError> {
    let mut connection = plane.db.connect().await?;
    // All queries see one state of the database, so that counts and items match.
    let tx = connection.begin_snapshot("watch_operation").await?;
    let Some(operation) = operations::get(&tx, uid).await? else { return Ok(None) };
    let (told, is_last) = match operation.end_time {
        Some(_) => rest(&tx, uid, heard).await?,
        None => (news(&tx, uid, heard).await?, false),
    };
    let items = told.iter().map(item_to_wire).collect();
    Ok(Some((pb::WatchOperationResponse { operation: Some(to_wire(&operation)), items }, is_last)))
}

/// Items that ended lately, and running ones. If an ended item is missed here, it is sent at the end.
async fn news(tx: &Tx<'_>, uid: Uuid, heard: &mut Heard) -> Result<Vec<Item>, ApiError> {
    let seen = jobs::list_ended(tx, uid, heard.since, ITEMS).await?;
    let is_all = i64::try_from(seen.len()).unwrap_or(ITEMS) < ITEMS;
    if let Some(newest) = seen.last().and_then(|item| item.end_time) {
        // A transaction that is still open may write an earlier time than those that are visible now.
        heard.since = if is_all { newest - LATE } else { newest };
    }
    let mut told: Vec<Item> = seen.into_iter().filter(|item| heard.ended.insert(item.ordinal)).collect();
    let room = ITEMS - i64::try_from(told.len()).unwrap_or(ITEMS);
    told.extend(jobs::running(tx, uid, room.min(RUNNING)).await?);
    Ok(told)
}

/// Items of an ended operation that were not sent yet, and whether these are all.
async fn rest(tx: &Tx<'_>, uid: Uuid, heard: &mut Heard) -> Result<(Vec<Item>, bool), ApiError> {
    loop {
        let seen = jobs::items(tx, uid, heard.until, ITEMS).await?;
        let is_last = i64::try_from(seen.len()).unwrap_or(ITEMS) < ITEMS;
        heard.until = seen.last().map_or(heard.until, |item| item.ordinal);
        let told: Vec<Item> = seen.into_iter().filter(|item| heard.ended.insert(item.ordinal)).collect();
        if is_last || !told.is_empty() {
            return Ok((told, is_last));
        }
    }
}

async fn require(tx: &Tx<'_>, uid: Uuid) -> Result<Operation, ApiError> {
    operations::get(tx, uid).await?.ok_or_else(|| ApiError::not_found(KIND, names::operation(uid)))
}

fn parse_name(field: &str, name: &str) -> Result<Uuid, ApiError> {
    names::parse_operation(name).map_err(|error| ApiError::field(field, error))
}

fn read_filter(text: &str) -> Result<Filter, Violations> {
    let mut filter = Filter::default();
    for term in filter::parse(text)? {
        let twice = match (term.field.as_str(), &term.value) {
            ("repository", Value::Text(name)) => {
                let name =
                    names::parse_repository(name).map_err(|error| term.wrong(format!("`repository` {error}")))?;
                filter.repository.replace(name).is_some()
            }
            ("done", Value::Flag(done)) => filter.done.replace(*done).is_some(),
            _ => {
                return Err(term.wrong("a term is `repository = \"repositories/hub/library/nginx\"` or `done = false`"));
            }
        };
        if twice {
            return Err(term.wrong(format!("`{}` is given twice", term.field)));
        }
    }
    Ok(filter)
}

fn to_wire(operation: &Operation) -> pb::Operation {
    let state = match (operation.end_time, operation.cancel_time) {
        (None, None) => pb::OperationState::Running,
        (None, Some(_)) => pb::OperationState::Cancelling,
        (Some(_), _) if operation.cancelled_count > 0 => pb::OperationState::Cancelled,
        (Some(_), _) if operation.failed_count > 0 => pb::OperationState::Failed,
        (Some(_), _) => pb::OperationState::Succeeded,
    };
    let kind = match operation.kind {
        Some(Kind::SyncRepository) => pb::OperationKind::SyncRepository,
        Some(Kind::WarmImages) => pb::OperationKind::WarmImages,
        None => pb::OperationKind::Unspecified,
    };
    pb::Operation {
        name: names::operation(operation.uid),
        kind: kind.into(),
        repository: operation.repository.as_ref().map(names::repository).unwrap_or_default(),
        state: state.into(),
        done: operation.end_time.is_some(),
        access_key_id: operation.access_key_id.clone(),
        create_time: Some(timestamp(operation.create_time)),
        end_time: operation.end_time.map(timestamp),
        item_count: operation.item_count,
        ended_count: operation.ended_count,
        failed_count: operation.failed_count,
        done_bytes: operation.done_bytes,
    }
}

fn item_to_wire(item: &Item) -> pb::OperationItem {
    // That of an image that is fetched ahead is one that nobody was told of.
    let result = item.result.as_ref().and_then(|result| SyncResult::deserialize(result).ok());
    let lagging = result.as_ref().map_or(0, |result| result.lagging_nodes);
    let (outcome, from, to, reason) = match (item.outcome, result.map(|result| result.synced)) {
        (None, _) => (pb::ItemOutcome::Unspecified, None, None, ""),
        (Some(Outcome::Failed), _) => (pb::ItemOutcome::Failed, None, None, ""),
        (Some(Outcome::Cancelled), _) => (pb::ItemOutcome::Cancelled, None, None, ""),
        (Some(Outcome::Done), Some(synced)) => synced_to_wire(synced),
        // A kind or a result that only a later release knows.
        (Some(Outcome::Done), None) | (Some(Outcome::Unknown), _) => (pb::ItemOutcome::Unchanged, None, None, ""),
    };
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
    pb::OperationItem {
        image: item.subject.clone(),
        outcome: outcome.into(),
        from_digest: text(from),
        to_digest: text(to),
        reason: if item.reason.is_empty() { reason.to_owned() } else { item.reason.clone() },
        done_bytes: item.done_bytes,
        total_bytes: item.total_bytes,
        node: item.node_id.as_ref().map(|node| format!("nodes/{node}")).unwrap_or_default(),
        attempt_count: item.attempt_count,
        end_time: item.end_time.map(timestamp),
        lagging_node_count: i32::try_from(lagging).unwrap_or(i32::MAX),
    }
}

/// What happened to a tag: its old digest, its new digest, and the reason.
fn synced_to_wire(synced: Synced) -> (pb::ItemOutcome, Option<Digest>, Option<Digest>, &'static str) {
    match synced {
        Synced::Unchanged { digest } => (pb::ItemOutcome::Unchanged, Some(digest.clone()), Some(digest), ""),
        Synced::Moved { from: None, to } => (pb::ItemOutcome::Created, None, Some(to), ""),
        Synced::Moved { from, to } => (pb::ItemOutcome::Moved, from, Some(to), ""),
        Synced::Deleted { from, is_dropped: true } => {
            (pb::ItemOutcome::Deleted, from, None, "the tag was dropped, as the rule says")
        }
        Synced::Deleted { from, is_dropped: false } => {
            (pb::ItemOutcome::Deleted, from.clone(), from, "what is cached goes on being served, as the rule says")
        }
        Synced::Unknown => (pb::ItemOutcome::Unchanged, None, None, "a later release knows what it has come to"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_was_not_here_is_created_and_one_that_is_gone_stays_or_not() {
        let digest = Digest::sha256(b"x");
        let (outcome, _, to, _) = synced_to_wire(Synced::Moved { from: None, to: digest.clone() });
        assert_eq!((outcome, to), (pb::ItemOutcome::Created, Some(digest.clone())));
        let (outcome, _, to, _) = synced_to_wire(Synced::Deleted { from: Some(digest.clone()), is_dropped: false });
        assert_eq!((outcome, to), (pb::ItemOutcome::Deleted, Some(digest.clone())));
        let (_, _, to, _) = synced_to_wire(Synced::Deleted { from: Some(digest), is_dropped: true });
        assert_eq!(to, None);
    }

    #[test]
    fn filters_say_which_operations() {
        let filter = read_filter(r#"repository = "repositories/hub/app" AND done = false"#).unwrap();
        assert_eq!(filter, Filter { repository: Some("hub/app".parse().unwrap()), done: Some(false) });
        for wrong in [r#"repository = "hub""#, "done = false AND done = true", r#"done = "x""#, r#"other = "x""#] {
            assert!(read_filter(wrong).is_err(), "{wrong}");
        }
    }
}
