//! Operations and their jobs with simulated nodes: what the nodes lease and report, and what happens to jobs of silent
//! nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use entrepot_proto::node::v1 as node;
use entrepot_proto::node::v1::job_result::Ended;
use entrepot_proto::node::v1::report_job_request::Report;
use entrepot_proto::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{self as records, RepositoryRecord};
use entrepot_store::Store;
use entrepot_test_support::wait_until;
use tokio::sync::RwLockWriteGuard;
use tonic::{Code, Status};

use crate::content::Repository;
use crate::deaf_store::DeafStore;
use crate::fixture::{Fixture, LIMIT, World, details, fields, kind, now};

fn image(tag: &str) -> String {
    format!("repositories/demo/app/tags/{tag}")
}

/// An operation that warms these tags of `demo/app`.
async fn warm(fixture: &Fixture, tags: &[&str]) -> pb::Operation {
    let images = tags.iter().map(|tag| image(tag)).collect();
    let request = pb::WarmImagesRequest { images, ..Default::default() };
    fixture.images().warm_images(request).await.unwrap().into_inner()
}

async fn lease(fixture: &Fixture, node_id: &str, limit: i32) -> Vec<node::Job> {
    lease_kinds(fixture, node_id, limit, &["sync", "warm", "scan"]).await
}

async fn lease_kinds(fixture: &Fixture, node_id: &str, limit: i32, kinds: &[&str]) -> Vec<node::Job> {
    let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    let request = node::LeaseJobsRequest { node_id: node_id.to_owned(), limit, kinds };
    fixture.nodes(node_id).lease_jobs(request).await.unwrap().into_inner().jobs
}

async fn say(fixture: &Fixture, node_id: &str, job: &node::Job, report: Report) -> bool {
    try_say(fixture, node_id, job, report).await.unwrap()
}

async fn try_say(fixture: &Fixture, node_id: &str, job: &node::Job, report: Report) -> Result<bool, Status> {
    let request = node::ReportJobRequest {
        node_id: node_id.to_owned(),
        job_id: job.job_id.clone(),
        lease_token: job.lease_token.clone(),
        report: Some(report),
    };
    Ok(fixture.nodes(node_id).report_job(request).await?.into_inner().stop)
}

/// Whether a report about a job is refused because the job no longer belongs to the node.
async fn is_lost(fixture: &Fixture, node_id: &str, job: &node::Job, report: Report) -> bool {
    let refused = try_say(fixture, node_id, job, report).await.unwrap_err();
    kind(&refused) == (Code::FailedPrecondition, "LEASE_LOST".to_owned())
}

fn result(outcome: pb::ItemOutcome) -> Report {
    let digest = format!("sha256:{}", "0".repeat(64));
    let result = if outcome == pb::ItemOutcome::Unchanged {
        serde_json::json!({ "outcome": "UNCHANGED", "digest": digest })
    } else {
        let from = (outcome == pb::ItemOutcome::Moved).then_some(&digest);
        let lagging = if outcome == pb::ItemOutcome::Moved { 3 } else { 0 };
        serde_json::json!({ "outcome": "MOVED", "from": from, "to": digest, "lagging_nodes": lagging })
    };
    let progress = Some(node::JobProgress { done_bytes: 70, total_bytes: 70 });
    Report::Result(node::JobResult { ended: Some(Ended::Result(result.to_string())), progress })
}

fn failed(reason: &str, may_retry: bool) -> Report {
    let failure = node::JobFailure { reason: reason.to_owned(), may_retry, ..Default::default() };
    Report::Result(node::JobResult { ended: Some(Ended::Failure(failure)), progress: None })
}

fn progress(done_bytes: i64) -> Report {
    Report::Progress(node::JobProgress { done_bytes, total_bytes: 100 })
}

fn tag_of(job: &node::Job) -> String {
    let payload: serde_json::Value = serde_json::from_str(&job.payload).unwrap();
    let tag = payload.get("tag").or_else(|| payload.get("reference"));
    tag.and_then(|tag| tag.as_str()).unwrap_or_default().to_owned()
}

async fn get(fixture: &Fixture, name: &str) -> pb::Operation {
    fixture.operations().get_operation(pb::GetOperationRequest { name: name.to_owned() }).await.unwrap().into_inner()
}

async fn items(fixture: &Fixture, parent: &str) -> Vec<pb::OperationItem> {
    let (mut items, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListOperationItemsRequest { parent: parent.to_owned(), page_size: 2, page_token };
        let page = fixture.operations().list_operation_items(request).await.unwrap().into_inner();
        items.extend(page.items);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return items;
        }
    }
}

#[tokio::test]
async fn nodes_work_at_an_operation_until_its_last_item_has_ended() {
    let fixture = Fixture::start().await;
    let operation = warm(&fixture, &["a", "b", "c"]).await;
    assert_eq!((operation.state(), operation.item_count, operation.done), (pb::OperationState::Running, 3, false));
    let watch = pb::WatchOperationRequest { name: operation.name.clone() };
    let mut watched = fixture.operations().watch_operation(watch).await.unwrap().into_inner();

    let one = lease(&fixture, "node-1", 2).await;
    let two = lease(&fixture, "node-2", 2).await;
    assert_eq!((one.len(), two.len()), (2, 1), "each job is one node's");
    let all: BTreeSet<String> = one.iter().chain(&two).map(tag_of).collect();
    assert_eq!(all, BTreeSet::from(["a", "b", "c"].map(str::to_owned)));
    assert!(!say(&fixture, "node-1", &one[0], progress(40)).await);
    say(&fixture, "node-1", &one[0], result(pb::ItemOutcome::Moved)).await;
    say(&fixture, "node-1", &one[1], result(pb::ItemOutcome::Created)).await;
    assert!(!get(&fixture, &operation.name).await.done);
    say(&fixture, "node-2", &two[0], failed("the upstream denies access", false)).await;

    let ended = get(&fixture, &operation.name).await;
    assert_eq!((ended.state(), ended.ended_count, ended.failed_count), (pb::OperationState::Failed, 3, 1));
    assert_eq!((ended.done, ended.end_time.is_some(), ended.done_bytes), (true, true, 140));
    let items = items(&fixture, &operation.name).await;
    let names: Vec<&str> = items.iter().map(|item| item.image.as_str()).collect();
    assert_eq!(names, [image("a"), image("b"), image("c")], "in the order in which they were asked for");
    let moved = |item: &&pb::OperationItem| item.outcome() == pb::ItemOutcome::Moved;
    let (lagging, all): (Vec<i32>, i32) = (
        items.iter().filter(moved).map(|item| item.lagging_node_count).collect(),
        items.iter().map(|item| item.lagging_node_count).sum(),
    );
    assert_eq!((lagging, all), (vec![3], 3), "as the node has said");
    assert!(items.iter().any(|item| item.reason == "the upstream denies access" && item.node == "nodes/node-2"));

    let mut heard = BTreeSet::new();
    let mut last = None;
    while let Some(message) = watched.message().await.unwrap() {
        let ended = message.items.iter().filter(|item| item.outcome != 0);
        for item in ended {
            assert!(heard.insert(item.image.clone()), "{} ended twice", item.image);
        }
        last = message.operation;
    }
    assert_eq!((heard.len(), last), (3, Some(ended)), "the watcher has heard of all of it, and the stream has ended");
}

#[tokio::test]
async fn a_job_whose_node_is_silent_goes_to_another_one_and_the_first_has_no_say_any_more() {
    let fixture = Fixture::start().await;
    let operation = warm(&fixture, &["a"]).await;
    let lost = lease(&fixture, "node-1", 1).await.remove(0);
    assert!(lease(&fixture, "node-2", 1).await.is_empty(), "it is node-1's");
    // The lease is made to expire by hand.
    fixture.world.sql("UPDATE jobs SET lease_until = now() - interval '1 second'").await;
    let taken = lease(&fixture, "node-2", 1).await.remove(0);
    assert_eq!(taken.job_id, lost.job_id);

    assert!(is_lost(&fixture, "node-1", &lost, progress(1)).await, "who was lost is told");
    assert!(is_lost(&fixture, "node-1", &lost, result(pb::ItemOutcome::Moved)).await);
    for report in ["progress", "result"] {
        let count = fixture.metric("entrepot_job_lost_lease_count", &[&format!("job_report=\"{report}\"")]);
        assert_eq!(count, 1.0, "{report}");
    }
    assert!(!get(&fixture, &operation.name).await.done, "and cannot end it");
    say(&fixture, "node-2", &taken, result(pb::ItemOutcome::Unchanged)).await;
    let items = items(&fixture, &operation.name).await;
    assert_eq!((items[0].outcome(), items[0].attempt_count), (pb::ItemOutcome::Unchanged, 2));
    // Reporting it again changes nothing.
    assert!(is_lost(&fixture, "node-2", &taken, failed("too late", false)).await);
    assert_eq!(get(&fixture, &operation.name).await.state(), pb::OperationState::Succeeded);
}

#[tokio::test]
async fn a_job_that_no_node_survives_fails_after_five_attempts() {
    let fixture = Fixture::start().await;
    let operation = warm(&fixture, &["a"]).await;
    for attempt in 1..=5 {
        assert_eq!(lease(&fixture, "node-1", 1).await.len(), 1, "attempt {attempt}");
        fixture.world.sql("UPDATE jobs SET lease_until = now() - interval '1 second'").await;
    }
    assert!(lease(&fixture, "node-1", 1).await.is_empty());
    wait_until(LIMIT, "it has failed", async || get(&fixture, &operation.name).await.done).await;
    let items = items(&fixture, &operation.name).await;
    assert_eq!(items[0].outcome(), pb::ItemOutcome::Failed);
    assert!(items[0].reason.contains("node-1"), "{}", items[0].reason);
}

#[tokio::test]
async fn what_failed_for_a_reason_that_may_pass_is_tried_again_after_a_rest() {
    let fixture = Fixture::start().await;
    let operation = warm(&fixture, &["a"]).await;
    for _ in 1..=5 {
        let job = lease(&fixture, "node-1", 1).await.remove(0);
        say(&fixture, "node-1", &job, failed("the upstream is away", true)).await;
        assert!(lease(&fixture, "node-1", 1).await.is_empty(), "it rests");
        fixture.world.sql("UPDATE jobs SET run_time = now() WHERE end_time IS NULL").await;
    }
    let ended = get(&fixture, &operation.name).await;
    assert_eq!((ended.done, ended.failed_count), (true, 1));
    assert_eq!(items(&fixture, &operation.name).await[0].reason, "the upstream is away");
}

/// Creates jobs that nobody asked for: this many of one kind at one upstream, due since some minutes.
async fn pile_up(fixture: &Fixture, count: usize, kind: &str, upstream: &str, minutes: u32, priority: u32) {
    let sql = format!(
        "INSERT INTO jobs (kind, upstream, subject, payload, priority, run_time, turn_time)
         SELECT '{kind}', '{upstream}', 'n', '{{\"tag\": \"{upstream}-{minutes}\"}}', {priority},
                now() - interval '{minutes} minutes', now() - interval '{minutes} minutes' + {priority} * interval '1 minute'
           FROM generate_series(1, {count})"
    );
    fixture.world.sql(&sql).await;
}

#[tokio::test]
async fn a_node_gets_only_the_kinds_that_it_knows() {
    let fixture = Fixture::start().await;
    warm(&fixture, &["a"]).await;
    pile_up(&fixture, 10, "scan", "", 0, 0).await;
    assert!(lease_kinds(&fixture, "node-1", 8, &["sync"]).await.is_empty());
    assert!(lease_kinds(&fixture, "node-1", 8, &[]).await.is_empty());
    let known = lease_kinds(&fixture, "node-1", 8, &["sync", "warm"]).await;
    assert_eq!(known.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), ["warm"]);
    assert_eq!(tag_of(&known[0]), "a");
}

#[tokio::test]
async fn however_many_jobs_of_one_kind_or_upstream_wait_the_others_get_their_turns() {
    let fixture = Fixture::start().await;
    pile_up(&fixture, 20_000, "scan", "one", 60, 0).await;
    pile_up(&fixture, 3, "scan", "two", 0, 0).await;
    pile_up(&fixture, 3, "sync", "one", 0, 1).await;
    let first = lease(&fixture, "node-1", 8).await;
    let count = |jobs: &[node::Job], kind: &str, tag: &str| {
        jobs.iter().filter(|job| job.kind == kind && tag_of(job) == tag).count()
    };
    assert_eq!(first.len(), 8);
    assert!(count(&first, "scan", "one-60") <= 3, "one line does not have all turns");
    assert!(count(&first, "scan", "two-0") >= 2 && count(&first, "sync", "one-0") >= 2);
    // It does not fill a node either, when nothing else waits.
    lease(&fixture, "node-2", 8).await;
    let rest = lease(&fixture, "node-3", 8).await;
    assert_eq!((rest.len(), count(&rest, "scan", "one-60")), (6, 6), "a quarter is left to others");
    pile_up(&fixture, 1, "sync", "late", 0, 1).await;
    assert_eq!(count(&lease(&fixture, "node-3", 2).await, "sync", "late-0"), 1, "who comes late has a place");
}

#[tokio::test]
async fn who_has_waited_for_long_is_not_overtaken_by_what_is_more_urgent() {
    let fixture = Fixture::start().await;
    pile_up(&fixture, 1, "warm", "", 1, 2).await;
    pile_up(&fixture, 1, "warm", "", 0, 0).await;
    pile_up(&fixture, 1, "warm", "", 3, 2).await;
    let mut order = Vec::new();
    for node in ["node-1", "node-2", "node-3"] {
        order.push(tag_of(&lease(&fixture, node, 1).await.remove(0)));
    }
    assert_eq!(order, ["-3", "-0", "-1"], "the oldest, the urgent one, and what waits for less than that is worth");
}

#[tokio::test]
async fn a_cancelled_operation_ends_what_waits_and_stops_what_runs() {
    let fixture = Fixture::start().await;
    let operation = warm(&fixture, &["a", "b", "c", "d"]).await;
    let jobs = lease(&fixture, "node-1", 3).await;
    say(&fixture, "node-1", &jobs[0], result(pb::ItemOutcome::Created)).await;
    let cancel = pb::CancelOperationRequest { name: operation.name.clone() };
    let cancelled = fixture.operations().cancel_operation(cancel.clone()).await.unwrap().into_inner();
    assert_eq!((cancelled.state(), cancelled.ended_count), (pb::OperationState::Cancelling, 2));
    let delete = pb::DeleteOperationRequest { name: operation.name.clone() };
    let refused = fixture.operations().delete_operation(delete.clone()).await.unwrap_err();
    assert_eq!(kind(&refused), (Code::FailedPrecondition, "OPERATION_RUNS".to_owned()));

    assert!(say(&fixture, "node-1", &jobs[1], progress(1)).await, "the node hears of it");
    say(&fixture, "node-1", &jobs[1], Report::GivenBack(node::JobGivenBack {})).await;
    // The other job's node is lost. No other node leases it, and it still ends.
    fixture.world.sql("UPDATE jobs SET lease_until = now() - interval '1 second' WHERE end_time IS NULL").await;
    assert!(lease(&fixture, "node-2", 1).await.is_empty());
    wait_until(LIMIT, "it has ended", async || get(&fixture, &operation.name).await.done).await;
    let ended = get(&fixture, &operation.name).await;
    assert_eq!((ended.state(), ended.failed_count), (pb::OperationState::Cancelled, 0));
    let outcomes: Vec<_> = items(&fixture, &operation.name).await.iter().map(pb::OperationItem::outcome).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == pb::ItemOutcome::Cancelled).count(), 3);
    assert_eq!(
        fixture.operations().cancel_operation(cancel).await.unwrap().into_inner(),
        ended,
        "once more is nothing"
    );
    assert_eq!(fixture.operations().delete_operation(delete).await.unwrap().into_inner(), ended);
    let gone = pb::GetOperationRequest { name: operation.name };
    assert_eq!(fixture.operations().get_operation(gone).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_told_and_what_is_repeated_is_begun_once() {
    let fixture = Fixture::start().await;
    let request = pb::WarmImagesRequest {
        images: vec!["demo/app:v1".into(), image("v1")],
        platforms: vec!["Linux".into()],
        request_id: "x".into(),
    };
    let refused = fixture.images().warm_images(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id", "platforms[0]", "images[0]"]);
    let refused = fixture.images().warm_images(pb::WarmImagesRequest::default()).await.unwrap_err();
    assert_eq!(fields(&refused), ["images"]);
    let unknown = pb::SyncRepositoryRequest { name: "repositories/demo/none".into(), ..Default::default() };
    let refused = fixture.repositories().sync_repository(unknown).await.unwrap_err();
    assert_eq!(kind(&refused).0, Code::NotFound);
    details(&refused);
    let name = "operations/0193a7c2-d4f0-7b11-8e5d-3a6b9c0d1e2f".to_owned();
    let refused = fixture.operations().watch_operation(pb::WatchOperationRequest { name }).await.unwrap_err();
    assert_eq!(kind(&refused).0, Code::NotFound);

    let request_id = "0193a7c2-d4f0-7b11-8e5d-3a6b9c0d1e2f".to_owned();
    let request = pb::WarmImagesRequest { images: vec![image("v1")], request_id, ..Default::default() };
    let first = fixture.images().warm_images(request.clone()).await.unwrap().into_inner();
    assert_eq!(fixture.images().warm_images(request).await.unwrap().into_inner(), first);
    let second = warm(&fixture, &["v2"]).await;
    let one = pb::ListOperationsRequest { page_size: 1, ..Default::default() };
    let listed = fixture.operations().list_operations(one).await.unwrap().into_inner();
    assert_eq!(listed.operations, [second], "the youngest first");
    let rest = pb::ListOperationsRequest { page_token: listed.next_page_token, ..Default::default() };
    assert_eq!(fixture.operations().list_operations(rest).await.unwrap().into_inner().operations, [first]);
}

#[tokio::test]
async fn a_repository_says_for_itself_whether_its_tags_are_synced_and_its_record_has_it() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.world, "demo/app").await;
    let events = vec![repository.created()];
    let report = entrepot_proto::convert::event::report("node-1", &events);
    fixture.nodes("node-1").report_events(report).await.unwrap();
    let name = "repositories/demo/app".to_owned();
    let nothing = pb::SyncRepositoryRequest { name: name.clone(), ..Default::default() };
    let refused = fixture.repositories().sync_repository(nothing).await.unwrap_err();
    assert_eq!(kind(&refused), (Code::FailedPrecondition, "TAGS_UNSUITABLE".to_owned()));
    let bad =
        pb::SyncRepositoryRequest { name: name.clone(), tags: vec!["ok".into(), "-".into()], ..Default::default() };
    assert_eq!(fields(&fixture.repositories().sync_repository(bad).await.unwrap_err()), ["tags[1]"]);

    let update = |automatic_sync: i32, etag: &str| pb::UpdateRepositoryRequest {
        repository: Some(pb::Repository {
            name: name.clone(),
            automatic_sync,
            etag: etag.to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["automatic_sync".to_owned()] }),
    };
    let record = async || {
        let key = layout::repository(&repository.name);
        records::read::<RepositoryRecord>(&*fixture.world.store, &key).await.unwrap().unwrap().0
    };
    assert_eq!(
        fields(&fixture.repositories().update_repository(update(9, "")).await.unwrap_err()),
        ["repository.automatic_sync"]
    );
    let off = pb::AutomaticSync::Off.into();
    let updated = fixture.repositories().update_repository(update(off, "")).await.unwrap().into_inner();
    assert_eq!((updated.automatic_sync, record().await.automatic_sync), (off, Some(false)));
    let get = pb::GetRepositoryRequest { name: name.clone() };
    assert_eq!(fixture.repositories().get_repository(get).await.unwrap().into_inner(), updated);
    let stale = fixture.repositories().update_repository(update(0, "\"x\"")).await.unwrap_err();
    assert_eq!(kind(&stale), (Code::Aborted, "ETAG_STALE".to_owned()));
    let as_its_rule = fixture.repositories().update_repository(update(0, &updated.etag)).await.unwrap().into_inner();
    assert_eq!((as_its_rule.automatic_sync, record().await.automatic_sync), (0, None));
    let delete = pb::DeleteRepositoryRequest { name, etag: updated.etag };
    let stale = fixture.repositories().delete_repository(delete).await.unwrap_err();
    assert_eq!(kind(&stale).0, Code::Aborted, "what has changed since is not deleted");
}

#[tokio::test]
async fn calls_that_wait_for_the_store_hold_no_connection_to_the_database() {
    let mut world = World { pool_size: 1, ..World::new().await };
    let slow = Arc::new(DeafStore::new(Arc::clone(&world.store)));
    world.store = Arc::clone(&slow) as Store;
    let fixture = world.start().await;
    let repository = Repository::create(&fixture.world, "demo/app").await;
    let report = entrepot_proto::convert::event::report("node-1", &[repository.created()]);
    fixture.nodes("node-1").report_events(report).await.unwrap();
    let name = "repositories/demo/app".to_owned();
    let others_are_answered = async |stall: RwLockWriteGuard<'_, ()>| {
        wait_until(LIMIT, "the call waits for the store", async || slow.waiting.load(Ordering::Relaxed) > 0).await;
        fixture.rules().list_rules(pb::ListRulesRequest::default()).await.unwrap();
        drop(stall);
    };

    let off =
        pb::Repository { name: name.clone(), automatic_sync: pb::AutomaticSync::Off.into(), ..Default::default() };
    let stall = slow.gate.write().await;
    let mut client = fixture.repositories();
    let update = pb::UpdateRepositoryRequest { repository: Some(off), update_mask: None };
    let (updated, ()) = tokio::join!(client.update_repository(update), others_are_answered(stall));
    updated.unwrap();

    let stall = slow.gate.write().await;
    let delete = pb::DeleteRepositoryRequest { name, ..Default::default() };
    let (deleted, ()) = tokio::join!(client.delete_repository(delete), others_are_answered(stall));
    deleted.unwrap();
}

#[tokio::test]
async fn the_repair_of_the_index_holds_no_connection_while_it_waits_for_the_store() {
    let mut world = World { pool_size: 1, ..World::new().await };
    let slow = Arc::new(DeafStore::new(Arc::clone(&world.store)));
    Repository::create(&world, "demo/app").await;
    world.store = Arc::clone(&slow) as Store;
    let stall = slow.gate.write().await;
    let fixture = world.start().await;
    wait_until(LIMIT, "the repair waits for the store", async || slow.waiting.load(Ordering::Relaxed) > 0).await;
    fixture.rules().list_rules(pb::ListRulesRequest::default()).await.unwrap();
    drop(stall);
}

#[tokio::test]
async fn several_control_planes_schedule_what_is_due_one_after_the_other_for_each_upstream() {
    let world = World::new().await;
    let fixture = world.clone().start().await;
    fixture.create_upstream("quay").await;
    let rule = fixture.create_rule("demo", "quay").await;
    let number = async |sql: &str| -> f64 {
        let rows = world.sql(sql).await;
        let row = rows.iter().find_map(|row| {
            let tokio_postgres::SimpleQueryMessage::Row(row) = row else { return None };
            row.get(0).map(str::to_owned)
        });
        row.map_or(0.0, |text| text.parse().unwrap())
    };
    let begun = number("SELECT extract(epoch FROM now())").await;
    // 10,000 tags of 100 repositories, all pulled an hour ago and validated 22 h ago.
    let now = now().timestamp();
    world
        .sql(&format!(
            "INSERT INTO repositories (incarnation, name, rule_uid, create_time)
             SELECT md5(n::text)::uuid, 'demo/app' || n, '{uid}', now() FROM generate_series(1, 100) n;
             INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms,
                                 cache_time, last_pull_time)
             SELECT incarnation, 'sha256:{zeros}', '', 1, 1, '{{}}', now(), to_timestamp({now} - 3600)
               FROM repositories;
             INSERT INTO tags (incarnation, tag, digest, revision, validate_time)
             SELECT incarnation, 'v' || n, 'sha256:{zeros}', 1, to_timestamp({now} - 79200)
               FROM repositories, generate_series(1, 100) n;",
            uid = rule.uid,
            zeros = "0".repeat(64),
        ))
        .await;
    let others = [world.clone().start().await, world.clone().start().await];
    wait_until(LIMIT, "many are scheduled", async || number("SELECT count(*) FROM jobs").await >= 150.0).await;
    let closest = number(
        "SELECT min(gap) FROM (SELECT extract(epoch FROM run_time - lag(run_time) OVER (ORDER BY run_time)) AS gap
                                 FROM jobs) gaps",
    );
    let closest = closest.await;
    assert!(closest >= 0.09, "two are {closest} s apart");
    let last = number("SELECT extract(epoch FROM max(run_time) - now()) FROM jobs").await;
    assert!(last <= 11.0, "turns are given {last} s ahead");
    // Each is scheduled once, and nodes get none before its turn.
    let twice = number("SELECT count(*) - count(DISTINCT key) FROM jobs").await;
    assert_eq!(twice, 0.0);
    let taken = lease(&fixture, "node-1", 100).await.len() as f64;
    let passed = number("SELECT extract(epoch FROM now())").await - begun;
    assert!(taken <= 11.0 + 10.0 * passed, "{taken} in {passed} s");
    drop(others);
}

#[tokio::test]
async fn neither_tags_that_are_never_due_nor_a_rule_that_fails_keep_others_from_being_synced() {
    let fixture = Fixture::start().await;
    let world = &fixture.world;
    fixture.create_upstream("quay").await;
    let (broken, rule) = (fixture.create_rule("broken", "quay").await, fixture.create_rule("demo", "quay").await);
    let now = now().timestamp();
    // The tags of one repository never move. There are more of them than a pass reads, and all come before the due one.
    world
        .sql(&format!(
            "INSERT INTO repositories (incarnation, name, rule_uid, create_time, settings)
             VALUES (gen_random_uuid(), 'broken/app', '{broken}', now(), NULL),
                    (gen_random_uuid(), 'demo/frozen', '{uid}', now(), '{{\"tag_mutability\": \"IMMUTABLE\"}}'),
                    (gen_random_uuid(), 'demo/app', '{uid}', now(), NULL);
             INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms,
                                 cache_time, last_pull_time)
             SELECT incarnation, 'sha256:{zeros}', '', 1, 1, '{{}}', now(), to_timestamp({now} - 3600)
               FROM repositories;
             INSERT INTO tags (incarnation, tag, digest, revision, validate_time)
             SELECT incarnation, tag, 'sha256:{zeros}', 1, to_timestamp({now} - seconds)
               FROM repositories JOIN (SELECT 'broken/app' AS name, '-no-tag' AS tag, 79200 AS seconds
                                       UNION ALL SELECT 'demo/app', 'v1', 79200
                                       UNION ALL SELECT 'demo/frozen', 'v' || n, 82800 FROM generate_series(1, 20500) n)
                    AS given USING (name);
             ANALYZE tags",
            broken = broken.uid,
            uid = rule.uid,
            zeros = "0".repeat(64),
        ))
        .await;
    wait_until(LIMIT, "the tag that is due gets a turn", async || {
        let rows = world.sql("SELECT subject FROM jobs").await;
        rows.iter().any(|row| {
            let tokio_postgres::SimpleQueryMessage::Row(row) = row else { return false };
            row.get(0) == Some(image("v1").as_str())
        })
    })
    .await;
}
