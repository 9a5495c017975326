//! One trace follows a pull from the client to the bucket; metrics and logs tell the same story.

use std::collections::BTreeSet;

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, images};
use http::{Method, StatusCode};

use crate::client::send;
use crate::cluster::Cluster;
use crate::report::report;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_follows_a_pull_from_the_client_to_the_commit() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 9 << 20)]);
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    cluster.client().get("/v2/demo/app/manifests/v1").await?;
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let request = cluster.client().request(Method::GET, &format!("/v2/demo/app/blobs/{}", image.layers[0]));
    let answer = send(request.header("traceparent", &traceparent)).await?;
    assert_eq!(answer.status, StatusCode::OK);

    // The fill is done when the blob is linked, which is after the client has its last byte.
    let names = || cluster.otlp.trace(TRACE).into_iter().map(|span| span.name).collect::<BTreeSet<_>>();
    for wanted in ["pull", "lease.claim", "upstream.request", "fill", "fill.commit"] {
        cluster
            .until(&format!("the trace has a span `{wanted}`: {:?}", names()), async || names().contains(wanted))
            .await;
    }
    let spans = cluster.otlp.trace(TRACE);
    let root = spans.iter().find(|span| span.parent_id == CALLER).expect("the node's span is the caller's child");
    let ids: BTreeSet<_> = spans.iter().map(|span| span.span_id.as_str()).collect();
    for span in &spans {
        let known = span.span_id == root.span_id || ids.contains(span.parent_id.as_str());
        assert!(known, "`{}` hangs in the air: {spans:?}", span.name);
    }
    assert_eq!(spans.iter().map(|span| span.service.as_str()).collect::<BTreeSet<_>>().len(), 1, "{spans:?}");
    report("spans of one pull", spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>().join(", "));

    // The upstream is told of the trace, too.
    let told = upstream.log().into_iter().any(|entry| {
        entry.headers.get("traceparent").and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains(TRACE))
    });
    report("the upstream is told of the trace", told);

    // The logs of the node say which trace they belong to.
    let logged = async || cluster.nodes.iter().any(|node| node.program.log().contains(TRACE));
    cluster.until("the log has the trace's id", logged).await;
    for node in &cluster.nodes {
        for line in node.program.log().lines() {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
            assert!(parsed.is_ok_and(|line| line.is_object()), "not a JSON object: {line}");
        }
    }

    for (service, metric) in
        [("entrepot-data-plane", "entrepot.pull.duration"), ("entrepot-control-plane", "entrepot.snapshot.revision")]
    {
        let seen = || cluster.otlp.metrics();
        cluster
            .until(&format!("`{metric}` of `{service}` has come"), async || {
                seen().iter().any(|found| found.service == service && found.name == metric)
            })
            .await;
    }
    report("metrics that came by OTLP", cluster.otlp.metrics().len());
    Ok(())
}
