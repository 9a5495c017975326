//! Claims, and the order in which content becomes visible, on a folder that counts and that fails on request.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;
mod sources;

use chrono::{DateTime, Duration, Utc};
use entrepot_domain::claim::Claimer;
use entrepot_domain::{Digest, Manifest, MediaType};
use entrepot_records::claim::Lookup;
use entrepot_records::commit::{self, FilledBlob, FilledManifest};
use entrepot_records::tags::FilledTag;
use entrepot_records::{
    BlobLink, Claim, Claimed, Content, ManifestLink, PointerRecord, PointerState, Provenance, RepositoryRecord,
    SettingsRecord, TagRecord, claim, layout,
};
use entrepot_records::{Origin, read, replace, tombstone};
use entrepot_store::{BlobStore as _, Error};
use uuid::Uuid;

use fixture::{Fixture, NOW};

const BYTES: &[u8] = b"some bytes";

fn digest() -> Digest {
    Digest::sha256(BYTES)
}

fn from() -> Provenance {
    Provenance { rule_uid: Uuid::from_u128(1), origin: Origin::new("a.example", "app") }
}

fn object_of(claimed: Claimed) -> entrepot_store::Key {
    match claimed {
        Claimed::Content(content) => content.object,
        Claimed::Missing => panic!("there is content"),
    }
}

#[tokio::test]
async fn of_two_that_bring_the_same_content_one_is_pointed_to_and_the_others_goes() {
    let fixture = Fixture::new();
    let digest = digest();
    let (one, two) = (fixture.content(BYTES).await, fixture.content(BYTES).await);
    let claim = |own: &Content| {
        Claim::new(&fixture, &fixture, &digest, Claimer::Fill).delivered_by("a.example").with_own(own.clone(), *NOW)
    };
    let (mut first, mut second) = (claim(&one), claim(&two));
    let (a, b) = tokio::join!(first.take(), second.take());
    let (a, b) = (object_of(a.unwrap()), object_of(b.unwrap()));
    assert_eq!(a, b, "who loses takes the winner's");
    assert!(first.holds(&a).await.unwrap() && second.holds(&b).await.unwrap());
    first.drop_own().await;
    second.drop_own().await;
    assert_eq!(fixture.contents().await, std::slice::from_ref(&a));
    let pointer = fixture.pointer(&digest).await;
    assert_eq!((pointer.object, pointer.delivered_by), (Some(a), vec!["a.example".to_owned()]));
}

#[tokio::test]
async fn a_condemned_pointer_is_live_again_and_an_erased_one_gets_new_content() {
    let fixture = Fixture::new();
    let (digest, old) = (digest(), fixture.content(BYTES).await);
    fixture.point(&digest, PointerRecord { state: PointerState::Condemned.into(), ..fixture.live(&old) }).await;
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill);
    assert_eq!(object_of(claim.take().await.unwrap()), old.object);
    assert_eq!(fixture.pointer(&digest).await.state, PointerState::Live);

    let erased = PointerRecord { state: PointerState::Erased.into(), ..fixture.live(&old) };
    fixture.point(&digest, erased).await;
    assert_eq!(claim.take().await.unwrap(), Claimed::Missing, "nobody here has the bytes");
    let new = fixture.content(BYTES).await;
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(new.clone(), *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), new.object);
}

#[tokio::test]
async fn a_pointer_to_an_object_that_is_missing_or_wrong_is_erased_and_replaced() {
    let fixture = Fixture::new();
    let digest = digest();
    let missing = Content { object: layout::content(Uuid::now_v7()), size_bytes: 10 };
    let wrong = Content { size_bytes: 11, ..fixture.content(BYTES).await };
    for bad in [missing, wrong] {
        fixture.point(&digest, fixture.live(&bad)).await;
        // Who only reads changes nothing.
        assert_eq!(claim::find(&fixture, &digest, None).await.unwrap(), Lookup::Lost(bad.clone()));
        assert_eq!(fixture.pointer(&digest).await.state, PointerState::Live);
        claim::disown(&fixture, &digest, &bad.object, *NOW).await.unwrap();
        let pointer = fixture.pointer(&digest).await;
        assert_eq!((pointer.state, pointer.object), (PointerState::Erased.into(), Some(bad.object.clone())));

        fixture.point(&digest, fixture.live(&bad)).await;
        let own = fixture.content(BYTES).await;
        let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
        assert_eq!(object_of(claim.take().await.unwrap()), own.object);
    }
}

#[tokio::test]
async fn content_that_was_begun_a_day_ago_gets_no_pointer() {
    let fixture = Fixture::new();
    let (digest, own) = (digest(), fixture.content(BYTES).await);
    let begun = *NOW - Duration::hours(24);
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(own, begun);
    assert_eq!(claim.take().await.unwrap(), Claimed::Missing);
    assert!(fixture.get(&layout::pointer(&digest)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_claim_is_noted_again_when_the_last_one_is_older_than_a_quarter_of_an_hour() {
    let fixture = Fixture::new();
    let (digest, content) = (digest(), fixture.content(BYTES).await);
    for (minutes, is_noted) in [(14, false), (16, true)] {
        let claimed = *NOW - Duration::minutes(minutes);
        fixture.set_store_time(claimed);
        fixture.point(&digest, PointerRecord { claim_time: claimed, ..fixture.live(&content) }).await;
        fixture.set_store_time(*NOW);
        let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill);
        claim.take().await.unwrap();
        assert!(claim.holds(&content.object).await.unwrap());
        assert_eq!(fixture.pointer(&digest).await.claim_time, if is_noted { *NOW } else { claimed }, "{minutes}");
    }
}

#[tokio::test]
async fn what_went_between_the_two_looks_is_no_claim() {
    let fixture = Fixture::new();
    let (digest, content) = (digest(), fixture.content(BYTES).await);
    fixture.point(&digest, fixture.live(&content)).await;
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill);
    let object = object_of(claim.take().await.unwrap());
    fixture.point(&digest, PointerRecord { state: PointerState::Condemned.into(), ..fixture.live(&content) }).await;
    assert!(claim.holds(&object).await.unwrap(), "a condemned one is live again");
    assert_eq!(fixture.pointer(&digest).await.state, PointerState::Live);
    fixture.point(&digest, PointerRecord { state: PointerState::Erased.into(), ..fixture.live(&content) }).await;
    assert!(!claim.holds(&object).await.unwrap());
}

#[tokio::test]
async fn own_content_is_kept_after_an_unknown_outcome() {
    let fixture = Fixture::new();
    let (digest, own) = (digest(), fixture.content(BYTES).await);
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
    fixture.lose_answer_to_next_replace();
    assert!(matches!(claim.take().await, Err(Error::Away(_))));
    let other = fixture.content(BYTES).await;
    fixture.point(&digest, fixture.live(&other)).await;
    claim.drop_own().await;
    assert!(fixture.head(&own.object).await.unwrap().is_some(), "a late write may still name it");
}

#[tokio::test]
async fn a_damaged_pointer_is_replaced_by_who_has_the_bytes_alone() {
    let fixture = Fixture::new();
    let (digest, own) = (digest(), fixture.content(BYTES).await);
    fixture.put(&layout::pointer(&digest), "{".into()).await.unwrap();
    assert_eq!(claim::find(&fixture, &digest, None).await.unwrap(), Lookup::Nothing);
    let refused = Claim::new(&fixture, &fixture, &digest, Claimer::Mount).take().await;
    assert!(matches!(refused, Err(Error::BadRecord { .. })), "{refused:?}");
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), own.object);
}

#[tokio::test]
async fn a_pointer_whose_state_only_a_later_release_knows_is_left_alone_by_all() {
    let fixture = Fixture::new();
    let (digest, own) = (digest(), fixture.content(BYTES).await);
    let mut value = serde_json::to_value(fixture.live(&own)).unwrap();
    value["state"] = "quarantined".into();
    let key = layout::pointer(&digest);
    fixture.put(&key, value.to_string().into()).await.unwrap();
    assert!(claim::find(&fixture, &digest, None).await.is_err());
    assert!(Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(own, *NOW).take().await.is_err());
    assert_eq!(fixture.get(&key).await.unwrap().unwrap().bytes, value.to_string());
}

#[tokio::test]
async fn what_another_upstream_has_delivered_is_not_found_for_this_one() {
    let fixture = Fixture::new();
    let (digest, content) = (digest(), fixture.content(BYTES).await);
    fixture.point(&digest, PointerRecord { delivered_by: vec!["a.example".into()], ..fixture.live(&content) }).await;
    assert_eq!(claim::find(&fixture, &digest, Some("a.example")).await.unwrap(), Lookup::Content(content.clone()));
    assert_eq!(claim::find(&fixture, &digest, Some("b.example")).await.unwrap(), Lookup::Nothing);
    let own = fixture.content(BYTES).await;
    let mut claim =
        Claim::new(&fixture, &fixture, &digest, Claimer::Fill).delivered_by("b.example").with_own(own, *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), content.object);
    claim.drop_own().await;
    assert_eq!(fixture.contents().await, std::slice::from_ref(&content.object));
    assert_eq!(claim::find(&fixture, &digest, Some("b.example")).await.unwrap(), Lookup::Content(content));
}

/// A manifest to commit.
struct Image {
    digest: Digest,
    bytes: bytes::Bytes,
    manifest: Manifest,
}

fn image() -> Image {
    image_of(b"layer")
}

fn image_of(layer: &[u8]) -> Image {
    let of =
        |content: &[u8]| serde_json::json!({ "digest": Digest::sha256(content).to_string(), "size": content.len() });
    let text = serde_json::json!({
        "schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str(), "artifactType": "application/vnd.example",
        "config": of(b"config"), "layers": [of(layer)], "subject": of(b"subject"),
    });
    let bytes = bytes::Bytes::from(text.to_string());
    let manifest = Manifest::parse(None, &bytes).unwrap();
    Image { digest: Digest::sha256(&bytes), bytes, manifest }
}

async fn commit(fixture: &Fixture, image: &Image, from: &Provenance) -> Result<Uuid, Error> {
    let committed = commit_asked(fixture, image, from, *NOW).await;
    committed.map(|incarnation| incarnation.expect("it is to be created"))
}

/// Commits what the upstream was asked for at that time.
async fn commit_asked(
    fixture: &Fixture,
    image: &Image,
    from: &Provenance,
    asked: DateTime<Utc>,
) -> Result<Option<Uuid>, Error> {
    let filled = FilledManifest {
        name: &"demo/app".parse().unwrap(),
        from,
        settings: Some(SettingsRecord::default()),
        digest: &image.digest,
        bytes: &image.bytes,
        manifest: &image.manifest,
        tag: Some(&"v1".parse().unwrap()),
        asked,
    };
    commit::commit_manifest(fixture, fixture, &filled).await
}

#[tokio::test]
async fn a_manifest_is_visible_after_its_content_and_its_events_and_names_all() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&fixture, &image, &from()).await.unwrap();
    assert_eq!(
        fixture.writes(),
        ["content", "pointer", "event", "repository", "manifest link", "referrer", "tag"],
        "no list, and this order"
    );
    let link_key = layout::manifest_link(&name, incarnation, &image.digest);
    let (link, _) = read::<ManifestLink>(&fixture, &link_key).await.unwrap().unwrap();
    let named = |list: &[entrepot_records::Named]| list.iter().map(|one| one.digest.clone()).collect::<Vec<_>>();
    assert_eq!(named(&link.layers), [Digest::sha256(b"layer")]);
    assert_eq!(link.config.unwrap().digest, Digest::sha256(b"config"));
    assert_eq!(
        (link.subject, link.artifact_type.as_deref()),
        (Some(Digest::sha256(b"subject")), Some("application/vnd.example"))
    );
    assert_eq!(link.revision, NOW.timestamp_micros());
    let tag_key = layout::tag(&name, incarnation, &"v1".parse().unwrap());
    let (tag, _) = read::<TagRecord>(&fixture, &tag_key).await.unwrap().unwrap();
    assert_eq!((tag.digest, tag.link_revision), (Some(image.digest.clone()), Some(link.revision)));
    assert_eq!(tag.stamp.unwrap().time_ms, NOW.timestamp_millis());

    // Doing the same again writes no content, no repository and no link.
    fixture.forget_writes();
    assert_eq!(commit(&fixture, &image, &from()).await.unwrap(), incarnation);
    assert_eq!(fixture.writes(), ["event", "tag"]);
}

#[tokio::test]
async fn nodes_that_commit_the_same_manifest_end_with_one_of_everything() {
    let (fixture, image) = (Fixture::new(), image());
    let from = from();
    let commits = futures_util::future::join_all((0..4).map(|_| commit(&fixture, &image, &from))).await;
    let incarnations: Vec<Uuid> = commits.into_iter().map(Result::unwrap).collect();
    assert!(incarnations.windows(2).all(|pair| pair[0] == pair[1]), "{incarnations:?}");
    assert_eq!(fixture.contents().await.len(), 1);
}

#[tokio::test]
async fn no_two_writes_of_a_record_have_equal_bytes() {
    let (fixture, name) = (Fixture::new(), "demo/app".parse().unwrap());
    let (key, record) = (layout::repository(&name), RepositoryRecord::new(Uuid::from_u128(1), *NOW));
    let first = replace(&fixture, &key, None, &record).await.unwrap();
    let second = replace(&fixture, &key, Some(&first), &record).await.unwrap();
    let third = replace(&fixture, &key, Some(&second), &record).await.unwrap();
    assert!(first != second && second != third && first != third);
    assert!(matches!(replace(&fixture, &key, Some(&first), &record).await, Err(Error::Conflict)));
}

#[tokio::test]
async fn damaged_links_and_tags_of_cached_repositories_heal() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&fixture, &image, &from()).await.unwrap();
    let link_key = layout::manifest_link(&name, incarnation, &image.digest);
    let tag_key = layout::tag(&name, incarnation, &"v1".parse().unwrap());
    for key in [&link_key, &tag_key] {
        fixture.put(key, "garbage".into()).await.unwrap();
    }
    assert_eq!(commit(&fixture, &image, &from()).await.unwrap(), incarnation);
    assert!(read::<ManifestLink>(&fixture, &link_key).await.unwrap().unwrap().0.is_live());
    assert_eq!(read::<TagRecord>(&fixture, &tag_key).await.unwrap().unwrap().0.digest, Some(image.digest.clone()));

    let content = fixture.content(BYTES).await;
    let (digest, from) = (digest(), from());
    let blob_key = layout::blob_link(&name, incarnation, &digest);
    fixture.put(&blob_key, "garbage".into()).await.unwrap();
    let filled = FilledBlob { from: &from, digest: &digest, content: &content, platform: None };
    assert_eq!(commit::link_blob(&fixture, &fixture, &name, &filled).await.unwrap(), Some(incarnation));
    assert_eq!(read::<BlobLink>(&fixture, &blob_key).await.unwrap().unwrap().0.object, content.object);
}

#[tokio::test]
async fn a_repository_that_cannot_be_read_or_is_not_filled_is_never_replaced() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let key = layout::repository(&name);
    let with = |field: &str, word: &str| {
        let mut value = serde_json::to_value(RepositoryRecord::new(Uuid::from_u128(1), *NOW)).unwrap();
        value[field] = word.into();
        value.to_string()
    };
    for text in ["garbage".to_owned(), with("state", "frozen"), with("kind", "virtual"), with("kind", "hosted")] {
        fixture.put(&key, text.clone().into()).await.unwrap();
        let refused = commit(&fixture, &image, &from()).await;
        assert!(matches!(refused, Err(Error::BadRecord { .. })), "{text}: {refused:?}");
        assert_eq!(fixture.get(&key).await.unwrap().unwrap().bytes, text, "nothing is created");
    }
}

#[tokio::test]
async fn a_link_that_a_later_release_has_archived_is_not_opened() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&fixture, &image, &from()).await.unwrap();
    let key = layout::manifest_link(&name, incarnation, &image.digest);
    let mut value = serde_json::to_value(read::<ManifestLink>(&fixture, &key).await.unwrap().unwrap().0).unwrap();
    value["state"] = "archived".into();
    fixture.put(&key, value.to_string().into()).await.unwrap();
    assert!(matches!(commit(&fixture, &image, &from()).await, Err(Error::BadRecord { .. })));
    assert!(tombstone::bury_manifest(&fixture, (&name, incarnation), &image.digest, *NOW).await.is_err());
    assert_eq!(fixture.get(&key).await.unwrap().unwrap().bytes, value.to_string());
}

#[tokio::test]
async fn tombstones_are_of_a_higher_revision_and_so_is_what_comes_after_them() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&fixture, &image, &from()).await.unwrap();
    let first = NOW.timestamp_micros();
    let of = (&name, incarnation);
    let buried = tombstone::bury_manifest(&fixture, of, &image.digest, *NOW).await.unwrap().unwrap();
    assert_eq!((buried.was_live, buried.link.revision), (true, first + 1));
    let again = tombstone::bury_manifest(&fixture, of, &image.digest, *NOW).await.unwrap().unwrap();
    assert_eq!((again.was_live, again.link.revision), (false, first + 1));
    let (_, revision) =
        tombstone::bury_tag(&fixture, of, &"v1".parse().unwrap(), *NOW, |_| true).await.unwrap().unwrap();
    assert_eq!(revision, first + 1);

    assert_eq!(commit(&fixture, &image, &from()).await.unwrap(), incarnation);
    let key = layout::manifest_link(&name, incarnation, &image.digest);
    let (link, _) = read::<ManifestLink>(&fixture, &key).await.unwrap().unwrap();
    assert_eq!((link.is_live(), link.revision), (true, first + 2));

    // Even a correct clock behaves as if no record had been lost: later revisions are greater than all earlier ones.
    let later = *NOW + chrono::TimeDelta::seconds(1);
    let buried = tombstone::bury_manifest(&fixture, of, &image.digest, later).await.unwrap().unwrap();
    assert_eq!(buried.link.revision, later.timestamp_micros());
}

#[tokio::test]
async fn what_was_asked_for_before_a_delete_does_not_come_back_behind_it() {
    let (fixture, image, name, tag) = (Fixture::new(), image(), "demo/app".parse().unwrap(), "v1".parse().unwrap());
    let second = |number: i64| *NOW + Duration::seconds(number);
    let commit_at = async |asked: i64, now: i64| {
        fixture.set_node_time(second(now));
        commit_asked(&fixture, &image, &from(), second(asked)).await.unwrap()
    };
    let incarnation = commit_at(0, 0).await.unwrap();
    let (link_key, tag_key) =
        (layout::manifest_link(&name, incarnation, &image.digest), layout::tag(&name, incarnation, &tag));
    let is_tagged = async || read::<TagRecord>(&fixture, &tag_key).await.unwrap().unwrap().0.digest.is_some();
    let is_linked = async || read::<ManifestLink>(&fixture, &link_key).await.unwrap().unwrap().0.is_live();

    tombstone::bury_tag(&fixture, (&name, incarnation), &tag, second(2), |_| true).await.unwrap().unwrap();
    assert_eq!(commit_at(1, 3).await, Some(incarnation), "the image is still there");
    let (live_from, said) = (from(), second(1));
    let filled = FilledTag { name: &name, incarnation, from: &live_from, tag: &tag };
    filled.note(&fixture, &fixture, &image.digest, said).await.unwrap();
    assert!(!is_tagged().await, "neither by a fill nor by what was said before");
    commit_at(3, 4).await.unwrap();
    assert!(is_tagged().await);

    tombstone::bury_manifest(&fixture, (&name, incarnation), &image.digest, second(6)).await.unwrap().unwrap();
    assert_eq!(commit_at(5, 7).await, None);
    assert!(!is_linked().await);
    assert_eq!(commit_at(7, 8).await, Some(incarnation));
    assert!(is_linked().await);

    tombstone::bury_repository(&fixture, &name, second(10)).await.unwrap().unwrap();
    assert_eq!(commit_at(9, 11).await, None, "a repository is not brought back");
    let next = commit_at(11, 12).await.unwrap();
    assert_ne!(next, incarnation);
    assert_eq!(commit_at(9, 13).await, None, "nor does it come into the next one");
    assert_eq!(commit_at(13, 14).await, Some(next));
}

#[tokio::test]
async fn a_repository_that_is_not_to_be_created_is_not() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let from = from();
    let filled = |settings| FilledManifest {
        name: &name,
        from: &from,
        settings,
        digest: &image.digest,
        bytes: &image.bytes,
        manifest: &image.manifest,
        tag: None,
        asked: *NOW,
    };
    assert_eq!(commit::commit_manifest(&fixture, &fixture, &filled(None)).await.unwrap(), None);
    assert!(fixture.get(&layout::repository(&name)).await.unwrap().is_none());
    let created = commit::commit_manifest(&fixture, &fixture, &filled(Some(SettingsRecord::default()))).await.unwrap();
    assert!(created.is_some());
    assert_eq!(
        commit::commit_manifest(&fixture, &fixture, &filled(None)).await.unwrap(),
        created,
        "it is there by now"
    );
}

#[tokio::test]
async fn what_is_replaced_is_told_of_also_where_its_writer_gives_up_midway() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    commit(&fixture, &image, &from()).await.unwrap();
    assert!(fixture.told().is_empty(), "nobody has to forget what did not exist");
    fixture.hang_at_next_repository();
    let other = Provenance { rule_uid: Uuid::from_u128(2), ..from() };
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(200), commit(&fixture, &image, &other)).await;
    assert!(given_up.is_err());
    let (record, _) = read::<RepositoryRecord>(&fixture, &layout::repository(&name)).await.unwrap().unwrap();
    assert_eq!(record.rule_uid, Some(other.rule_uid), "it was written all the same");
    assert_eq!(fixture.told(), [layout::repository(&name)]);
}

#[tokio::test]
async fn another_rule_writes_links_of_its_own() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&fixture, &image, &from()).await.unwrap();
    let other = Provenance { rule_uid: Uuid::from_u128(2), ..from() };
    assert_eq!(commit(&fixture, &image, &other).await.unwrap(), incarnation);
    let key = layout::manifest_link(&name, incarnation, &image.digest);
    let (link, _) = read::<ManifestLink>(&fixture, &key).await.unwrap().unwrap();
    assert_eq!((link.rule_uid, link.revision), (Some(Uuid::from_u128(2)), NOW.timestamp_micros() + 1));
    let (repository, _) = read::<RepositoryRecord>(&fixture, &layout::repository(&name)).await.unwrap().unwrap();
    assert_eq!(
        (repository.rule_uid, repository.origin),
        (Some(Uuid::from_u128(2)), Some(Origin::new("a.example", "app")))
    );
}

/// A node that does not know of the new rule yet, because it was paused or lost its way, brings what it had asked for.
#[tokio::test]
async fn what_an_older_rule_brings_does_not_replace_what_a_newer_one_has_brought_since() {
    let (fixture, name, tag) = (Fixture::new(), "demo/app".parse().unwrap(), "v1".parse().unwrap());
    let (old, new) = (image(), image_of(b"another layer"));
    let (older, newer) = (from(), Provenance { rule_uid: Uuid::from_u128(2), ..from() });
    let second = |number: i64| *NOW + Duration::seconds(number);
    let commit_at = async |image: &Image, from: &Provenance, asked: i64, now: i64| {
        fixture.set_node_time(second(now));
        commit_asked(&fixture, image, from, second(asked)).await.unwrap().unwrap()
    };
    let incarnation = commit_at(&new, &newer, 9, 10).await;
    let key = layout::tag(&name, incarnation, &tag);
    let meaning = async || read::<TagRecord>(&fixture, &key).await.unwrap().unwrap().0.digest.unwrap();

    commit_at(&old, &older, 8, 11).await;
    assert_eq!(meaning().await, new.digest, "neither by a fill");
    let filled = FilledTag { name: &name, incarnation, from: &older, tag: &tag };
    filled.note(&fixture, &fixture, &old.digest, second(8)).await.unwrap();
    assert_eq!(meaning().await, new.digest, "nor by what was said before");
    commit_at(&old, &older, 19, 20).await;
    assert_eq!(meaning().await, old.digest, "what was asked for later counts");
}

#[tokio::test]
async fn a_tag_is_validated_as_of_when_its_upstream_was_asked() {
    let (fixture, image, from) = (Fixture::new(), image(), from());
    let second = |number: i64| *NOW + Duration::seconds(number);
    let (name, tag) = ("demo/app".parse().unwrap(), "v1".parse().unwrap());
    fixture.set_node_time(second(10));
    let incarnation = commit_asked(&fixture, &image, &from, second(5)).await.unwrap().unwrap();
    let key = layout::tag(&name, incarnation, &tag);
    let known = async || read::<TagRecord>(&fixture, &key).await.unwrap().unwrap().0;
    let filled = FilledTag { name: &name, incarnation, from: &from, tag: &tag };

    filled.confirm(&fixture, &fixture, &image.digest, second(4)).await.unwrap();
    assert_eq!(known().await.validate_time, Some(second(5)), "it was asked later already");
    filled.forget(&fixture, &fixture, &image.digest, second(4)).await.unwrap();
    assert_eq!(known().await.digest, Some(image.digest.clone()));
    filled.confirm(&fixture, &fixture, &image.digest, second(7)).await.unwrap();
    assert_eq!(known().await.validate_time, Some(second(7)), "not as of when it was answered");
    filled.forget(&fixture, &fixture, &image.digest, second(8)).await.unwrap();
    assert_eq!((known().await.digest, known().await.validate_time), (None, Some(second(8))));
}

/// Adds a field to an object of a record, as a later release may.
fn note(value: &mut serde_json::Value, pointer: &str, word: &str) {
    let object = value.pointer_mut(pointer).and_then(serde_json::Value::as_object_mut);
    object.unwrap_or_else(|| panic!("no object at {pointer}")).insert("of_a_later_release".into(), word.into());
}

#[tokio::test]
async fn what_a_later_release_has_noted_inside_of_records_survives_a_refill() {
    let (fixture, image, name) = (Fixture::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&fixture, &image, &from()).await.unwrap();
    let (config, content) = (Digest::sha256(b"config"), fixture.content(b"config").await);
    let provenance = from();
    let blob = FilledBlob { from: &provenance, digest: &config, content: &content, platform: None };
    commit::link_blob(&fixture, &fixture, &name, &blob).await.unwrap();
    let link = layout::manifest_link(&name, incarnation, &image.digest);
    let tag = layout::tag(&name, incarnation, &"v1".parse().unwrap());
    let blob_link = layout::blob_link(&name, incarnation, &config);
    let repository = layout::repository(&name);
    let noted = [
        (&link, vec!["", "/origin", "/config", "/layers/0"]),
        (&tag, vec!["", "/origin", "/stamp"]),
        (&blob_link, vec!["", "/origin"]),
        (&repository, vec!["", "/origin"]),
    ];
    for (key, places) in &noted {
        let object = fixture.get(key).await.unwrap().unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
        for place in places {
            note(&mut value, place, place);
        }
        let bytes = bytes::Bytes::from(value.to_string());
        fixture.replace_if(key, Some(&object.version), bytes).await.unwrap();
    }

    // Another rule fills from the same place, so everything is written again.
    let other = Provenance { rule_uid: Uuid::from_u128(2), ..from() };
    commit(&fixture, &image, &other).await.unwrap();
    commit::link_blob(&fixture, &fixture, &name, &FilledBlob { from: &other, ..blob }).await.unwrap();
    for (key, places) in &noted {
        let object = fixture.get(key).await.unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
        assert_eq!(value["rule_uid"], serde_json::json!(Uuid::from_u128(2)), "{key} was written anew");
        for place in places {
            let kept = value.pointer(&format!("{place}/of_a_later_release")).and_then(serde_json::Value::as_str);
            assert_eq!(kept, Some(*place), "{key}");
        }
    }

    // Notes about another place do not apply to this one.
    let elsewhere = Provenance { origin: Origin::new("b.example", "app"), ..from() };
    commit(&fixture, &image, &elsewhere).await.unwrap();
    let (link, _) = read::<ManifestLink>(&fixture, &link).await.unwrap().unwrap();
    assert!(link.origin.unwrap().rest.is_empty() && !link.layers[0].rest.is_empty());
}
