//! The bucket away: what a node holds is served, the rest is refused honestly, and nothing has to be restarted.

use std::time::{Duration, Instant};

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, images};
use http::StatusCode;

use crate::cluster::{Cluster, Member};
use crate::report::{report, seconds};

/// Short in CI; `ENTREPOT_BUCKET_AWAY_SECONDS=30` is the long form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_bucket_a_node_serves_what_it_holds_and_refuses_the_rest() -> Result<()> {
    let length = seconds("ENTREPOT_BUCKET_AWAY_SECONDS", 6);
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("other", "v1", &[images::random_bytes(3, 100_000)]);
    upstream.publish_image("new", "v1", &[images::random_bytes(4, 100_000)]);
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    let (one, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    other.client().pull("demo/other", "v1").await?;

    for (seed, frozen) in [(5, true), (6, false)] {
        let how = if frozen { "frozen" } else { "stopped" };
        let (open, held) = (format!("open-{how}"), format!("held-{how}"));
        let layer = upstream.publish_blob(&open, images::random_bytes(seed, 6 << 20));
        let image = upstream.publish_image(&held, "v1", &[images::random_bytes(20 + seed, 5 << 20)]);
        // Each node holds what it has served.
        let held = format!("demo/{held}");
        one.client().pull(&held, "v1").await?;
        let gate = upstream.hold(layer.as_str());
        let (client, path) = (one.client(), format!("/v2/demo/{open}/blobs/{layer}"));
        let landing = tokio::spawn(async move { client.get(&path).await });
        gate.until_waiting(1).await;

        if frozen {
            cluster.seaweed.freeze();
        } else {
            cluster.seaweed.kill().await;
        }
        let begun = Instant::now();
        gate.release();
        let landed = landing.await??;
        assert_eq!(
            (landed.status, images::sha256(&landed.bytes)),
            (StatusCode::OK, layer),
            "a fill that is open finishes for its readers"
        );
        report(&format!("a fill that was open when the bucket was {how} took"), format!("{:?}", begun.elapsed()));
        let (begun, mut rounds) = (Instant::now(), 0);
        while begun.elapsed() < length {
            rounds += 1;
            let pulled = one.client().pull(&held, "v1").await?;
            assert_eq!(pulled.manifest, image.manifest);
            if rounds == 1 {
                report(&format!("the first held pull with the bucket {how} took"), format!("{:?}", pulled.took));
            }
            refused(one, "/v2/demo/new/manifests/v1", how).await?;
            refused(other, &format!("/v2/{held}/manifests/v1"), how).await?;
            refused(other, &format!("/v2/demo/other/blobs/{}", image.layers[0]), how).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        report(&format!("rounds with the bucket {how} for {:?}", begun.elapsed()), rounds);

        if frozen {
            cluster.seaweed.thaw();
        } else {
            cluster.seaweed.resume().await;
        }
        let back = Instant::now();
        for node in &cluster.nodes {
            let what = format!("`{}` pulls everything again", node.name());
            cluster
                .until(&what, async || {
                    node.client().pull(&held, "v1").await.is_ok()
                        && node.client().pull("demo/other", "v1").await.is_ok()
                })
                .await;
        }
        report(&format!("pulls work this long after the bucket was {how}"), format!("{:?}", back.elapsed()));
        one.client().pull(&format!("demo/after-{how}"), "v1").await.expect_err("nobody has published it yet");
        upstream.publish_image(&format!("after-{how}"), "v1", &[images::random_bytes(10 + seed, 100_000)]);
        other.client().pull(&format!("demo/after-{how}"), "v1").await?;
        cluster.api().listed(&format!("demo/after-{how}"), "v1").await;
    }
    one.client().pull("demo/new", "v1").await?;
    Ok(())
}

/// It must be refused as something that will work again soon.
async fn refused(node: &Member, path: &str, how: &str) -> Result<()> {
    let begun = Instant::now();
    let answer = node.client().get(path).await?;
    let code = answer.code();
    assert_eq!(
        (answer.status, &*code),
        (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        "{path} with the bucket {how}"
    );
    let retry_after: u32 = answer.header("retry-after").unwrap_or_default().parse()?;
    assert!(retry_after > 0);
    if begun.elapsed() > Duration::from_secs(3) {
        report(&format!("{path} at `{}` was refused only after", node.name()), format!("{:?}", begun.elapsed()));
    }
    Ok(())
}
