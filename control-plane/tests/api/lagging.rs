//! Answers say how many nodes did not say in time that they know of a change; one that fails midway is told of, too.

use std::time::{Duration, Instant};

use entrepot_domain::Digest;
use entrepot_proto::node::v1 as node;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::v1 as pb;
use entrepot_records::{ManifestLink, Word, layout};
use entrepot_test_support::wait_until;
use entrepot_trust::NodeRecord;
use tokio::sync::mpsc;

use crate::content::{Repository, report};
use crate::fills::Played;
use crate::fixture::{Fixture, LIMIT};
use crate::node::{put_record, record};

const HOLD: Duration = Duration::from_millis(800);

fn told(_: &str, kind: &Kind) -> Reply {
    match kind {
        Kind::Forget(forget) => {
            // The repository's own record always, since nodes may hold one of an earlier incarnation.
            let own = layout::repository(&"demo/app".parse().unwrap());
            assert!(forget.keys.iter().any(|key| key == own.as_str()), "{forget:?}");
            Reply::Told(node::ToldNodes { lagging_count: 2 })
        }
        Kind::ListFills(_) | Kind::Answer(_) | Kind::ListUpstreams(_) => Reply::Failed(node::FailedQuestion::default()),
    }
}

/// A repository with a tag, and how many nodes lag at each change of it: settings, the tag, the repository.
async fn changes(fixture: &Fixture) -> [i32; 3] {
    let app = Repository::create(&fixture.world, "demo/app").await;
    let content = Digest::sha256(b"a");
    app.write_link(&fixture.world, &content, &app.link()).await;
    app.write_tag(&fixture.world, "v1", Some(&content), 1).await;
    report(fixture, vec![app.created(), app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;

    let name = "repositories/demo/app".to_owned();
    let automatic_sync = pb::AutomaticSync::Off.into();
    let repository = Some(pb::Repository { name: name.clone(), automatic_sync, ..Default::default() });
    let update = pb::UpdateRepositoryRequest { repository, ..Default::default() };
    let updated = fixture.repositories().update_repository(update).await.unwrap().into_inner();
    let delete = pb::DeleteImageRequest { name: format!("{name}/tags/v1") };
    let image = fixture.images().delete_image(delete).await.unwrap().into_inner();
    let get = pb::GetRepositoryRequest { name: name.clone() };
    let read = fixture.repositories().get_repository(get).await.unwrap().into_inner();
    assert_eq!(read.lagging_node_count, 0, "it is said of changes alone");
    let delete = pb::DeleteRepositoryRequest { name, ..Default::default() };
    let deleted = fixture.repositories().delete_repository(delete).await.unwrap().into_inner();
    [updated.lagging_node_count, image.lagging_node_count, deleted.lagging_node_count]
}

#[tokio::test]
async fn a_change_says_how_many_nodes_did_not_answer_the_one_that_told_them() {
    let fixture = Fixture::start().await;
    let _node = Played::replying(&fixture, "n1", told).await;
    let is_told = async || changes(&fixture).await == [2, 2, 2];
    wait_until(LIMIT, "the node is asked", is_told).await;
}

#[tokio::test]
async fn where_no_node_can_be_told_a_change_waits_as_long_as_they_hold_and_counts_them() {
    let fixture = Fixture::start().await;
    for (id, hold_ms) in [("n1", 300), ("n2", 800), ("n3", 0)] {
        put_record(&fixture.world, &NodeRecord { hold_ms, ..record(&fixture.world, id, None) }).await;
    }
    let begun = Instant::now();
    assert_eq!(changes(&fixture).await, [2, 2, 2], "of three, two hold");
    let took = begun.elapsed();
    assert!((3 * HOLD..3 * HOLD + Duration::from_secs(5)).contains(&took), "three changes took {took:?}");
}

#[tokio::test]
async fn a_deletion_that_fails_midway_has_nodes_forget_what_it_may_have_deleted() {
    let fixture = Fixture::start().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let _node = Played::replying(&fixture, "n1", move |_, kind| {
        if let Kind::Forget(forget) = kind {
            tell.send(forget.clone()).unwrap();
        }
        Reply::Told(node::ToldNodes { lagging_count: 0 })
    })
    .await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    let content = Digest::sha256(b"a");
    // Its tags can be deleted. What the state of the image means only a later release knows.
    let link = ManifestLink { state: Word::Unknown("MOVED_AWAY".into()), ..app.link() };
    app.write_link(&fixture.world, &content, &link).await;
    let mut delete_it = async || {
        app.write_tag(&fixture.world, "v1", Some(&content), 1).await;
        let delete = pb::DeleteImageRequest { name: format!("repositories/demo/app/images/{content}") };
        fixture.images().delete_image(delete).await.unwrap_err();
        assert_eq!(app.read_tag(&fixture.world, "v1").await.unwrap().digest, None);
        told.try_recv().ok()
    };
    let prefix = layout::incarnation_prefix(&app.name, app.incarnation);
    let mut heard = None;
    wait_until(LIMIT, "the node is told", async || {
        heard = delete_it().await;
        heard.is_some()
    })
    .await;
    assert_eq!(heard, Some(node::ForgetRecords { keys: vec![], prefix: prefix.as_str().to_owned() }));
}
