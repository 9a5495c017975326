//! Content that is damaged in the store: no client ever receives all of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use entrepot_data_plane::DamageTimes;
use entrepot_records::{self as records, DamageRecord, layout};
use entrepot_test_support::images::Image;
use entrepot_test_support::{FakeUpstream, images, wait_until};

use crate::{Fixture, LIMIT, Node};

const MIB: usize = 1 << 20;

/// A kind of damage to a file.
type Damage = (&'static str, fn(&mut Vec<u8>));

const DAMAGES: [Damage; 5] = [
    ("a bit in the middle", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }),
    ("a bit in the last byte", |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    }),
    ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
    ("emptied", Vec::clear),
    ("longer", |bytes| bytes.push(0)),
];

/// The file of the object with the content of a digest.
fn file_of(fixture: &Fixture, digest: &str) -> PathBuf {
    fn find(folder: &Path, digest: &str) -> Option<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
            if path.is_dir() {
                return find(&path, digest);
            }
            (images::sha256(&fs::read(&path).unwrap()) == digest).then_some(path)
        })
    }
    find(&fixture.dir.path().join("store/content"), digest).unwrap_or_else(|| panic!("{digest} is not in the store"))
}

fn damage(fixture: &Fixture, digest: &str, (_, how): Damage) {
    let path = file_of(fixture, digest);
    let mut bytes = fs::read(&path).unwrap();
    how(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The body of a blob or manifest, if the client received everything that was promised.
async fn whole(node: &Node, path: &str) -> Option<Vec<u8>> {
    let answer = node.get(path).await;
    assert!(answer.status().is_success() || answer.status() == 503, "{path}: {}", answer.status());
    let is_success = answer.status().is_success();
    answer.bytes().await.ok().filter(|_| is_success).map(Into::into)
}

async fn pulled(fixture: &Fixture, upstream: &FakeUpstream, tag: &str, bytes: usize) -> Image {
    let image = upstream.publish_image("app", tag, &[images::random_bytes(bytes as u64, bytes)]);
    let node = fixture.node().await;
    node.ready().await;
    assert_eq!(whole(&node, &format!("/v2/demo/app/manifests/{tag}")).await.unwrap(), image.manifest_bytes);
    for blob in image.blobs() {
        let bytes = whole(&node, &format!("/v2/demo/app/blobs/{blob}")).await.unwrap();
        assert_eq!(images::sha256(&bytes), blob);
    }
    node.tasks.drain(LIMIT).await;
    image
}

#[tokio::test]
async fn no_client_completes_a_damaged_blob_and_it_heals() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    for (number, bytes) in [1000, MIB - 10, MIB + 10, 5 * MIB + 3].into_iter().enumerate() {
        for what in DAMAGES {
            let about = format!("{bytes} bytes, {}", what.0);
            let tag = format!("v{number}-{}", what.0.replace(' ', "-"));
            let size = bytes + DAMAGES.iter().position(|other| other.0 == what.0).unwrap();
            let image = pulled(&fixture, &upstream, &tag, size).await;
            let layer = images::sha256(&images::random_bytes(size as u64, size));
            let path = format!("/v2/demo/app/blobs/{layer}");
            // The same while a node is running that has seen the content intact.
            let node = fixture.node().await;
            node.ready().await;
            if number % 2 == 0 {
                assert_eq!(images::sha256(&whole(&node, &path).await.unwrap()), layer, "{about}");
            }
            damage(&fixture, &layer, what);
            let first = whole(&node, &path).await;
            if let Some(bytes) = &first {
                assert_eq!(images::sha256(bytes), layer, "a client has completed something else: {about}");
            }
            let is_small = size <= MIB;
            let is_resized = !what.0.starts_with("a bit");
            // The size of an object may be held in memory for a moment.
            if is_small || (is_resized && number % 2 == 1) {
                assert!(first.is_some(), "the right bytes come in the same request: {about}");
            }
            let again = match first {
                Some(bytes) => bytes,
                None => whole(&node, &path).await.unwrap_or_else(|| panic!("it heals: {about}")),
            };
            assert_eq!(images::sha256(&again), layer, "{about}");
            assert_eq!(upstream.fetches_of(&layer), 2, "it was fetched anew: {about}");
            drop(image);
            node.tasks.drain(LIMIT).await;
        }
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_fetched_anew_in_the_same_request() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    for what in DAMAGES {
        let tag = what.0.replace(' ', "-");
        let image = pulled(&fixture, &upstream, &tag, 1000 + tag.len()).await;
        damage(&fixture, &images::sha256(&image.manifest_bytes), what);
        let node = fixture.node().await;
        node.ready().await;
        let bytes = whole(&node, &format!("/v2/demo/app/manifests/{tag}")).await;
        assert_eq!(bytes.unwrap(), image.manifest_bytes, "{}", what.0);
        node.tasks.drain(LIMIT).await;
    }
}

/// Nobody has read the blob to where its damage is told: who was first wanted a part, or hung up.
#[tokio::test]
async fn what_is_found_to_be_damaged_behind_a_reader_comes_anew_in_the_next_request() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    for (size, wants_part) in [(3 * MIB, true), (3 * MIB + 1, false)] {
        pulled(&fixture, &upstream, &format!("v{size}"), size).await;
        let right = images::random_bytes(size as u64, size);
        let layer = images::sha256(&right);
        damage(&fixture, &layer, DAMAGES[0]);
        let node = fixture.node().await;
        node.ready().await;
        let path = format!("/v2/demo/app/blobs/{layer}");
        let first = if wants_part { node.get_range(&path, "bytes=0-9").await } else { node.get(&path).await };
        assert!(first.status().is_success());
        drop(first);
        // What has begun behind that reader ends at some time. Until then parts may be wrong.
        wait_until(LIMIT, "parts are right", async || {
            let part = node.get_range(&path, &format!("bytes={}-{}", size / 2, size / 2)).await;
            assert_eq!(part.status(), 206, "no request pays for what another one has found");
            part.bytes().await.unwrap() == right[size / 2..=size / 2]
        })
        .await;
        assert_eq!(whole(&node, &path).await.as_deref(), Some(&right[..]), "it is right, in the same request");
        assert_eq!(upstream.fetches_of(&layer), 2, "it was fetched anew");
        node.tasks.drain(LIMIT).await;
    }
}

#[tokio::test]
async fn readers_of_one_damaged_blob_are_all_cut_and_parts_do_not_wait() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let size = 4 * MIB;
    pulled(&fixture, &upstream, "v1", size).await;
    let layer = images::sha256(&images::random_bytes(size as u64, size));
    damage(&fixture, &layer, DAMAGES[0]);
    let node = fixture.node().await;
    node.ready().await;
    let path = format!("/v2/demo/app/blobs/{layer}");
    let readers = (0..8).map(|_| whole(&node, &path));
    for bytes in futures_util::future::join_all(readers).await.into_iter().flatten() {
        assert_eq!(images::sha256(&bytes), layer);
    }
    let part = node.get_range(&path, "bytes=0-9").await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), images::random_bytes(size as u64, size)[..10]);
}

#[tokio::test]
async fn without_an_upstream_a_damaged_blob_is_unknown_and_the_reason_is_said() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    for size in [1000, 3 * MIB] {
        pulled(&fixture, &upstream, &format!("v{size}"), size).await;
    }
    fixture.publish_no_rules(2, &upstream).await;
    for size in [1000, 3 * MIB] {
        let layer = images::sha256(&images::random_bytes(size as u64, size));
        damage(&fixture, &layer, DAMAGES[0]);
        let node = fixture.node().await;
        node.ready().await;
        let path = format!("/v2/demo/app/blobs/{layer}");
        if size > MIB {
            assert_eq!(whole(&node, &path).await, None, "it is cut");
        }
        let answer = node.get(&path).await;
        assert_eq!(answer.status(), 404);
        let text = answer.text().await.unwrap();
        assert!(text.contains("BLOB_UNKNOWN") && text.contains("is damaged in the registry's storage"), "{text}");
        node.tasks.drain(LIMIT).await;
    }
}

#[tokio::test]
async fn the_only_node_sets_damaged_content_aside_by_itself_and_lets_go_of_it_after_its_time() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let sizes = [1000, 3 * MIB];
    for size in sizes {
        pulled(&fixture, &upstream, &format!("v{size}"), size).await;
    }
    fixture.publish_no_rules(2, &upstream).await;
    for (size, what) in sizes.into_iter().zip([DAMAGES[0], DAMAGES[2]]) {
        let layer = images::sha256(&images::random_bytes(size as u64, size));
        let file = file_of(&fixture, &layer);
        damage(&fixture, &layer, what);
        let key = layout::damage(file.file_name().unwrap().to_str().unwrap().parse().unwrap());
        let said = async || records::read::<DamageRecord>(&*fixture.store, &key).await.unwrap().map(|(said, _)| said);
        let path = format!("/v2/demo/app/blobs/{layer}");

        let times = DamageTimes { look: Duration::from_millis(100), ..DamageTimes::default() };
        let node = fixture.node_with(|config| config.damage = times).await;
        node.ready().await;
        drop(node.get(&path).await.bytes().await);
        wait_until(LIMIT, "it is set aside", async || {
            said().await.is_some_and(|said| said.set_aside_time.is_some() && said.wrong_for.len() == 1)
        })
        .await;
        assert!(file.exists(), "it is kept");
        let answer = node.get(&path).await;
        assert_eq!(answer.status(), 404);
        let text = answer.text().await.unwrap();
        assert!(text.contains("is damaged in the registry's storage"), "{text}");
        node.tasks.drain(LIMIT).await;

        let node = fixture.node_with(|config| config.damage = DamageTimes { kept: Duration::ZERO, ..times }).await;
        wait_until(LIMIT, "it is gone", async || said().await.is_none() && !file.exists()).await;
        node.tasks.drain(LIMIT).await;
    }
}
