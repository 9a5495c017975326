//! Lists.

use super::*;

pub(super) async fn lists_are_sorted_deep_and_resumable(store: &dyn BlobStore) {
    // `-` and `.` come before `/`, `0` and `_` after it.
    let texts = [
        "r/a/_x/1",
        "r/a-b/_x",
        "r/a.b/_x",
        "r/a/b/_x",
        "r/a0/_x",
        "r/a_b/_x",
        "r/b/c/d/e",
        "r/A",
        "r/z",
        "q",
        "s/t",
        "r/a-/1",
        "r/a/_x/10",
        "r/a/_x/2",
    ];
    for text in texts {
        write(store, text, "x").await;
    }
    let all: Vec<Key> = texts.into_iter().map(key).collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(keys(store, &Prefix::all(), None, 100).await, all);

    let below: Vec<Key> = all.iter().filter(|key| key.as_str().starts_with("r/")).cloned().collect();
    let prefix = folder("r");
    for limit in 1..=below.len() + 1 {
        let mut pages: Vec<Key> = Vec::new();
        loop {
            let page = keys(store, &prefix, pages.last(), limit).await;
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            pages.extend(page);
        }
        assert_eq!(pages, below, "in pages of {limit}");
    }
    // The key to start after need not exist, nor be below the prefix.
    for start in ["r/a/_x/15", "r/a/b", "r/a/c/c", "r/0", "r/zz", "a", "r", "z/z"].map(key) {
        let expected: Vec<Key> = below.iter().filter(|key| **key > start).cloned().collect();
        assert_eq!(keys(store, &prefix, Some(&start), 100).await, expected, "behind {start}");
    }
}

pub(super) async fn lists_keep_to_their_folder(store: &dyn BlobStore) {
    for text in ["blobs/a/1", "blobs/ab/1", "blobs-2/a", "blobs/a/2"] {
        write(store, text, "x").await;
    }
    let list = async |prefix: Prefix| keys(store, &prefix, None, 100).await;
    assert_eq!(list(folder("blobs/a")).await, ["blobs/a/1", "blobs/a/2"].map(key));
    assert_eq!(list(folder("blobs-2")).await, [key("blobs-2/a")]);
    for absent in ["none", "blobs/a/1", "blob"] {
        assert!(list(folder(absent)).await.is_empty(), "{absent}");
    }
    assert!(keys(store, &folder("blobs"), None, 0).await.is_empty());
}

pub(super) async fn lists_of_many_keys_are_whole(store: &dyn BlobStore) {
    // More keys than services list at once, also within one folder, and with siblings in a different order.
    let mut all = BTreeSet::new();
    for index in 0..1100 {
        all.insert(key(&format!("m/a/{index}")));
    }
    for index in 0..120 {
        all.insert(key(&format!("m/a-{index}/x")));
        all.insert(key(&format!("m/a.{index}/y-{index}/z")));
        all.insert(key(&format!("m/b/c/{index}/d/e")));
    }
    for at in ["m/a-", "m/a-1/x-y", "m/a-1-/x", "m/a.1/y-1-/z", "m/a0", "m/b-/c", "m/b/c-d/e", "m/z"] {
        all.insert(key(at));
    }
    stream::iter(&all)
        .for_each_concurrent(RACERS, async |key| drop(store.put(key, "x".into()).await.expect("put")))
        .await;
    let all: Vec<Key> = all.into_iter().collect();
    assert_eq!(keys(store, &folder("m"), None, 10_000).await, all);
    for limit in [97, 1000] {
        let mut pages: Vec<Key> = Vec::new();
        loop {
            let page = keys(store, &folder("m"), pages.last(), limit).await;
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            pages.extend(page);
        }
        assert_eq!(pages, all, "in pages of {limit}");
    }
    for start in all.iter().step_by(41) {
        let at = all.partition_point(|key| key <= start);
        let expected = &all[at..all.len().min(at + 3)];
        assert_eq!(keys(store, &folder("m"), Some(start), 3).await, expected, "behind {start}");
    }
}

pub(super) async fn lists_say_what_reads_say(store: &dyn BlobStore) {
    /// Larger objects are not records, and lists need not contain their version.
    const RECORD: u64 = 1024 * 1024;
    const LARGE: usize = 9 * 1024 * 1024;
    for (at, size) in [("l/empty", 0), ("l/f/small", 10), ("l/f-/other", 10), ("l/z", 70_000)] {
        store.put(&key(at), vec![b'x'; size].into()).await.expect("put");
    }
    // Written in parts, for which some services have another form of version.
    let mut upload = store.begin_upload(&key("l/large")).await.expect("begin");
    upload.part(vec![b'x'; LARGE].into()).await.expect("part");
    upload.complete(None).await.expect("complete");
    let mut seen = std::collections::HashMap::new();
    for round in 0..3 {
        let entries = store.list(&folder("l"), None, 10).await.expect("list");
        assert_eq!(entries.len(), 5);
        for entry in entries {
            let object = store.get(&entry.key).await.expect("get").expect("is listed");
            assert_eq!(entry.size_bytes, object.bytes.len() as u64, "{entry:?}");
            let may_lack = entry.version.is_none() && entry.size_bytes > RECORD;
            assert!(may_lack || entry.version.as_ref() == Some(&object.version), "{entry:?}");
            let was = seen.insert(entry.key.clone(), (entry.version.clone(), entry.modify_time));
            let is_rewritten = entry.key == key("l/z");
            if let Some((version, time)) = was {
                assert_eq!(version != entry.version, is_rewritten, "{entry:?}");
                assert!(if is_rewritten { time <= entry.modify_time } else { time == entry.modify_time }, "{entry:?}");
            }
        }
        store.put(&key("l/z"), vec![b'0' + round; 70_000].into()).await.expect("put");
    }
}
