//! Claims, and the order in which content becomes visible, on a folder that counts and that fails on request.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ground;
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

use ground::{Ground, NOW};

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
    let ground = Ground::new();
    let digest = digest();
    let (one, two) = (ground.content(BYTES).await, ground.content(BYTES).await);
    let claim = |own: &Content| {
        Claim::new(&ground, &ground, &digest, Claimer::Fill).delivered_by("a.example").with_own(own.clone(), *NOW)
    };
    let (mut first, mut second) = (claim(&one), claim(&two));
    let (a, b) = tokio::join!(first.take(), second.take());
    let (a, b) = (object_of(a.unwrap()), object_of(b.unwrap()));
    assert_eq!(a, b, "who loses takes the winner's");
    assert!(first.holds(&a).await.unwrap() && second.holds(&b).await.unwrap());
    first.drop_own().await;
    second.drop_own().await;
    assert_eq!(ground.contents().await, std::slice::from_ref(&a));
    let pointer = ground.pointer(&digest).await;
    assert_eq!((pointer.object, pointer.delivered_by), (Some(a), vec!["a.example".to_owned()]));
}

#[tokio::test]
async fn a_condemned_pointer_is_live_again_and_an_erased_one_gets_new_content() {
    let ground = Ground::new();
    let (digest, old) = (digest(), ground.content(BYTES).await);
    ground.point(&digest, PointerRecord { state: PointerState::Condemned.into(), ..ground.live(&old) }).await;
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill);
    assert_eq!(object_of(claim.take().await.unwrap()), old.object);
    assert_eq!(ground.pointer(&digest).await.state, PointerState::Live);

    let erased = PointerRecord { state: PointerState::Erased.into(), ..ground.live(&old) };
    ground.point(&digest, erased).await;
    assert_eq!(claim.take().await.unwrap(), Claimed::Missing, "nobody here has the bytes");
    let new = ground.content(BYTES).await;
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill).with_own(new.clone(), *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), new.object);
}

#[tokio::test]
async fn a_pointer_to_an_object_that_is_missing_or_wrong_is_erased_and_replaced() {
    let ground = Ground::new();
    let digest = digest();
    let missing = Content { object: layout::content(Uuid::now_v7()), size_bytes: 10 };
    let wrong = Content { size_bytes: 11, ..ground.content(BYTES).await };
    for bad in [missing, wrong] {
        ground.point(&digest, ground.live(&bad)).await;
        // Who only reads changes nothing.
        assert_eq!(claim::find(&ground, &digest, None).await.unwrap(), Lookup::Lost(bad.clone()));
        assert_eq!(ground.pointer(&digest).await.state, PointerState::Live);
        claim::disown(&ground, &digest, &bad.object, *NOW).await.unwrap();
        let pointer = ground.pointer(&digest).await;
        assert_eq!((pointer.state, pointer.object), (PointerState::Erased.into(), Some(bad.object.clone())));

        ground.point(&digest, ground.live(&bad)).await;
        let own = ground.content(BYTES).await;
        let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
        assert_eq!(object_of(claim.take().await.unwrap()), own.object);
    }
}

#[tokio::test]
async fn content_that_was_begun_a_day_ago_gets_no_pointer() {
    let ground = Ground::new();
    let (digest, own) = (digest(), ground.content(BYTES).await);
    let begun = *NOW - Duration::hours(24);
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill).with_own(own, begun);
    assert_eq!(claim.take().await.unwrap(), Claimed::Missing);
    assert!(ground.get(&layout::pointer(&digest)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_claim_is_noted_again_when_the_last_one_is_older_than_a_quarter_of_an_hour() {
    let ground = Ground::new();
    let (digest, content) = (digest(), ground.content(BYTES).await);
    for (minutes, is_noted) in [(14, false), (16, true)] {
        let claimed = *NOW - Duration::minutes(minutes);
        ground.set_store_time(claimed);
        ground.point(&digest, PointerRecord { claim_time: claimed, ..ground.live(&content) }).await;
        ground.set_store_time(*NOW);
        let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill);
        claim.take().await.unwrap();
        assert!(claim.holds(&content.object).await.unwrap());
        assert_eq!(ground.pointer(&digest).await.claim_time, if is_noted { *NOW } else { claimed }, "{minutes}");
    }
}

#[tokio::test]
async fn what_went_between_the_two_looks_is_no_claim() {
    let ground = Ground::new();
    let (digest, content) = (digest(), ground.content(BYTES).await);
    ground.point(&digest, ground.live(&content)).await;
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill);
    let object = object_of(claim.take().await.unwrap());
    ground.point(&digest, PointerRecord { state: PointerState::Condemned.into(), ..ground.live(&content) }).await;
    assert!(claim.holds(&object).await.unwrap(), "a condemned one is live again");
    assert_eq!(ground.pointer(&digest).await.state, PointerState::Live);
    ground.point(&digest, PointerRecord { state: PointerState::Erased.into(), ..ground.live(&content) }).await;
    assert!(!claim.holds(&object).await.unwrap());
}

#[tokio::test]
async fn own_content_is_kept_after_an_unknown_outcome() {
    let ground = Ground::new();
    let (digest, own) = (digest(), ground.content(BYTES).await);
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
    ground.lose_answer_to_next_replace();
    assert!(matches!(claim.take().await, Err(Error::Away(_))));
    let other = ground.content(BYTES).await;
    ground.point(&digest, ground.live(&other)).await;
    claim.drop_own().await;
    assert!(ground.head(&own.object).await.unwrap().is_some(), "a late write may still name it");
}

#[tokio::test]
async fn a_damaged_pointer_is_replaced_by_who_has_the_bytes_alone() {
    let ground = Ground::new();
    let (digest, own) = (digest(), ground.content(BYTES).await);
    ground.put(&layout::pointer(&digest), "{".into()).await.unwrap();
    assert_eq!(claim::find(&ground, &digest, None).await.unwrap(), Lookup::Nothing);
    let refused = Claim::new(&ground, &ground, &digest, Claimer::Mount).take().await;
    assert!(matches!(refused, Err(Error::BadRecord { .. })), "{refused:?}");
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), own.object);
}

#[tokio::test]
async fn a_pointer_whose_state_only_a_later_release_knows_is_left_alone_by_all() {
    let ground = Ground::new();
    let (digest, own) = (digest(), ground.content(BYTES).await);
    let mut value = serde_json::to_value(ground.live(&own)).unwrap();
    value["state"] = "quarantined".into();
    let key = layout::pointer(&digest);
    ground.put(&key, value.to_string().into()).await.unwrap();
    assert!(claim::find(&ground, &digest, None).await.is_err());
    assert!(Claim::new(&ground, &ground, &digest, Claimer::Fill).with_own(own, *NOW).take().await.is_err());
    assert_eq!(ground.get(&key).await.unwrap().unwrap().bytes, value.to_string());
}

#[tokio::test]
async fn what_another_upstream_has_delivered_is_not_found_for_this_one() {
    let ground = Ground::new();
    let (digest, content) = (digest(), ground.content(BYTES).await);
    ground.point(&digest, PointerRecord { delivered_by: vec!["a.example".into()], ..ground.live(&content) }).await;
    assert_eq!(claim::find(&ground, &digest, Some("a.example")).await.unwrap(), Lookup::Content(content.clone()));
    assert_eq!(claim::find(&ground, &digest, Some("b.example")).await.unwrap(), Lookup::Nothing);
    let own = ground.content(BYTES).await;
    let mut claim = Claim::new(&ground, &ground, &digest, Claimer::Fill).delivered_by("b.example").with_own(own, *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), content.object);
    claim.drop_own().await;
    assert_eq!(ground.contents().await, std::slice::from_ref(&content.object));
    assert_eq!(claim::find(&ground, &digest, Some("b.example")).await.unwrap(), Lookup::Content(content));
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

async fn commit(ground: &Ground, image: &Image, from: &Provenance) -> Result<Uuid, Error> {
    let committed = commit_asked(ground, image, from, *NOW).await;
    committed.map(|incarnation| incarnation.expect("it is to be created"))
}

/// Commits what the upstream was asked for at that time.
async fn commit_asked(
    ground: &Ground,
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
    commit::commit_manifest(ground, ground, &filled).await
}

#[tokio::test]
async fn a_manifest_is_visible_after_its_content_and_its_events_and_names_all() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&ground, &image, &from()).await.unwrap();
    assert_eq!(
        ground.writes(),
        ["content", "pointer", "event", "repository", "manifest link", "referrer", "tag"],
        "no list, and this order"
    );
    let link_key = layout::manifest_link(&name, incarnation, &image.digest);
    let (link, _) = read::<ManifestLink>(&ground, &link_key).await.unwrap().unwrap();
    let named = |list: &[entrepot_records::Named]| list.iter().map(|one| one.digest.clone()).collect::<Vec<_>>();
    assert_eq!(named(&link.layers), [Digest::sha256(b"layer")]);
    assert_eq!(link.config.unwrap().digest, Digest::sha256(b"config"));
    assert_eq!(
        (link.subject, link.artifact_type.as_deref()),
        (Some(Digest::sha256(b"subject")), Some("application/vnd.example"))
    );
    assert_eq!(link.revision, NOW.timestamp_micros());
    let tag_key = layout::tag(&name, incarnation, &"v1".parse().unwrap());
    let (tag, _) = read::<TagRecord>(&ground, &tag_key).await.unwrap().unwrap();
    assert_eq!((tag.digest, tag.link_revision), (Some(image.digest.clone()), Some(link.revision)));
    assert_eq!(tag.stamp.unwrap().time_ms, NOW.timestamp_millis());

    // Doing the same again writes no content, no repository and no link.
    ground.forget_writes();
    assert_eq!(commit(&ground, &image, &from()).await.unwrap(), incarnation);
    assert_eq!(ground.writes(), ["event", "tag"]);
}

#[tokio::test]
async fn nodes_that_commit_the_same_manifest_end_with_one_of_everything() {
    let (ground, image) = (Ground::new(), image());
    let from = from();
    let commits = futures_util::future::join_all((0..4).map(|_| commit(&ground, &image, &from))).await;
    let incarnations: Vec<Uuid> = commits.into_iter().map(Result::unwrap).collect();
    assert!(incarnations.windows(2).all(|pair| pair[0] == pair[1]), "{incarnations:?}");
    assert_eq!(ground.contents().await.len(), 1);
}

#[tokio::test]
async fn no_two_writes_of_a_record_have_equal_bytes() {
    let (ground, name) = (Ground::new(), "demo/app".parse().unwrap());
    let (key, record) = (layout::repository(&name), RepositoryRecord::new(Uuid::from_u128(1), *NOW));
    let first = replace(&ground, &key, None, &record).await.unwrap();
    let second = replace(&ground, &key, Some(&first), &record).await.unwrap();
    let third = replace(&ground, &key, Some(&second), &record).await.unwrap();
    assert!(first != second && second != third && first != third);
    assert!(matches!(replace(&ground, &key, Some(&first), &record).await, Err(Error::Conflict)));
}

#[tokio::test]
async fn damaged_links_and_tags_of_cached_repositories_heal() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&ground, &image, &from()).await.unwrap();
    let link_key = layout::manifest_link(&name, incarnation, &image.digest);
    let tag_key = layout::tag(&name, incarnation, &"v1".parse().unwrap());
    for key in [&link_key, &tag_key] {
        ground.put(key, "garbage".into()).await.unwrap();
    }
    assert_eq!(commit(&ground, &image, &from()).await.unwrap(), incarnation);
    assert!(read::<ManifestLink>(&ground, &link_key).await.unwrap().unwrap().0.is_live());
    assert_eq!(read::<TagRecord>(&ground, &tag_key).await.unwrap().unwrap().0.digest, Some(image.digest.clone()));

    let content = ground.content(BYTES).await;
    let (digest, from) = (digest(), from());
    let blob_key = layout::blob_link(&name, incarnation, &digest);
    ground.put(&blob_key, "garbage".into()).await.unwrap();
    let filled = FilledBlob { from: &from, digest: &digest, content: &content, platform: None };
    assert_eq!(commit::link_blob(&ground, &ground, &name, &filled).await.unwrap(), Some(incarnation));
    assert_eq!(read::<BlobLink>(&ground, &blob_key).await.unwrap().unwrap().0.object, content.object);
}

#[tokio::test]
async fn a_repository_that_cannot_be_read_or_is_not_filled_is_never_replaced() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let key = layout::repository(&name);
    let with = |field: &str, word: &str| {
        let mut value = serde_json::to_value(RepositoryRecord::new(Uuid::from_u128(1), *NOW)).unwrap();
        value[field] = word.into();
        value.to_string()
    };
    for text in ["garbage".to_owned(), with("state", "frozen"), with("kind", "virtual"), with("kind", "hosted")] {
        ground.put(&key, text.clone().into()).await.unwrap();
        let refused = commit(&ground, &image, &from()).await;
        assert!(matches!(refused, Err(Error::BadRecord { .. })), "{text}: {refused:?}");
        assert_eq!(ground.get(&key).await.unwrap().unwrap().bytes, text, "nothing is created");
    }
}

#[tokio::test]
async fn a_link_that_a_later_release_has_archived_is_not_opened() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&ground, &image, &from()).await.unwrap();
    let key = layout::manifest_link(&name, incarnation, &image.digest);
    let mut value = serde_json::to_value(read::<ManifestLink>(&ground, &key).await.unwrap().unwrap().0).unwrap();
    value["state"] = "archived".into();
    ground.put(&key, value.to_string().into()).await.unwrap();
    assert!(matches!(commit(&ground, &image, &from()).await, Err(Error::BadRecord { .. })));
    assert!(tombstone::bury_manifest(&ground, (&name, incarnation), &image.digest, *NOW).await.is_err());
    assert_eq!(ground.get(&key).await.unwrap().unwrap().bytes, value.to_string());
}

#[tokio::test]
async fn tombstones_are_of_a_higher_revision_and_so_is_what_comes_after_them() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&ground, &image, &from()).await.unwrap();
    let first = NOW.timestamp_micros();
    let of = (&name, incarnation);
    let buried = tombstone::bury_manifest(&ground, of, &image.digest, *NOW).await.unwrap().unwrap();
    assert_eq!((buried.was_live, buried.link.revision), (true, first + 1));
    let again = tombstone::bury_manifest(&ground, of, &image.digest, *NOW).await.unwrap().unwrap();
    assert_eq!((again.was_live, again.link.revision), (false, first + 1));
    let (_, revision) =
        tombstone::bury_tag(&ground, of, &"v1".parse().unwrap(), *NOW, |_| true).await.unwrap().unwrap();
    assert_eq!(revision, first + 1);

    assert_eq!(commit(&ground, &image, &from()).await.unwrap(), incarnation);
    let key = layout::manifest_link(&name, incarnation, &image.digest);
    let (link, _) = read::<ManifestLink>(&ground, &key).await.unwrap().unwrap();
    assert_eq!((link.is_live(), link.revision), (true, first + 2));

    // Even a correct clock behaves as if no record had been lost: later revisions are greater than all earlier ones.
    let later = *NOW + chrono::TimeDelta::seconds(1);
    let buried = tombstone::bury_manifest(&ground, of, &image.digest, later).await.unwrap().unwrap();
    assert_eq!(buried.link.revision, later.timestamp_micros());
}

#[tokio::test]
async fn what_was_asked_for_before_a_delete_does_not_come_back_behind_it() {
    let (ground, image, name, tag) = (Ground::new(), image(), "demo/app".parse().unwrap(), "v1".parse().unwrap());
    let second = |number: i64| *NOW + Duration::seconds(number);
    let commit_at = async |asked: i64, now: i64| {
        ground.set_node_time(second(now));
        commit_asked(&ground, &image, &from(), second(asked)).await.unwrap()
    };
    let incarnation = commit_at(0, 0).await.unwrap();
    let (link_key, tag_key) =
        (layout::manifest_link(&name, incarnation, &image.digest), layout::tag(&name, incarnation, &tag));
    let is_tagged = async || read::<TagRecord>(&ground, &tag_key).await.unwrap().unwrap().0.digest.is_some();
    let is_linked = async || read::<ManifestLink>(&ground, &link_key).await.unwrap().unwrap().0.is_live();

    tombstone::bury_tag(&ground, (&name, incarnation), &tag, second(2), |_| true).await.unwrap().unwrap();
    assert_eq!(commit_at(1, 3).await, Some(incarnation), "the image is still there");
    let (live_from, said) = (from(), second(1));
    let filled = FilledTag { name: &name, incarnation, from: &live_from, tag: &tag };
    filled.note(&ground, &ground, &image.digest, said).await.unwrap();
    assert!(!is_tagged().await, "neither by a fill nor by what was said before");
    commit_at(3, 4).await.unwrap();
    assert!(is_tagged().await);

    tombstone::bury_manifest(&ground, (&name, incarnation), &image.digest, second(6)).await.unwrap().unwrap();
    assert_eq!(commit_at(5, 7).await, None);
    assert!(!is_linked().await);
    assert_eq!(commit_at(7, 8).await, Some(incarnation));
    assert!(is_linked().await);

    tombstone::bury_repository(&ground, &name, second(10)).await.unwrap().unwrap();
    assert_eq!(commit_at(9, 11).await, None, "a repository is not brought back");
    let next = commit_at(11, 12).await.unwrap();
    assert_ne!(next, incarnation);
    assert_eq!(commit_at(9, 13).await, None, "nor does it come into the next one");
    assert_eq!(commit_at(13, 14).await, Some(next));
}

#[tokio::test]
async fn a_repository_that_is_not_to_be_created_is_not() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
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
    assert_eq!(commit::commit_manifest(&ground, &ground, &filled(None)).await.unwrap(), None);
    assert!(ground.get(&layout::repository(&name)).await.unwrap().is_none());
    let created = commit::commit_manifest(&ground, &ground, &filled(Some(SettingsRecord::default()))).await.unwrap();
    assert!(created.is_some());
    assert_eq!(commit::commit_manifest(&ground, &ground, &filled(None)).await.unwrap(), created, "it is there by now");
}

#[tokio::test]
async fn what_is_replaced_is_told_of_also_where_its_writer_gives_up_midway() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    commit(&ground, &image, &from()).await.unwrap();
    assert!(ground.told().is_empty(), "nobody has to forget what did not exist");
    ground.hang_at_next_repository();
    let other = Provenance { rule_uid: Uuid::from_u128(2), ..from() };
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(200), commit(&ground, &image, &other)).await;
    assert!(given_up.is_err());
    let (record, _) = read::<RepositoryRecord>(&ground, &layout::repository(&name)).await.unwrap().unwrap();
    assert_eq!(record.rule_uid, Some(other.rule_uid), "it was written all the same");
    assert_eq!(ground.told(), [layout::repository(&name)]);
}

#[tokio::test]
async fn another_rule_writes_links_of_its_own() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&ground, &image, &from()).await.unwrap();
    let other = Provenance { rule_uid: Uuid::from_u128(2), ..from() };
    assert_eq!(commit(&ground, &image, &other).await.unwrap(), incarnation);
    let key = layout::manifest_link(&name, incarnation, &image.digest);
    let (link, _) = read::<ManifestLink>(&ground, &key).await.unwrap().unwrap();
    assert_eq!((link.rule_uid, link.revision), (Some(Uuid::from_u128(2)), NOW.timestamp_micros() + 1));
    let (repository, _) = read::<RepositoryRecord>(&ground, &layout::repository(&name)).await.unwrap().unwrap();
    assert_eq!(
        (repository.rule_uid, repository.origin),
        (Some(Uuid::from_u128(2)), Some(Origin::new("a.example", "app")))
    );
}

/// A node that does not know of the new rule yet, because it was paused or lost its way, brings what it had asked for.
#[tokio::test]
async fn what_an_older_rule_brings_does_not_replace_what_a_newer_one_has_brought_since() {
    let (ground, name, tag) = (Ground::new(), "demo/app".parse().unwrap(), "v1".parse().unwrap());
    let (old, new) = (image(), image_of(b"another layer"));
    let (older, newer) = (from(), Provenance { rule_uid: Uuid::from_u128(2), ..from() });
    let second = |number: i64| *NOW + Duration::seconds(number);
    let commit_at = async |image: &Image, from: &Provenance, asked: i64, now: i64| {
        ground.set_node_time(second(now));
        commit_asked(&ground, image, from, second(asked)).await.unwrap().unwrap()
    };
    let incarnation = commit_at(&new, &newer, 9, 10).await;
    let key = layout::tag(&name, incarnation, &tag);
    let meaning = async || read::<TagRecord>(&ground, &key).await.unwrap().unwrap().0.digest.unwrap();

    commit_at(&old, &older, 8, 11).await;
    assert_eq!(meaning().await, new.digest, "neither by a fill");
    let filled = FilledTag { name: &name, incarnation, from: &older, tag: &tag };
    filled.note(&ground, &ground, &old.digest, second(8)).await.unwrap();
    assert_eq!(meaning().await, new.digest, "nor by what was said before");
    commit_at(&old, &older, 19, 20).await;
    assert_eq!(meaning().await, old.digest, "what was asked for later counts");
}

#[tokio::test]
async fn a_tag_is_validated_as_of_when_its_upstream_was_asked() {
    let (ground, image, from) = (Ground::new(), image(), from());
    let second = |number: i64| *NOW + Duration::seconds(number);
    let (name, tag) = ("demo/app".parse().unwrap(), "v1".parse().unwrap());
    ground.set_node_time(second(10));
    let incarnation = commit_asked(&ground, &image, &from, second(5)).await.unwrap().unwrap();
    let key = layout::tag(&name, incarnation, &tag);
    let known = async || read::<TagRecord>(&ground, &key).await.unwrap().unwrap().0;
    let filled = FilledTag { name: &name, incarnation, from: &from, tag: &tag };

    filled.confirm(&ground, &ground, &image.digest, second(4)).await.unwrap();
    assert_eq!(known().await.validate_time, Some(second(5)), "it was asked later already");
    filled.forget(&ground, &ground, &image.digest, second(4)).await.unwrap();
    assert_eq!(known().await.digest, Some(image.digest.clone()));
    filled.confirm(&ground, &ground, &image.digest, second(7)).await.unwrap();
    assert_eq!(known().await.validate_time, Some(second(7)), "not as of when it was answered");
    filled.forget(&ground, &ground, &image.digest, second(8)).await.unwrap();
    assert_eq!((known().await.digest, known().await.validate_time), (None, Some(second(8))));
}

/// Adds a field to an object of a record, as a later release may.
fn note(value: &mut serde_json::Value, pointer: &str, word: &str) {
    let object = value.pointer_mut(pointer).and_then(serde_json::Value::as_object_mut);
    object.unwrap_or_else(|| panic!("no object at {pointer}")).insert("of_a_later_release".into(), word.into());
}

#[tokio::test]
async fn what_a_later_release_has_noted_inside_of_records_survives_a_refill() {
    let (ground, image, name) = (Ground::new(), image(), "demo/app".parse().unwrap());
    let incarnation = commit(&ground, &image, &from()).await.unwrap();
    let (config, content) = (Digest::sha256(b"config"), ground.content(b"config").await);
    let provenance = from();
    let blob = FilledBlob { from: &provenance, digest: &config, content: &content, platform: None };
    commit::link_blob(&ground, &ground, &name, &blob).await.unwrap();
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
        let object = ground.get(key).await.unwrap().unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
        for place in places {
            note(&mut value, place, place);
        }
        let bytes = bytes::Bytes::from(value.to_string());
        ground.replace_if(key, Some(&object.version), bytes).await.unwrap();
    }

    // Another rule fills from the same place, so everything is written again.
    let other = Provenance { rule_uid: Uuid::from_u128(2), ..from() };
    commit(&ground, &image, &other).await.unwrap();
    commit::link_blob(&ground, &ground, &name, &FilledBlob { from: &other, ..blob }).await.unwrap();
    for (key, places) in &noted {
        let object = ground.get(key).await.unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
        assert_eq!(value["rule_uid"], serde_json::json!(Uuid::from_u128(2)), "{key} was written anew");
        for place in places {
            let kept = value.pointer(&format!("{place}/of_a_later_release")).and_then(serde_json::Value::as_str);
            assert_eq!(kept, Some(*place), "{key}");
        }
    }

    // Notes about another place do not apply to this one.
    let elsewhere = Provenance { origin: Origin::new("b.example", "app"), ..from() };
    commit(&ground, &image, &elsewhere).await.unwrap();
    let (link, _) = read::<ManifestLink>(&ground, &link).await.unwrap().unwrap();
    assert!(link.origin.unwrap().rest.is_empty() && !link.layers[0].rest.is_empty());
}
