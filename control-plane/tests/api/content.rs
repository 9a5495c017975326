//! Repositories and images: what events report, what is listed, what is deleted.

use std::time::Duration;

use entrepot_domain::{Digest, MediaType, RepositoryName, Tag};
use entrepot_proto::convert::{event, timestamp};
use entrepot_proto::node::v1 as node;
use entrepot_proto::node::v1::event::Kind;
use entrepot_proto::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{self as records, BlobLink, ManifestLink, Named, RepositoryRecord, State, TagRecord};
use prost::Message as _;
use tokio_postgres::SimpleQueryMessage;
use tonic::Code;
use uuid::Uuid;

use crate::fixture::{Fixture, World, details, fields, kind, now};

/// A repository of these tests, with what a node would write and report about it.
pub(crate) struct Repository {
    pub(crate) name: RepositoryName,
    pub(crate) incarnation: Uuid,
}

impl Repository {
    /// Creates one with a record in the store.
    pub(crate) async fn create(world: &World, name: &str) -> Self {
        let repository = Self { name: name.parse().unwrap(), incarnation: Uuid::now_v7() };
        repository.write(world, State::Live).await;
        repository
    }

    pub(crate) async fn write(&self, world: &World, state: State) {
        let record = RepositoryRecord { state: state.into(), ..RepositoryRecord::new(self.incarnation, now()) };
        world.store.put(&layout::repository(&self.name), records::encode(&record)).await.unwrap();
    }

    pub(crate) fn link(&self) -> ManifestLink {
        let object = layout::content(Uuid::now_v7());
        ManifestLink {
            config: Some(Named::new(Digest::sha256(b"config"), 6)),
            content_size_bytes: 4000,
            revision: revision(0),
            ..ManifestLink::new(object, MediaType::OciManifest, 500, now())
        }
    }

    pub(crate) async fn write_link(&self, world: &World, digest: &Digest, link: &ManifestLink) {
        let key = layout::manifest_link(&self.name, self.incarnation, digest);
        world.store.put(&key, records::encode(link)).await.unwrap();
    }

    pub(crate) async fn write_config(&self, world: &World, platform: &str) {
        let link = BlobLink::new(layout::content(Uuid::now_v7()), 6, now());
        let link = BlobLink { platform: Some(platform.into()), ..link };
        let key = layout::blob_link(&self.name, self.incarnation, &Digest::sha256(b"config"));
        world.store.put(&key, records::encode(&link)).await.unwrap();
    }

    pub(crate) async fn write_tag(&self, world: &World, tag: &str, digest: Option<&Digest>, revision: i64) {
        let record = TagRecord { validate_time: Some(now()), ..TagRecord::new(digest.cloned(), revision) };
        let key = layout::tag(&self.name, self.incarnation, &tag.parse().unwrap());
        world.store.put(&key, records::encode(&record)).await.unwrap();
    }

    pub(crate) async fn read_tag(&self, world: &World, tag: &str) -> Option<TagRecord> {
        let tag: Tag = tag.parse().unwrap();
        let key = layout::tag(&self.name, self.incarnation, &tag);
        records::read::<TagRecord>(&*world.store, &key).await.unwrap().map(|(record, _)| record)
    }

    pub(crate) fn event(&self, kind: Kind) -> node::Event {
        node::Event {
            event_id: Uuid::now_v7().to_string(),
            event_time: Some(timestamp(now())),
            repository: self.name.to_string(),
            incarnation: self.incarnation.to_string(),
            kind: Some(kind),
            minimum_reader: 0,
        }
    }

    pub(crate) fn created(&self) -> node::Event {
        let create_time = Some(timestamp(now()));
        self.event(Kind::RepositoryCreated(node::RepositoryCreated {
            rule_uid: String::new(),
            create_time,
            settings: None,
        }))
    }

    pub(crate) fn cached(&self, content: &[u8], after_seconds: i64) -> node::Event {
        self.event(Kind::ImageCached(self.image(content, after_seconds)))
    }

    fn image(&self, content: &[u8], after_seconds: i64) -> node::ImageCached {
        node::ImageCached {
            digest: digest(content),
            media_type: MediaType::OciManifest.to_string(),
            manifest_size_bytes: 500,
            content_size_bytes: 4000,
            platforms: vec![],
            children: vec![],
            cache_time: Some(timestamp(now() + Duration::from_secs(after_seconds.unsigned_abs()))),
            config_digest: digest(b"config"),
            revision: revision(after_seconds),
        }
    }

    pub(crate) fn moved(&self, tag: &str, content: &[u8], revision: i64) -> node::Event {
        self.event(Kind::TagMoved(node::TagMoved {
            tag: tag.into(),
            digest: digest(content),
            revision,
            validate_time: Some(timestamp(now())),
        }))
    }

    /// The event for a tag that is gone at the upstream, under a rule that drops such tags.
    fn dropped(&self, tag: &str, revision: i64) -> node::Event {
        let validate_time = Some(timestamp(now()));
        self.event(Kind::TagMoved(node::TagMoved { tag: tag.into(), digest: String::new(), revision, validate_time }))
    }

    fn pulled(&self, content: &[u8], after_seconds: u64) -> node::Event {
        let pull_time = Some(timestamp(now() + Duration::from_secs(after_seconds)));
        self.event(Kind::Pulled(node::Pulled { digest: digest(content), pull_time }))
    }
}

/// The revision of a record that was first written at that time.
fn revision(after_seconds: i64) -> i64 {
    now().timestamp_micros() + after_seconds * 1_000_000
}

fn digest(content: &[u8]) -> String {
    Digest::sha256(content).to_string()
}

pub(crate) async fn report(fixture: &Fixture, events: Vec<node::Event>) {
    fixture.nodes("n1").report_events(event::report("n1", &events)).await.unwrap();
}

pub(crate) async fn list_images(fixture: &Fixture, repository: &str, filter: &str) -> Vec<pb::Image> {
    let parent = format!("repositories/{repository}");
    let request = pb::ListImagesRequest { parent, filter: filter.into(), ..Default::default() };
    fixture.images().list_images(request).await.unwrap().into_inner().images
}

pub(crate) async fn list_repositories(fixture: &Fixture, filter: &str) -> Vec<String> {
    let request = pb::ListRepositoriesRequest { filter: filter.into(), ..Default::default() };
    let answer = fixture.repositories().list_repositories(request).await.unwrap().into_inner();
    answer.repositories.into_iter().map(|repository| repository.name.replace("repositories/", "")).collect()
}

fn tags(image: &pb::Image) -> Vec<&str> {
    image.tags.iter().map(|tag| tag.tag.as_str()).collect()
}

#[tokio::test]
async fn events_fill_the_index_once_however_often_they_come() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    let config = node::ConfigCached { digest: digest(b"config"), platform: "linux/arm64/v8".into() };
    let events = vec![
        app.created(),
        // The configuration may be reported before its image.
        app.event(Kind::ConfigCached(config)),
        app.cached(b"a", 0),
        app.moved("v1", b"a", 1),
        app.moved("latest", b"a", 1),
        app.pulled(b"a", 7),
        app.pulled(b"a", 5),
    ];
    report(&fixture, events.clone()).await;
    let images = list_images(&fixture, "demo/app", "").await;
    assert_eq!((images.len(), tags(&images[0])), (1, vec!["latest", "v1"]));
    assert_eq!(images[0].platforms, ["linux/arm64/v8"]);
    assert_eq!((images[0].manifest_size_bytes, images[0].content_size_bytes), (500, 4000));
    assert_eq!(images[0].last_pull_time, Some(timestamp(now() + Duration::from_secs(7))));
    assert_eq!(images[0].last_validate_time, Some(timestamp(now())));

    report(&fixture, events).await;
    assert_eq!(list_images(&fixture, "demo/app", "").await, images);
    let get = pb::GetRepositoryRequest { name: "repositories/demo/app".into() };
    let repository = fixture.repositories().get_repository(get).await.unwrap().into_inner();
    assert_eq!((repository.image_count, repository.uid), (1, app.incarnation.to_string()));
    assert_eq!(repository.last_pull_time, images[0].last_pull_time);
    let get = pb::GetImageRequest { name: "repositories/demo/app/tags/v1".into() };
    assert_eq!(fixture.images().get_image(get).await.unwrap().into_inner(), images[0]);
}

#[tokio::test]
async fn tags_only_go_forward() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![app.cached(b"old", 0), app.cached(b"new", 1), app.moved("v1", b"new", 2)]).await;
    report(&fixture, vec![app.moved("v1", b"old", 1)]).await;
    let images = list_images(&fixture, "demo/app", "tagged = true").await;
    assert_eq!((images.len(), images[0].digest.clone()), (1, digest(b"new")));
    let untagged = list_images(&fixture, "demo/app", "tagged = false").await;
    assert_eq!((untagged.len(), untagged[0].digest.clone()), (1, digest(b"old")));
    assert_eq!(list_images(&fixture, "demo/app", r#"tag = "v1""#).await, images);
    assert!(list_images(&fixture, "demo/app", r#"tag = "v2""#).await.is_empty());
}

#[tokio::test]
async fn a_tag_that_was_dropped_leaves_its_image_and_may_come_again() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;
    report(&fixture, vec![app.dropped("v1", 2)]).await;
    assert!(tags(&list_images(&fixture, "demo/app", "").await[0]).is_empty());
    // A late event does not bring it back; a later revision does.
    report(&fixture, vec![app.moved("v1", b"a", 1)]).await;
    assert!(tags(&list_images(&fixture, "demo/app", "").await[0]).is_empty());
    report(&fixture, vec![app.moved("v1", b"a", 3)]).await;
    assert_eq!(tags(&list_images(&fixture, "demo/app", "").await[0]), ["v1"]);
}

#[tokio::test]
async fn events_of_dead_incarnations_are_ignored() {
    let fixture = Fixture::start().await;
    let old = Repository::create(&fixture.world, "demo/app").await;
    let new = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![old.created(), old.cached(b"a", 0), new.created(), new.cached(b"b", 0)]).await;
    let images = list_images(&fixture, "demo/app", "").await;
    assert_eq!((images.len(), images[0].digest.clone()), (1, digest(b"b")));

    let delete = pb::DeleteRepositoryRequest { name: "repositories/demo/app".into(), ..Default::default() };
    let deleted = fixture.repositories().delete_repository(delete.clone()).await.unwrap().into_inner();
    assert_eq!(deleted.uid, new.incarnation.to_string());
    report(&fixture, vec![new.created(), new.cached(b"b", 9), new.moved("v1", b"b", 9)]).await;
    assert!(list_repositories(&fixture, "").await.is_empty());
    let error = fixture.repositories().delete_repository(delete).await.unwrap_err();
    assert_eq!(kind(&error), (Code::NotFound, "NOT_FOUND".into()));
}

#[tokio::test]
async fn an_event_may_come_before_its_record_and_a_deletion_before_its_event() {
    let fixture = Fixture::start().await;
    let early = Repository { name: "demo/early".parse().unwrap(), incarnation: Uuid::now_v7() };
    report(&fixture, vec![early.created(), early.cached(b"a", 0)]).await;
    assert_eq!(list_images(&fixture, "demo/early", "").await.len(), 1);

    // The index does not know this one, but the store has it, and the store decides.
    let silent = Repository::create(&fixture.world, "demo/silent").await;
    let delete = pb::DeleteRepositoryRequest { name: "repositories/demo/silent".into(), ..Default::default() };
    fixture.repositories().delete_repository(delete).await.unwrap();
    report(&fixture, vec![silent.created(), silent.cached(b"a", 0)]).await;
    assert_eq!(list_repositories(&fixture, "").await, ["demo/early"]);
}

#[tokio::test]
async fn malformed_events_are_refused_by_name_and_nothing_is_applied() {
    let fixture = Fixture::start().await;
    let app = Repository { name: "demo/app".parse().unwrap(), incarnation: Uuid::now_v7() };
    let mut bad = app.cached(b"a", 0);
    bad.incarnation = "x".into();
    let request = event::report("n1", &[app.created(), bad, app.moved("-", b"a", 1)]);
    let error = fixture.nodes("n1").report_events(request).await.unwrap_err();
    assert_eq!(fields(&error), ["events[1].incarnation", "events[2].tag_moved.tag"]);
    assert!(list_repositories(&fixture, "").await.is_empty());
    let request = event::report("n1", &vec![app.created(); 1001]);
    assert_eq!(fields(&fixture.nodes("n1").report_events(request).await.unwrap_err()), ["events"]);
}

#[tokio::test]
async fn an_event_of_a_later_release_is_not_taken_and_keeps_no_other_from_being_applied() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    // What a later release may write: a kind with a number that is not known here.
    let later = node::Event { kind: None, ..app.created() };
    let later = [later.encode_to_vec().as_slice(), &[0xfa, 0x3e, 2, b'h', b'i']].concat();
    let mut request = event::report("n1", &[app.created(), app.cached(b"a", 0)]);
    request.events.insert(1, later.into());
    for _ in 0..2 {
        let error = fixture.nodes("n1").report_events(request.clone()).await.unwrap_err();
        assert_eq!(kind(&error), (Code::Unimplemented, "EVENTS_UNKNOWN".into()));
        assert!(error.message().contains("events[1].kind"), "{}", error.message());
    }
    assert_eq!(list_repositories(&fixture, "").await, ["demo/app"]);
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 1);
}

#[tokio::test]
async fn an_index_is_one_image_with_the_size_of_what_is_cached_of_it() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    let index = node::ImageCached {
        media_type: MediaType::OciIndex.to_string(),
        content_size_bytes: 0,
        platforms: vec!["linux/amd64".into(), "linux/arm64".into()],
        children: vec![digest(b"amd64"), digest(b"arm64")],
        config_digest: String::new(),
        ..app.image(b"index", 0)
    };
    let events = vec![app.event(Kind::ImageCached(index)), app.moved("v1", b"index", 1), app.cached(b"amd64", 1)];
    report(&fixture, events).await;
    let images = list_images(&fixture, "demo/app", "").await;
    assert_eq!((images.len(), images[0].platforms.len()), (1, 2));
    assert_eq!(images[0].content_size_bytes, 4500);

    report(&fixture, vec![app.moved("only-amd64", b"amd64", 1)]).await;
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 2, "a child with a tag is an image too");
    let get = pb::GetImageRequest { name: format!("repositories/demo/app/images/{}", digest(b"amd64")) };
    assert_eq!(tags(fixture.images().get_image(get).await.unwrap().get_ref()), ["only-amd64"]);
}

#[tokio::test]
async fn images_are_listed_the_youngest_first_page_by_page() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    // Two of them have the same time.
    let all = [(b"a", 1), (b"b", 2), (b"c", 2), (b"d", 3), (b"e", 4)];
    report(&fixture, all.map(|(content, second)| app.cached(content, second)).to_vec()).await;
    let whole = list_images(&fixture, "demo/app", "").await;
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let parent = "repositories/demo/app".to_owned();
        let request = pb::ListImagesRequest { parent, page_size: 2, page_token, filter: String::new() };
        let page = fixture.images().list_images(request).await.unwrap().into_inner();
        seen.extend(page.images);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen.len(), &seen), (5, &whole));
    assert_eq!((seen[0].digest.clone(), seen[4].digest.clone()), (digest(b"e"), digest(b"a")));

    let request = pb::ListImagesRequest { parent: "repositories/no/such".into(), ..Default::default() };
    assert_eq!(fixture.images().list_images(request).await.unwrap_err().code(), Code::NotFound);
    let request =
        pb::ListImagesRequest { parent: "demo".into(), page_size: -1, filter: "x".into(), ..Default::default() };
    assert_eq!(fields(&fixture.images().list_images(request).await.unwrap_err()), ["parent", "page_size", "filter"]);
}

#[tokio::test]
async fn repositories_are_filtered() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let rule = fixture.create_rule("hub", "quay").await;
    let mut events = Vec::new();
    for name in ["hub/a", "hub/b", "huc/a", "gone/a"] {
        let repository = Repository { name: name.parse().unwrap(), incarnation: Uuid::now_v7() };
        let rule_uid = if name.starts_with("hub") { rule.uid.clone() } else { Uuid::new_v4().to_string() };
        let create_time = Some(timestamp(now()));
        events.push(repository.event(Kind::RepositoryCreated(node::RepositoryCreated {
            rule_uid,
            create_time,
            settings: None,
        })));
    }
    report(&fixture, events).await;
    assert_eq!(list_repositories(&fixture, "").await, ["gone/a", "hub/a", "hub/b", "huc/a"]);
    assert_eq!(list_repositories(&fixture, r#"prefix = "hub""#).await, ["hub/a", "hub/b"]);
    assert_eq!(list_repositories(&fixture, r#"rule = "rules/hub" AND prefix = "hub/b""#).await, ["hub/b"]);
    assert_eq!(list_repositories(&fixture, "cached = true").await.len(), 4);
    assert!(list_repositories(&fixture, "cached = false").await.is_empty());

    let request = pb::ListRepositoriesRequest { filter: "cached = maybe".into(), ..Default::default() };
    let error = fixture.repositories().list_repositories(request).await.unwrap_err();
    assert!(error.message().contains("at character 10"), "{}", error.message());
    let get = pb::GetRepositoryRequest { name: "repositories/hub/a".into() };
    assert_eq!(fixture.repositories().get_repository(get.clone()).await.unwrap().get_ref().rule, "rules/hub");
    let delete = pb::DeleteRuleRequest { name: "rules/hub".into(), ..Default::default() };
    fixture.rules().delete_rule(delete).await.unwrap();
    let left = fixture.repositories().get_repository(get).await.unwrap().into_inner();
    assert_eq!((left.rule.as_str(), left.rule_uid), ("", rule.uid));
}

#[tokio::test]
async fn a_deleted_tag_is_gone_until_it_is_pulled_again() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    let content = Digest::sha256(b"a");
    app.write_link(&fixture.world, &content, &app.link()).await;
    app.write_tag(&fixture.world, "v1", Some(&content), 1).await;
    report(&fixture, vec![app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;

    let name = "repositories/demo/app/tags/v1".to_owned();
    let delete = pb::DeleteImageRequest { name: name.clone() };
    let deleted = fixture.images().delete_image(delete.clone()).await.unwrap().into_inner();
    assert_eq!(tags(&deleted), ["v1"]);
    let record = app.read_tag(&fixture.world, "v1").await.unwrap();
    assert_eq!((record.digest, record.revision), (None, revision(0)), "above the one before");
    report(&fixture, vec![app.moved("v1", b"a", 1)]).await;
    let error = fixture.images().get_image(pb::GetImageRequest { name: name.clone() }).await.unwrap_err();
    assert_eq!(details(&error).resource_info().unwrap().resource_name, name);
    assert_eq!(fixture.images().delete_image(delete).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 1, "the image itself stays");

    report(&fixture, vec![app.moved("v1", b"a", revision(1))]).await;
    fixture.images().get_image(pb::GetImageRequest { name }).await.unwrap();
}

#[tokio::test]
async fn a_deleted_image_goes_with_its_tags_and_its_own_children() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    let (index, child) = (Digest::sha256(b"index"), Digest::sha256(b"child"));
    let link = ManifestLink {
        children: vec![Named::new(child.clone(), 500)],
        media_type: MediaType::OciIndex,
        config: None,
        ..app.link()
    };
    app.write_link(&fixture.world, &index, &link).await;
    app.write_link(&fixture.world, &child, &app.link()).await;
    app.write_tag(&fixture.world, "v1", Some(&index), 4).await;
    // The index does not know this tag yet.
    app.write_tag(&fixture.world, "v2", Some(&index), 1).await;
    app.write_tag(&fixture.world, "other", Some(&Digest::sha256(b"other")), 1).await;
    let cached = node::ImageCached { children: vec![digest(b"child")], ..app.image(b"index", 0) };
    let events = vec![app.event(Kind::ImageCached(cached)), app.cached(b"child", 0), app.moved("v1", b"index", 4)];
    report(&fixture, events.clone()).await;

    let delete = pb::DeleteImageRequest { name: format!("repositories/demo/app/images/{index}") };
    let deleted = fixture.images().delete_image(delete.clone()).await.unwrap().into_inner();
    assert!(tags(&deleted).contains(&"v1"));
    assert!(list_images(&fixture, "demo/app", "").await.is_empty());
    for (tag, is_there) in [("v1", false), ("v2", false), ("other", true)] {
        assert_eq!(app.read_tag(&fixture.world, tag).await.unwrap().digest.is_some(), is_there, "{tag}");
    }
    for digest in [&index, &child] {
        let key = layout::manifest_link(&app.name, app.incarnation, digest);
        assert!(
            records::read::<ManifestLink>(&*fixture.world.store, &key).await.unwrap().unwrap().0.state
                == State::Deleted
        );
    }

    // Late events about what was deleted change nothing; a new pull does.
    let late = events.into_iter().map(|event| node::Event { event_id: Uuid::now_v7().to_string(), ..event });
    report(&fixture, late.collect()).await;
    assert!(list_images(&fixture, "demo/app", "").await.is_empty());
    assert_eq!(fixture.images().delete_image(delete).await.unwrap_err().code(), Code::NotFound);
    report(&fixture, vec![app.cached(b"index", 60)]).await;
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 1);
}

#[tokio::test]
async fn what_is_about_to_be_written_outlives_a_delete_that_came_before_it() {
    let fixture = Fixture::start().await;
    let app = Repository { name: "demo/app".parse().unwrap(), incarnation: Uuid::now_v7() };
    let content = Digest::sha256(b"a");
    report(&fixture, vec![app.created(), app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;

    // The node has reported all this, but has not written any of it yet.
    let delete = pb::DeleteRepositoryRequest { name: "repositories/demo/app".into(), ..Default::default() };
    assert_eq!(fixture.repositories().delete_repository(delete.clone()).await.unwrap_err().code(), Code::NotFound);
    app.write(&fixture.world, State::Live).await;
    for name in [format!("images/{content}"), "tags/v1".into()] {
        let delete = pb::DeleteImageRequest { name: format!("repositories/demo/app/{name}") };
        assert_eq!(fixture.images().delete_image(delete).await.unwrap_err().code(), Code::NotFound);
    }
    app.write_link(&fixture.world, &content, &app.link()).await;
    app.write_tag(&fixture.world, "v1", Some(&content), 1).await;
    let images = list_images(&fixture, "demo/app", "").await;
    assert_eq!((images.len(), tags(&images[0])), (1, vec!["v1"]));
    fixture.repositories().delete_repository(delete).await.unwrap();
    assert!(list_repositories(&fixture, "").await.is_empty());
}

#[tokio::test]
async fn a_tombstone_stands_against_an_event_of_its_revision() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    let first = revision(0);
    app.write_tag(&fixture.world, "v1", Some(&Digest::sha256(b"old")), first).await;
    // The node reports the next revision, but the deletion writes it first.
    report(&fixture, vec![app.cached(b"new", 0), app.moved("v1", b"new", first + 1)]).await;
    let name = "repositories/demo/app/tags/v1".to_owned();
    fixture.images().delete_image(pb::DeleteImageRequest { name: name.clone() }).await.unwrap();
    let get = pb::GetImageRequest { name };
    assert_eq!(fixture.images().get_image(get.clone()).await.unwrap_err().code(), Code::NotFound);
    report(&fixture, vec![app.moved("v1", b"new", first + 2)]).await;
    fixture.images().get_image(get).await.unwrap();
}

#[tokio::test]
async fn the_events_of_hundreds_of_images_take_a_few_statements() {
    /// Counts statements, not rows.
    const COUNT: &str = "
        CREATE TABLE statements (of_table text NOT NULL);
        CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO statements VALUES (TG_TABLE_NAME);
            RETURN NULL;
        END $$;
        DO $$
        DECLARE
            counted text;
        BEGIN
            FOREACH counted IN ARRAY ARRAY['events', 'images', 'tags', 'image_configs', 'changes', 'repositories'] LOOP
                EXECUTE format('CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON %I
                                FOR EACH STATEMENT EXECUTE FUNCTION count_statement()', counted);
            END LOOP;
        END $$";
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![app.created()]).await;
    fixture.world.sql(COUNT).await;
    let of_image = |number: i64| {
        let content = format!("image {number}");
        let config = node::ConfigCached { digest: digest(content.as_bytes()), platform: "linux/amd64".into() };
        [
            app.cached(content.as_bytes(), number),
            app.event(Kind::ConfigCached(config)),
            app.moved(&format!("v{number}"), content.as_bytes(), 1),
            app.pulled(content.as_bytes(), 7),
        ]
    };
    report(&fixture, (0..240).flat_map(of_image).collect()).await;
    let rows = fixture.world.sql("SELECT of_table, count(*) FROM statements GROUP BY of_table").await;
    let counts: Vec<(String, u32)> = rows
        .iter()
        .filter_map(|message| {
            let SimpleQueryMessage::Row(row) = message else { return None };
            Some((row.get(0)?.to_owned(), row.get(1)?.parse().ok()?))
        })
        .collect();
    assert!(counts.len() >= 5 && counts.iter().all(|(_, count)| *count <= 10), "{counts:?}");
}
