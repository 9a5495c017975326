//! A1: bytes reach only readers of repositories that the upstream has confirmed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, Fault, images};
use futures_util::future::try_join_all;
use http::StatusCode;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

use crate::registry::Registry;

const RULES: [&str; 2] = ["left", "right"];
const REPOSITORIES: [&str; 3] = ["one", "two", "three"];
const BLOBS: usize = 4;

/// A requested blob: which rule, which repository, which blob.
type Asked = (usize, usize, usize);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_blob_is_served_exactly_where_the_upstream_has_it_whoever_else_is_filling_it() -> Result<()> {
    let registry = Arc::new(Registry::start().await?);
    let upstreams = [FakeUpstream::start().await, FakeUpstream::start().await];
    for (rule, upstream) in RULES.iter().zip(&upstreams) {
        registry.rule(rule, upstream).await?;
        // Fills last long enough to be joined.
        upstream.script("GET ", Fault::Rate(20 << 20));
    }
    let mut runner = TestRunner::new(Config { cases: 1, ..Config::default() });
    let held = prop::collection::btree_set((0..RULES.len(), 0..REPOSITORIES.len(), 0..BLOBS), 0..14);
    let asked = prop::collection::vec((0..RULES.len(), 0..REPOSITORIES.len(), 0..BLOBS), 1..24);
    for case in 0..24_u64 {
        let tree = (held.clone(), asked.clone()).new_tree(&mut runner).expect("there is a case");
        let (held, asked): (BTreeSet<Asked>, Vec<Asked>) = tree.current();
        // Blobs that no earlier case has had, small and large ones.
        let blobs: Vec<Vec<u8>> = (0..BLOBS)
            .map(|blob| images::random_bytes(case * 10 + blob as u64, [10, 70_000, 1 << 20, 3 << 20][blob]))
            .collect();
        for (rule, repository, blob) in &held {
            upstreams[*rule].publish_blob(REPOSITORIES[*repository], &blobs[*blob]);
        }
        let clients = asked.iter().map(|asked| {
            let (registry, digest) = (registry.clone(), images::sha256(&blobs[asked.2]));
            let repository = format!("{}/{}", RULES[asked.0], REPOSITORIES[asked.1]);
            tokio::spawn(async move { registry.blob(&repository, digest).await })
        });
        for (asked, answer) in asked.iter().zip(try_join_all(clients).await?) {
            let answer = answer?;
            let expected = if held.contains(asked) { StatusCode::OK } else { StatusCode::NOT_FOUND };
            assert_eq!(answer.status, expected, "A1 does not hold: {asked:?}, where the upstreams hold {held:?}");
            if expected == StatusCode::OK {
                assert_eq!(images::sha256(&answer.bytes), images::sha256(&blobs[asked.2]));
            }
        }
    }
    Ok(())
}
