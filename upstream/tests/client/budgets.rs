//! Which requests count, with which priority, and what the upstream reports about its limit.

use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::budget::ReportedLimit;
use entrepot_domain::{Priority, Upstream, UpstreamKind};
use entrepot_test_support::images::random_bytes;
use entrepot_test_support::{FakeUpstream, Fault};
use entrepot_upstream::{Account, Client, Error, Limits, RequestMetrics, State};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use crate::{REGISTRY, digest, name, read_blob, reference, upstream_at};

/// An account that has something left only for clients that wait.
#[derive(Default)]
struct Kept {
    asked: Mutex<Vec<Priority>>,
    reported: Mutex<Vec<ReportedLimit>>,
}

impl Account for Kept {
    fn admit(&self, priority: Priority) -> BoxFuture<'_, Result<(), Duration>> {
        self.asked.lock().push(priority);
        ready(if priority == Priority::Pull { Ok(()) } else { Err(Duration::from_secs(60)) }).boxed()
    }

    fn observe(&self, reported: ReportedLimit) {
        self.reported.lock().push(reported);
    }
}

impl Kept {
    fn asked(&self) -> Vec<Priority> {
        std::mem::take(&mut self.asked.lock())
    }
}

fn client(fake: &FakeUpstream, kind: UpstreamKind) -> (Client, Arc<Kept>) {
    let account = Arc::new(Kept::default());
    let upstream = Upstream { kind, ..upstream_at(&fake.url()) };
    let client = Client::with_metrics(&upstream, REGISTRY, Limits::default(), &RequestMetrics::none(), account.clone());
    (client.expect("a client"), account)
}

#[tokio::test]
async fn docker_hub_counts_fetches_of_manifests_and_others_all_requests() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[random_bytes(1, 100)]);
    for (kind, counted) in [(UpstreamKind::DockerHub, [1, 0, 0, 0, 0]), (UpstreamKind::Oci, [1; 5])] {
        let (client, account) = client(&fake, kind);
        let (demo, layer) = (name("demo"), digest(&image.layers[0]));
        client.manifest(&demo, &reference("v1")).await.unwrap();
        let mut seen = vec![account.asked().len()];
        client.head_manifest(&demo, &reference("v1")).await.unwrap();
        seen.push(account.asked().len());
        read_blob(&client, "demo", &image.layers[0]).await.unwrap();
        seen.push(account.asked().len());
        client.head_blob(&demo, &layer).await.unwrap();
        seen.push(account.asked().len());
        client.tags(&demo).await.unwrap();
        seen.push(account.asked().len());
        assert_eq!(seen, counted, "{kind:?}");
    }
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_asked_for_when_the_rest_is_kept() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let (client, account) = client(&fake, UpstreamKind::DockerHub);
    let pull = async |client: &Client| client.manifest(&name("demo"), &reference("v1")).await;
    for priority in [Priority::Sync, Priority::Warm] {
        let error = pull(&client.at(priority)).await.unwrap_err();
        assert!(matches!(error, Error::OverBudget { retry_after } if retry_after == Duration::from_secs(60)));
        assert_eq!(account.asked(), [priority]);
    }
    assert_eq!(fake.request_count(), 0);
    assert_eq!(client.health().state, State::Healthy, "that says nothing of the upstream");
    // Uncounted requests continue, and so do those of clients.
    client.at(Priority::Warm).head_manifest(&name("demo"), &reference("v1")).await.unwrap();
    pull(&client).await.unwrap();
}

#[tokio::test]
async fn a_limit_is_heard_with_every_answer_about_a_manifest_and_from_the_endpoint_alone() {
    let fake = FakeUpstream::start().await;
    let other = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    fake.set_limit(2, Duration::from_secs(3600));
    let (client, account) = client(&fake, UpstreamKind::DockerHub);
    let remaining = || account.reported.lock().iter().map(|reported| reported.remaining).collect::<Vec<_>>();
    client.head_manifest(&name("demo"), &reference("v1")).await.unwrap();
    client.manifest(&name("demo"), &reference("v1")).await.unwrap();
    client.manifest(&name("demo"), &reference("v1")).await.unwrap();
    let error = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
    assert!(matches!(error, Error::Throttled { retry_after: None }), "{error:?}");
    assert_eq!(remaining(), [2, 1, 0, 0]);
    let reported = account.reported.lock()[0];
    assert_eq!((reported.budget.requests.get(), reported.budget.window), (2, Duration::from_secs(3600)));
    // Reports of other hosts do not concern this upstream.
    other.script("/v2/", Fault::Header("ratelimit-limit".into(), "9;w=60".into()));
    other.script("/v2/", Fault::Header("ratelimit-remaining".into(), "9;w=60".into()));
    fake.script("HEAD ", Fault::RedirectToOrigin(other.url()));
    let _ = client.head_manifest(&name("demo"), &reference("v1")).await;
    assert!(!remaining().contains(&9));
}
