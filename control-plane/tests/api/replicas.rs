//! Two control planes at once, on one database and one store.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use entrepot_control_plane::{FirstKey, StartError, reindex};
use entrepot_domain::Digest;
use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{self as records, SnapshotHead, State};
use entrepot_test_support::wait_until;
use entrepot_trust::{SnapshotSigner, SnapshotTrust};
use prost::Message as _;
use tonic::Code;
use uuid::{NoContext, Timestamp, Uuid};

use crate::content::{Repository, list_images, list_repositories, report};
use crate::fixture::{ADMIN, Fixture, LIMIT, World, create_rule, kind, now};
use crate::node::{Node, put_record, put_record_at, record};
use crate::snapshot::published;

/// Two control planes that are ready.
async fn two() -> (Fixture, Fixture) {
    let world = World::new().await;
    tokio::join!(world.clone().start(), world.start())
}

fn lagging<T>(answer: &tonic::Response<T>) -> Option<&str> {
    answer.metadata().get("entrepot-lagging-nodes").map(|names| names.to_str().unwrap())
}

fn quay(id: &str) -> pb::CreateUpstreamRequest {
    let upstream = pb::Upstream { kind: pb::UpstreamKind::Quay.into(), ..Default::default() };
    pb::CreateUpstreamRequest { upstream_id: id.into(), upstream: Some(upstream), ..Default::default() }
}

#[tokio::test]
async fn nodes_of_one_control_plane_follow_a_change_made_on_the_other() {
    let (a, b) = two().await;
    let mut watcher = Node::watch(&b, "n1").await;
    let (_, first) = watcher.next().await;
    watcher.runs(&first).await;
    put_record(&b.world, &record(&b.world, "n1", first.version.as_ref())).await;

    let change = a.upstreams();
    let create = async { change.clone().create_upstream(quay("quay")).await.unwrap() };
    let follow = async {
        let (_, snapshot) = watcher.next().await;
        assert_eq!(snapshot.upstreams.len(), 1);
        watcher.runs(&snapshot).await;
        put_record(&b.world, &record(&b.world, "n1", snapshot.version.as_ref())).await;
    };
    let (answer, ()) = tokio::join!(create, follow);
    // A node would be listed if the other control plane only noticed by itself, which it does every 5 s.
    assert_eq!(lagging(&answer), None);
}

#[tokio::test]
async fn a_node_of_another_control_plane_is_named_while_it_lags() {
    let (a, b) = two().await;
    let world = &a.world;
    let (head, _) = published(world).await;
    let old = node::SnapshotVersion { epoch: head.epoch, revision: head.revision };
    put_record(world, &record(world, "slow", Some(&old))).await;
    let dead = record(world, "dead", Some(&old));
    put_record_at(world, &dead, now() - chrono::TimeDelta::seconds(31)).await;
    // A record that is unsigned, or copied from another key, is ignored.
    let forged = entrepot_trust::ClusterKey::generate().sign_node_record(&record(world, "forged", Some(&old)));
    world.store.put(&layout::node(&"forged".parse().unwrap()), forged.into()).await.unwrap();
    let copied = world.cluster_key().sign_node_record(&record(world, "slow", Some(&old)));
    world.store.put(&layout::node(&"copied".parse().unwrap()), copied.into()).await.unwrap();

    let answer = a.upstreams().create_upstream(quay("one")).await.unwrap();
    assert_eq!(lagging(&answer), Some("slow"));

    // What a node reports over the stream counts, however old its record is.
    let mut here = Node::watch(&b, "slow").await;
    let (_, snapshot) = here.next().await;
    let ahead = snapshot.version.map(|version| node::SnapshotVersion { revision: version.revision + 5, ..version });
    here.runs(&node::Snapshot { version: ahead, ..Default::default() }).await;
    let answer = b.upstreams().create_upstream(quay("two")).await.unwrap();
    assert_eq!(lagging(&answer), None);
}

#[tokio::test]
async fn a_control_plane_hears_of_changes_again_after_its_connection_was_cut() {
    let (a, b) = two().await;
    let mut watcher = Node::watch(&b, "n1").await;
    watcher.next().await;
    let listeners = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let count = async || {
        let rows = a.world.sql(listeners).await;
        rows.iter().filter(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(_))).count()
    };
    wait_until(LIMIT, "both listen", async || count().await == 2).await;
    a.world.sql(&format!("SELECT pg_terminate_backend(pid) FROM ({listeners}) AS listening")).await;
    wait_until(LIMIT, "both listen again", async || count().await == 2).await;

    let change = a.upstreams();
    let create = async { change.clone().create_upstream(quay("quay")).await.unwrap() };
    let follow = async {
        let (_, snapshot) = watcher.next().await;
        assert_eq!(snapshot.upstreams.len(), 1);
        put_record(&b.world, &record(&b.world, "n1", snapshot.version.as_ref())).await;
    };
    put_record(&b.world, &record(&b.world, "n1", None)).await;
    let (answer, ()) = tokio::join!(create, follow);
    assert_eq!(lagging(&answer), None);
}

#[tokio::test]
async fn an_event_that_both_are_told_has_one_effect() {
    let (a, b) = two().await;
    let app = Repository::create(&a.world, "demo/app").await;
    let mut events = vec![app.created(), app.cached(b"content", 0)];
    events.extend((1..40).map(|revision| app.moved("v1", b"content", revision)));
    let mut reversed = events.clone();
    reversed.reverse();
    tokio::join!(report(&a, events.clone()), report(&b, reversed));

    let applied = |outcome: &str| {
        let labels = [&*format!(r#"outcome="{outcome}""#)];
        a.metric("entrepot_event_count_total", &labels) + b.metric("entrepot_event_count_total", &labels)
    };
    let count = events.len() as f64;
    assert_eq!((applied("applied"), applied("repeated"), applied("ignored")), (count, count, 0.0));
    assert_eq!(list_repositories(&b, "").await, ["demo/app"]);
    let images = list_images(&a, "demo/app", r#"tag = "v1""#).await;
    assert_eq!(images.len(), 1);
}

#[tokio::test]
async fn a_rule_that_both_are_asked_for_is_created_once() {
    let (a, b) = two().await;
    a.create_upstream("quay").await;
    let (mut one, mut two) = (a.rules(), b.rules());
    let request = create_rule("hub", "hub", "quay");
    let (first, second) = tokio::join!(one.create_rule(request.clone()), two.create_rule(request));
    let (created, refused) = match (first, second) {
        (Ok(created), Err(refused)) | (Err(refused), Ok(created)) => (created.into_inner(), refused),
        other => panic!("{other:?}"),
    };
    assert_eq!(created.name, "rules/hub");
    assert_eq!(kind(&refused), (Code::AlreadyExists, "ALREADY_EXISTS".into()));

    // Two rules with the same prefix, and one rule created twice by the same request.
    let (first, second) = tokio::join!(
        one.create_rule(create_rule("x", "prefix", "quay")),
        two.create_rule(create_rule("y", "prefix", "quay"))
    );
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|ok| **ok).count(), 1);
    let request_id = Uuid::new_v4().to_string();
    let request = pb::CreateRuleRequest { request_id, ..create_rule("once", "once", "quay") };
    let (first, second) = tokio::join!(one.create_rule(request.clone()), two.create_rule(request));
    assert_eq!(first.unwrap().into_inner(), second.unwrap().into_inner());
}

#[tokio::test]
async fn what_both_publish_moves_forward_only() {
    let (a, b) = two().await;
    a.create_upstream("quay").await;
    let mut watchers = [Node::watch(&a, "na").await, Node::watch(&b, "nb").await];
    let create = async |fixture: &Fixture, ids: &[&str]| {
        for id in ids {
            fixture.rules().create_rule(create_rule(id, id, "quay")).await.unwrap();
        }
    };
    let follow = async |watcher: &mut Node| {
        let mut before = 0;
        loop {
            let (head, snapshot) = watcher.next().await;
            assert!(head.revision > before, "{} after {before}", head.revision);
            before = head.revision;
            watcher.runs(&snapshot).await;
            if snapshot.rules.len() == 12 {
                return head;
            }
        }
    };
    let [first, second] = &mut watchers;
    let ((), (), one, two) = tokio::join!(
        create(&a, &["a1", "a2", "a3", "a4", "a5", "a6"]),
        create(&b, &["b1", "b2", "b3", "b4", "b5", "b6"]),
        follow(first),
        follow(second)
    );
    let (head, _) = published(&a.world).await;
    assert_eq!((&one, &two), (&head, &head));
}

#[tokio::test]
async fn a_repository_that_both_delete_is_deleted_while_events_come() {
    let (a, b) = two().await;
    let app = Repository::create(&a.world, "demo/app").await;
    report(&a, vec![app.created(), app.cached(b"one", 0)]).await;
    let request = pb::DeleteRepositoryRequest { name: "repositories/demo/app".into(), ..Default::default() };
    let (mut one, mut two) = (a.repositories(), b.repositories());
    let (first, second, ()) = tokio::join!(
        one.delete_repository(request.clone()),
        two.delete_repository(request.clone()),
        report(&b, vec![app.cached(b"two", 1), app.moved("v1", b"two", 1)])
    );
    assert!(first.is_ok() || second.is_ok());
    for answer in [first, second] {
        let gone = answer.map_or_else(|error| error.code() == Code::NotFound, |_| true);
        assert!(gone, "it is deleted, or it is not there any more");
    }
    report(&a, vec![app.cached(b"three", 2)]).await;
    assert!(list_repositories(&a, "").await.is_empty() && list_repositories(&b, "").await.is_empty());
}

#[tokio::test]
async fn runs_over_the_index_do_not_get_in_each_others_way() {
    let world = World::new().await;
    for name in ["demo/a", "demo/b", "demo/c"] {
        let repository = Repository::create(&world, name).await;
        for content in [b"one", b"two"] {
            let digest = Digest::sha256(content);
            repository.write_link(&world, &digest, &repository.link()).await;
        }
        repository.write_tag(&world, "v1", Some(&Digest::sha256(b"one")), 1).await;
    }
    Repository::create(&world, "demo/gone").await.write(&world, State::Deleted).await;
    // Both control planes begin with such a run, too.
    let (a, b) = tokio::join!(world.clone().start(), world.clone().start());
    let (one, two) = tokio::join!(reindex(world.config(), &*world.store), reindex(world.config(), &*world.store));
    for index in [one.unwrap(), two.unwrap()] {
        assert_eq!((index.repositories.found, index.images.found, index.tags.found), (3, 6, 3), "{index:?}");
        assert_eq!((index.repositories.removed, index.images.removed, index.tags.removed), (0, 0, 0), "{index:?}");
    }
    for fixture in [&a, &b] {
        assert_eq!(list_repositories(fixture, "").await, ["demo/a", "demo/b", "demo/c"]);
        assert_eq!(list_images(fixture, "demo/b", r#"tag = "v1""#).await.len(), 1);
    }
}

#[tokio::test]
async fn events_that_a_node_left_behind_are_taken_in_once_by_both() {
    let world = World::new().await;
    let app = Repository::create(&world, "demo/app").await;
    let node: entrepot_domain::ResourceId = "dead-node".parse().unwrap();
    let seconds = u64::try_from(now().timestamp() - 90).unwrap();
    for content in 0..20_u8 {
        let key = layout::event(&node, Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)));
        let events = vec![app.created(), app.cached(&[content], 0)];
        let batch = entrepot_proto::convert::event::report(node.as_str(), &events);
        world.store.put(&key, batch.encode_to_vec().into()).await.unwrap();
    }
    let (a, b) = tokio::join!(world.clone().start(), world.clone().start());
    wait_until(LIMIT, "all are taken in", async || {
        world.store.list(&layout::events_prefix(&node), None, 1).await.unwrap().is_empty()
    })
    .await;
    assert_eq!(list_images(&a, "demo/app", "").await.len(), 20);
    let applied = |fixture: &Fixture| fixture.metric("entrepot_event_count_total", &[r#"outcome="applied""#]);
    wait_until(LIMIT, "each is counted once", async || applied(&a) + applied(&b) == 40.0).await;
}

#[tokio::test]
async fn of_two_that_start_at_once_one_makes_the_first_key() {
    let world = World::new().await;
    let files = ["a", "b"].map(|name| world.folder.path().join(format!("first-key-{name}")));
    let start = async |file: &std::path::Path| {
        let file = FirstKey::File(file.to_owned());
        let fixture = world.clone().launch_with(None, |deps| deps.first_key = file).await;
        fixture.plane.ready(LIMIT).await.unwrap();
        fixture
    };
    // In the first round, whichever migrates first wins; in the others, both look for an administrator at the same
    // time.
    for _ in 0..6 {
        let (a, b) = tokio::join!(start(&files[0]), start(&files[1]));
        let written: Vec<_> = files.iter().filter(|file| file.exists()).collect();
        let [written] = written[..] else { panic!("{written:?}") };
        assert_eq!(std::fs::metadata(written).unwrap().permissions().mode() & 0o777, 0o600);
        let key = std::fs::read_to_string(written).unwrap();
        for fixture in [&a, &b] {
            fixture.login_tokens_as(key.trim_end()).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
        }
        std::fs::remove_file(written).unwrap();
        tokio::join!(a.stop(), b.stop());
        world.sql("DELETE FROM access_keys; DELETE FROM principals").await;
    }
}

#[tokio::test]
async fn a_start_that_needs_a_first_key_and_has_no_place_for_it_says_what_to_do() {
    let fixture = World::new().await.launch_with(None, |deps| deps.first_key = FirstKey::None).await;
    let Err(StartError::Refused { why }) = fixture.plane.ready(LIMIT).await else { panic!("started") };
    for part in ["ENTREPOT_BOOTSTRAP_KEY=", "ENTREPOT_BOOTSTRAP_KEY_FILE", "api.first_key_file"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(why.lines().count(), 1);
    let nowhere = std::path::PathBuf::from("/nowhere/first-key");
    let fixture = fixture.stop().await.launch_with(None, |deps| deps.first_key = FirstKey::File(nowhere)).await;
    let Err(StartError::Refused { why }) = fixture.plane.ready(LIMIT).await else { panic!("started") };
    assert!(why.contains("/nowhere/first-key"), "{why}");
    // Once there is an administrator, no key is needed any more.
    let fixture = fixture.stop().await.launch(Some(ADMIN)).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    let fixture = fixture.stop().await.launch_with(None, |deps| deps.first_key = FirstKey::None).await;
    fixture.plane.ready(LIMIT).await.unwrap();
}

#[tokio::test]
async fn the_snapshot_seed_is_exchanged_while_both_serve() {
    let (a, b) = two().await;
    let world = a.world.clone();
    let (old, new) =
        (world.public_key(), SnapshotSigner::load_or_generate(world.folder.path().join("new.seed")).unwrap());
    let new = || (SnapshotSigner::load(world.folder.path().join("new.seed")).unwrap(), new.public_key());
    let key_of = |head: &SnapshotHead| head.key_id.clone();
    let mut node = Node::watch(&b, "n1").await;
    let (first, _) = node.next().await;
    assert_eq!(key_of(&first), old.id());

    // A control plane with another seed must not start, unless it is told that this is intended.
    a.stop().await;
    let (signer, key) = new();
    let change = |deps: &mut entrepot_control_plane::Deps| {
        deps.snapshot_signer = signer;
        deps.snapshot_trust = SnapshotTrust::new(key, None);
    };
    let stranger = world.clone().launch_with(Some(ADMIN), change).await;
    let Err(StartError::Refused { why }) = stranger.plane.ready(LIMIT).await else { panic!("started") };
    assert!(why.contains("keys.snapshot_public_key_files"), "{why}");
    assert_eq!(published_key(&world).await, (first.revision, old.id()), "it has published nothing");
    stranger.stop().await;

    // Nodes know both keys by now; the first control plane starts with the new seed, and knows the old key.
    let (signer, key) = new();
    let change = |deps: &mut entrepot_control_plane::Deps| {
        deps.snapshot_signer = signer;
        deps.snapshot_trust = SnapshotTrust::new(key, Some(old.clone()));
    };
    let a = world.clone().launch_with(Some(ADMIN), change).await;
    a.plane.ready(LIMIT).await.unwrap();
    assert_eq!(published_key(&world).await, (first.revision + 1, new().1.id()), "what is published is signed anew");
    a.create_upstream("quay").await;
    assert_eq!(published_key(&world).await.1, new().1.id());
}

async fn published_key(world: &World) -> (i64, String) {
    let key = layout::snapshot_head();
    let (head, _) = records::read::<SnapshotHead>(&*world.store, &key).await.unwrap().unwrap();
    (head.revision, head.key_id)
}

#[tokio::test]
async fn a_bootstrap_key_is_made_true_once_by_both() {
    let (a, b) = two().await;
    let (_, snapshot) = published(&a.world).await;
    assert_eq!(snapshot.principals.len(), 1);
    let keys: BTreeSet<_> = snapshot.principals[0].access_keys.iter().map(|key| key.key_id.clone()).collect();
    assert_eq!(keys, BTreeSet::from(["admin".to_owned()]));
    for fixture in [&a, &b] {
        fixture.login_tokens().get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
    }
}
