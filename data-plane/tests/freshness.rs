//! Windows of 24 h with a clock that is moved: three nodes share a store and a Redis, 100 clients pull, and an upstream
//! moves tags, deletes them, throttles, denies and goes away. It is asked exactly as often as the rule says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/fixture.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::time::Duration;

use entrepot_proto::node::v1 as pb;
use entrepot_test_support::{Fault, Image, images, wait_until};
use entrepot_upstream::Limits;
use futures_util::future::join_all;
use parking_lot::Mutex;
use reqwest::StatusCode;

use fixture::{Fixture, LIMIT, Node};

const NODES: usize = 3;
const CLIENTS: usize = 100;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long an upstream that did not confirm a tag is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(15);

/// Three nodes under one rule, `demo`.
struct Cluster {
    fixture: Fixture,
    nodes: Vec<Node>,
    /// How many requests for each tag were counted in earlier rounds.
    counted: Mutex<BTreeMap<(&'static str, String), usize>>,
}

/// An answer to a client.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    digest: String,
    cache_status: String,
    age: Option<u64>,
    text: String,
}

/// The result of one round of pulls: all answers, and how often the upstream was asked.
struct Round {
    answers: Vec<Answer>,
    heads: usize,
    gets: usize,
}

/// How the upstream treats a tag in a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Confirms,
    Fails,
}

impl Cluster {
    async fn start(freshness: pb::SnapshotFreshness) -> Self {
        // One failure is one request, so that they can be counted, and nothing waits for the real clock.
        let limits = Limits { retries: 0, probe: Duration::ZERO, pause: Duration::ZERO, ..Limits::default() };
        let fixture = Fixture::with(&[("demo", freshness)], limits).await;
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            nodes.push(fixture.node(&format!("node-{number}")).await);
        }
        Self { fixture, nodes, counted: Mutex::default() }
    }

    fn publish(&self, tag: &str, seed: u64) -> Image {
        self.fixture.upstream.publish_image("app", tag, &[images::random_bytes(seed, 100)])
    }

    /// How often the upstream was asked about the tag since the last round. Late requests are counted in the next
    /// round.
    fn asked(&self, method: &'static str, tag: &str) -> usize {
        let path = format!("/v2/app/manifests/{tag}");
        let log = self.fixture.upstream.log();
        let count = log.iter().filter(|entry| entry.method == method && entry.path == path).count();
        count - self.counted.lock().get(&(method, tag.to_owned())).copied().unwrap_or_default()
    }

    /// How many claims for a lease with this outcome each node has made.
    fn claims(&self, outcome: &str) -> Vec<f64> {
        let line = format!("entrepot_lease_claim_duration_seconds_count{{outcome=\"{outcome}");
        self.nodes.iter().map(|node| node.metric(&line)).collect()
    }

    /// All clients pull the tag at once, from all nodes. Returns after all answers.
    async fn pull(&self, tag: &str) -> Vec<Answer> {
        let clients = (0..CLIENTS).map(|number| {
            let request = self.nodes[number % NODES].request(&format!("demo/app/manifests/{tag}"));
            async move {
                let answer = request.send().await.unwrap();
                let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
                Answer {
                    status: answer.status(),
                    digest: header("docker-content-digest").unwrap_or_default(),
                    cache_status: header("cache-status").unwrap_or_default(),
                    age: header("age").map(|age| age.parse().unwrap()),
                    text: answer.text().await.unwrap(),
                }
            }
        });
        join_all(clients).await
    }

    /// One round in which the pulls wait for the upstream.
    async fn round(&self, tag: &str) -> Round {
        let answers = self.pull(tag).await;
        self.settled().await;
        self.count(tag, answers)
    }

    /// One round in which each node asks in the background: the pulls end while the upstream's answers are held back.
    /// If the upstream confirms the tag to one node, the others need no request of their own.
    async fn round_with_work_behind(&self, tag: &str, upstream: Upstream) -> Round {
        let outcome = if upstream == Upstream::Confirms { "" } else { "granted" };
        let before = self.claims(outcome);
        let gate = self.fixture.upstream.hold(format!("HEAD /v2/app/manifests/{tag}"));
        let answers = self.pull(tag).await;
        gate.release();
        let each_has_claimed = || self.claims(outcome).iter().zip(&before).all(|(now, before)| now > before);
        wait_until(LIMIT, "each node has had its turn", async || each_has_claimed()).await;
        self.settled().await;
        self.count(tag, answers)
    }

    fn count(&self, tag: &str, answers: Vec<Answer>) -> Round {
        let (heads, gets) = (self.asked("HEAD", tag), self.asked("GET", tag));
        let mut counted = self.counted.lock();
        for (method, more) in [("HEAD", heads), ("GET", gets)] {
            *counted.entry((method, tag.to_owned())).or_default() += more;
        }
        Round { answers, heads, gets }
    }

    /// Waits until no node is asking the upstream.
    async fn settled(&self) {
        let redis = &self.fixture.redis;
        wait_until(LIMIT, "all leases are given back", async || redis.dump().await.is_empty()).await;
    }
}

impl Round {
    /// Asserts how often the upstream was asked.
    #[track_caller]
    fn asked(self, heads: usize, gets: usize) -> Self {
        assert_eq!((self.heads, self.gets), (heads, gets), "HEADs and GETs");
        self
    }

    /// Asserts that all clients got this image.
    #[track_caller]
    fn got(self, image: &Image) -> Self {
        let wrong = self.answers.iter().find(|a| a.status != StatusCode::OK || a.digest != image.manifest);
        assert!(wrong.is_none(), "{wrong:?}");
        self
    }

    /// Asserts that all clients were refused, with these words.
    #[track_caller]
    fn refused(self, status: StatusCode, words: &[&str]) -> Self {
        let fits = |a: &Answer| a.status == status && words.iter().all(|word| a.text.contains(word));
        let wrong = self.answers.iter().find(|answer| !fits(answer));
        assert!(wrong.is_none(), "{wrong:?}");
        self
    }

    /// Asserts how all answers came about.
    #[track_caller]
    fn all(self, cache_status: &str, age: Duration) -> Self {
        let fits = |a: &Answer| a.cache_status == cache_status && a.age == Some(age.as_secs());
        let wrong = self.answers.iter().find(|answer| !fits(answer));
        assert!(wrong.is_none(), "{wrong:?}");
        self
    }

    /// How many answers came about in which way.
    fn kinds(&self) -> BTreeMap<&str, usize> {
        let mut kinds = BTreeMap::new();
        for answer in &self.answers {
            *kinds.entry(answer.cache_status.as_str()).or_default() += 1;
        }
        kinds
    }
}

fn seconds(length: Duration) -> Option<prost_types::Duration> {
    Some(entrepot_proto::convert::duration(length))
}

const STALE: &str = "entrepot; hit; detail=stale";
const BEHIND: &str = "entrepot; hit; detail=background";

#[tokio::test]
async fn blocking_asks_once_in_a_window_and_before_it_serves() {
    let cluster = Cluster::start(pb::SnapshotFreshness::default()).await;
    let (clock, upstream) = (&cluster.fixture, &cluster.fixture.upstream);
    let old = cluster.publish("latest", 1);
    cluster.round("latest").await.asked(0, 1).got(&old);
    clock.advance(DAY / 2).await;
    cluster.round("latest").await.asked(0, 0).got(&old).all("entrepot; hit", DAY / 2);
    clock.advance(DAY / 2).await;
    let round = cluster.round("latest").await.asked(1, 0).got(&old);
    assert!(round.kinds().contains_key("entrepot; hit; detail=revalidated"), "{:?}", round.kinds());
    assert!(round.answers.iter().all(|answer| answer.age == Some(0)), "it was confirmed for all of them");

    let new = cluster.publish("latest", 2);
    clock.advance(DAY).await;
    cluster.round("latest").await.asked(1, 1).got(&new);

    upstream.script("manifests/", Fault::Status(429, Some("60".to_owned())));
    clock.advance(DAY).await;
    cluster.round("latest").await.asked(NODES, 0).got(&new).all(STALE, DAY);
    cluster.round("latest").await.asked(0, 0).got(&new).all(STALE, DAY);
    clock.advance(LEFT_ALONE).await;
    cluster.round("latest").await.asked(NODES, 0).got(&new).all(STALE, DAY + LEFT_ALONE);
    upstream.heal();
    clock.advance(LEFT_ALONE).await;
    cluster.round("latest").await.asked(1, 0).got(&new);

    upstream.stop().await;
    clock.advance(DAY).await;
    cluster.round("latest").await.asked(0, 0).got(&new).all(STALE, DAY);
    upstream.resume().await;
    clock.advance(LEFT_ALONE).await;
    cluster.round("latest").await.asked(1, 0).got(&new);

    upstream.script("HEAD /v2/app/manifests/", Fault::NoDigestHeader);
    clock.advance(DAY).await;
    cluster.round("latest").await.asked(1, 1).got(&new);
    upstream.heal();
    upstream.remove("app", "latest");
    clock.advance(DAY).await;
    cluster.round("latest").await.asked(NODES, NODES).got(&new).all(STALE, DAY);
}

#[tokio::test]
async fn background_serves_what_is_cached_and_asks_once_behind_it() {
    let freshness = pb::SnapshotFreshness { mode: "BACKGROUND".to_owned(), ..Default::default() };
    let cluster = Cluster::start(freshness).await;
    let (clock, upstream) = (&cluster.fixture, &cluster.fixture.upstream);
    let old = cluster.publish("latest", 1);
    cluster.round("latest").await.asked(0, 1).got(&old);
    clock.advance(DAY - HOUR).await;
    cluster.round("latest").await.asked(0, 0).got(&old).all("entrepot; hit", DAY - HOUR);
    clock.advance(HOUR).await;
    cluster.round_with_work_behind("latest", Upstream::Confirms).await.asked(1, 0).got(&old).all(BEHIND, DAY);
    cluster.round("latest").await.asked(0, 0).got(&old).all("entrepot; hit", Duration::ZERO);

    let new = cluster.publish("latest", 2);
    clock.advance(DAY).await;
    cluster.round_with_work_behind("latest", Upstream::Confirms).await.asked(1, 1).got(&old).all(BEHIND, DAY);
    cluster.round("latest").await.asked(0, 0).got(&new);

    upstream.script("manifests/", Fault::Status(429, None));
    clock.advance(DAY).await;
    cluster.round_with_work_behind("latest", Upstream::Fails).await.asked(NODES, 0).got(&new).all(BEHIND, DAY);
    cluster.round("latest").await.asked(0, 0).got(&new).all(STALE, DAY);
    upstream.heal();
    upstream.stop().await;
    clock.advance(LEFT_ALONE).await;
    cluster.round_with_work_behind("latest", Upstream::Fails).await.asked(0, 0).got(&new);
    upstream.resume().await;
    upstream.remove("app", "latest");
    clock.advance(LEFT_ALONE).await;
    cluster.round_with_work_behind("latest", Upstream::Fails).await.asked(NODES, NODES).got(&new);
}

#[tokio::test]
async fn off_never_asks_and_neither_does_a_tag_that_never_moves() {
    let freshness = pb::SnapshotFreshness {
        immutable_tags: vec!["v*".to_owned()],
        tag_windows: vec![pb::SnapshotTagWindow {
            pattern: "dev".to_owned(),
            window: seconds(HOUR),
            mode: "BLOCKING".to_owned(),
        }],
        mode: "OFF".to_owned(),
        ..Default::default()
    };
    let cluster = Cluster::start(freshness).await;
    let [latest, v1, dev] = ["latest", "v1", "dev"].map(|tag| (tag, cluster.publish(tag, 1)));
    for (tag, image) in [&latest, &v1, &dev] {
        cluster.round(tag).await.asked(0, 1).got(image);
    }
    let moved = ["latest", "v1", "dev"].map(|tag| cluster.publish(tag, 2));
    cluster.fixture.advance(HOUR).await;
    for (tag, image) in [&latest, &v1] {
        cluster.round(tag).await.asked(0, 0).got(image).all("entrepot; hit", HOUR);
    }
    cluster.round("dev").await.asked(1, 1).got(&moved[2]);
    cluster.fixture.upstream.stop().await;
    cluster.fixture.advance(DAY * 1000).await;
    for (tag, image) in [&latest, &v1] {
        cluster.round(tag).await.asked(0, 0).got(image).all("entrepot; hit", DAY * 1000 + HOUR);
    }
}

#[tokio::test]
async fn a_window_of_zero_asks_once_for_all_who_pull_at_one_moment() {
    let cluster = Cluster::start(pb::SnapshotFreshness { window: seconds(Duration::ZERO), ..Default::default() }).await;
    let old = cluster.publish("latest", 1);
    cluster.round("latest").await.asked(0, 1).got(&old);
    for _ in 0..3 {
        cluster.fixture.advance(Duration::from_secs(1)).await;
        cluster.round("latest").await.asked(1, 0).got(&old);
    }
    let new = cluster.publish("latest", 2);
    cluster.fixture.advance(Duration::from_secs(1)).await;
    cluster.round("latest").await.asked(1, 1).got(&new);
}

#[tokio::test]
async fn a_tag_that_the_upstream_has_no_more_is_dropped_where_the_rule_says_so() {
    let drops = pb::SnapshotFreshness { when_deleted: "DROP".to_owned(), ..Default::default() };
    let cluster = Cluster::start(drops).await;
    let image = cluster.publish("latest", 1);
    cluster.round("latest").await.asked(0, 1).got(&image);
    cluster.fixture.upstream.remove("app", "latest");
    cluster.fixture.advance(DAY / 2).await;
    cluster.round("latest").await.asked(0, 0).got(&image);
    cluster.fixture.advance(DAY / 2).await;
    let gone = ["MANIFEST_UNKNOWN", "the upstream of rule `demo` does not have it"];
    // Some upstreams do not support HEAD and answer like this: one fetch shows the truth.
    cluster.round("latest").await.asked(1, 1).refused(StatusCode::NOT_FOUND, &gone);
    cluster.round("latest").await.asked(0, 0).refused(StatusCode::NOT_FOUND, &gone);
    cluster.round(&image.manifest).await.asked(0, 0).got(&image);

    let again = cluster.publish("latest", 2);
    cluster.fixture.advance(Duration::from_secs(60)).await;
    cluster.round("latest").await.asked(0, 1).got(&again);
}

#[tokio::test]
async fn a_denial_is_passed_on_where_the_rule_says_so() {
    for (mode, asked) in [("BLOCKING", NODES), ("BACKGROUND", NODES)] {
        let freshness =
            pb::SnapshotFreshness { mode: mode.to_owned(), when_denied: "FAIL".to_owned(), ..Default::default() };
        let cluster = Cluster::start(freshness).await;
        let image = cluster.publish("latest", 1);
        cluster.round("latest").await.asked(0, 1).got(&image);
        cluster.fixture.upstream.script("manifests/", Fault::Status(403, None));
        cluster.fixture.advance(DAY).await;
        // Some upstreams refuse only HEAD, so a GET decides.
        let denied = ["DENIED", "the upstream `local` of rule `demo` denies access"];
        if mode == "BLOCKING" {
            cluster.round("latest").await.asked(asked, asked).refused(StatusCode::FORBIDDEN, &denied);
        } else {
            cluster.round_with_work_behind("latest", Upstream::Fails).await.asked(asked, asked).got(&image);
            cluster.round("latest").await.asked(0, 0).refused(StatusCode::FORBIDDEN, &denied);
            cluster.fixture.advance(LEFT_ALONE).await;
            cluster.round("latest").await.asked(asked, asked).refused(StatusCode::FORBIDDEN, &denied);
        }
        cluster.fixture.upstream.heal();
        cluster.fixture.advance(LEFT_ALONE).await;
        cluster.round("latest").await.asked(1, 0).got(&image);
    }
}

#[tokio::test]
async fn a_tag_that_nobody_confirms_is_served_as_long_as_the_rule_says_and_then_honestly_refused() {
    let freshness = pb::SnapshotFreshness { max_stale: seconds(DAY * 2), ..Default::default() };
    let cluster = Cluster::start(freshness).await;
    let image = cluster.publish("latest", 1);
    cluster.round("latest").await.asked(0, 1).got(&image);
    cluster.fixture.upstream.script("manifests/", Fault::Status(502, None));
    cluster.fixture.advance(DAY * 2).await;
    cluster.round("latest").await.asked(NODES, 0).got(&image).all(STALE, DAY * 2);
    cluster.fixture.advance(LEFT_ALONE).await;
    let words = ["rule `demo` serves a tag unconfirmed for 2d at most", "upstream `local`", "is away (status 502)"];
    cluster.round("latest").await.asked(NODES, 0).refused(StatusCode::SERVICE_UNAVAILABLE, &words);
    cluster.round("latest").await.asked(0, 0).refused(StatusCode::SERVICE_UNAVAILABLE, &words);
    cluster.round(&image.manifest).await.asked(0, 0).got(&image);
    cluster.fixture.upstream.heal();
    cluster.fixture.advance(LEFT_ALONE).await;
    cluster.round("latest").await.asked(1, 0).got(&image);
}
