//! Many clients on several nodes, one fetch.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, images};
use futures_util::future::try_join_all;
use http::StatusCode;

use crate::client::{Client, Credential};
use crate::cluster::{Cluster, Company, Setup};
use crate::report::report;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_on_two_nodes_that_pull_one_cold_image_fetch_each_content_once() -> Result<()> {
    const CLIENTS: usize = 50;
    let upstream = FakeUpstream::start().await;
    let layers = [images::random_bytes(1, 24 << 20), images::random_bytes(2, 3 << 20), images::random_bytes(3, 1000)];
    let image = upstream.publish_image("app", "v1", &layers);
    let Some(cluster) = Cluster::start_with(Setup { company: Company::Alone, ..Setup::default() }).await? else {
        return Ok(());
    };
    cluster.api().rule("demo", &upstream).await?;
    let password = Credential::Password("AWS".to_owned(), cluster.api().login_token().await?);

    // Half of them on each node, each with connections of its own, as docker would be logged in.
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let node = &cluster.nodes[number % cluster.nodes.len()];
        let client = Client::of(&node.registry_url(), password.clone());
        clients.push(Arc::new(client.log_in("demo/app").await?));
    }
    let mut paths = vec!["/v2/demo/app/manifests/v1".to_owned()];
    paths.extend(image.blobs().iter().map(|digest| format!("/v2/demo/app/blobs/{digest}")));
    let (begun, mut received) = (Instant::now(), 0);
    for path in &paths {
        // The upstream holds its first byte until all are waiting.
        let gate = upstream.hold(path.trim_start_matches("/v2/demo/"));
        let requests = clients.iter().map(|client| {
            let (client, path) = (client.clone(), path.clone());
            tokio::spawn(async move { client.get(&path).await })
        });
        let requests: Vec<_> = requests.collect();
        for node in &cluster.nodes {
            cluster
                .until("half of the clients wait at each node", async || {
                    node.metric("entrepot_pull_active", &[]).await.is_ok_and(|active| active >= 25.0)
                })
                .await;
        }
        gate.until_waiting(1).await;
        gate.release();
        for answer in try_join_all(requests).await? {
            let answer = answer?;
            let digest = answer.header("docker-content-digest").map(str::to_owned);
            assert_eq!((answer.status, Some(images::sha256(&answer.bytes))), (StatusCode::OK, digest), "{path}");
            received += answer.bytes.len();
        }
    }

    // On a machine that is so busy that Redis answers late, a node goes on without it, and may ask as well.
    let mut most = 1.0;
    for node in &cluster.nodes {
        most += node.metric("entrepot_lease_claim_duration_seconds_count", &["outcome=\"uncoordinated\""]).await?;
    }
    report("fetches that each content may take", most);
    for digest in image.blobs() {
        assert!(upstream.fetches_of(digest) as f64 <= most, "{digest}");
    }
    let fetches = upstream.fetches_of("manifests/v1") + upstream.fetches_of(&image.manifest);
    assert!(fetches as f64 <= most, "the manifest was fetched {fetches} times");
    let sent: u64 = upstream.log().iter().filter(|entry| entry.method == "GET").map(|entry| entry.sent_bytes).sum();
    report("clients", CLIENTS);
    report("bytes that clients received", received);
    report("bytes that the upstream sent", sent);
    report("requests to the upstream", upstream.request_count());
    report("all stages together", format!("{:?}", begun.elapsed()));
    Ok(())
}
