//! Each store has a layout version, and a store with a wrong one is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

use std::sync::Arc;

use entrepot_records::{LayoutError, check_layout, layout};
use entrepot_store::{BlobStore as _, Key, LocalStore};
use futures_util::future::join_all;
use uuid::Uuid;

/// More than one page of a listing.
const PROBES: usize = 150;

fn empty() -> (tempfile::TempDir, LocalStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    (folder, store)
}

async fn put(store: &LocalStore, key: &Key, text: &'static str) {
    store.put(key, text.into()).await.unwrap();
}

#[tokio::test]
async fn an_empty_store_is_marked_once_and_known_from_then_on() {
    let (_folder, store) = empty();
    // Many leftover probes, more than one page of them.
    for name in 0..PROBES {
        put(&store, &layout::probe(Uuid::nil(), &name.to_string()), "x").await;
    }
    check_layout(&store).await.unwrap();
    let first = store.get(&layout::version()).await.unwrap().unwrap();
    assert_eq!(first.bytes, r#"{"version":1}"#);
    put(&store, &layout::snapshot_head(), "head").await;
    check_layout(&store).await.unwrap();
    assert_eq!(store.get(&layout::version()).await.unwrap().unwrap().bytes, first.bytes);
}

#[tokio::test]
async fn what_another_release_has_laid_out_is_refused_with_the_remedy() {
    let (_folder, store) = empty();
    for (text, found) in [(r#"{"version":2}"#, "layout version 2"), ("one", "cannot be read"), ("", "cannot be read")] {
        put(&store, &layout::version(), text).await;
        let error = check_layout(&store).await.unwrap_err();
        assert!(matches!(error, LayoutError::Unknown { .. }) && !error.retry(), "{error}");
        let error = error.to_string();
        assert!(error.contains(found) && error.contains("run the release that wrote it"), "{error}");
        assert_eq!(store.get(&layout::version()).await.unwrap().unwrap().bytes, text);
    }
    put(&store, &layout::version(), r#"{"version":1,"of_a_later_release":true}"#).await;
    check_layout(&store).await.unwrap();
}

#[tokio::test]
async fn keys_without_a_version_are_refused_and_left_alone() {
    let (_folder, store) = empty();
    // The foreign key comes after a page of probes.
    for name in 0..PROBES {
        put(&store, &layout::probe(Uuid::nil(), &name.to_string()), "x").await;
    }
    put(&store, &layout::snapshot_head(), "head").await;
    let error = check_layout(&store).await.unwrap_err();
    assert!(matches!(&error, LayoutError::Missing { key } if *key == layout::snapshot_head()), "{error}");
    assert!(error.to_string().contains("choose an empty bucket"), "{error}");
    assert!(store.get(&layout::version()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn programs_that_start_at_once_all_find_it_and_what_they_write_disturbs_nobody() {
    for round in 0..20 {
        let (_folder, store) = empty();
        let store = Arc::new(store);
        let starts = (0..8).map(|starter| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                check_layout(&*store).await?;
                // Each of them begins to write at once.
                let key = layout::node(&format!("node-{starter}").parse().unwrap());
                store.put(&key, "x".into()).await.unwrap();
                Ok::<_, LayoutError>(())
            })
        });
        for started in join_all(starts).await {
            started.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
}
