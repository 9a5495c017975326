//! The program itself, with a real bucket.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_records::{check_layout, layout};
use entrepot_store::bucket::{AccessKey, BucketConfig, Service};
use entrepot_store::{BlobStore, BucketStore, Prefix};
use entrepot_test_support::program::{Host, probe};
use entrepot_test_support::{FakeUpstream, Fault, OtlpCollector, Program, Seaweed, images, wait_until};

use crate::fixture::{Fixture, KEY, LIMIT};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

const REGISTRY: u16 = 15_000;
const OPERATIONS: u16 = 15_002;
const PEER: u16 = 15_003;

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_entrepot-data-plane")
}

/// Runs the program to its end. Returns its exit code and its standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program()).args(arguments).env_clear().output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn keys(fixture: &Fixture) -> (PathBuf, PathBuf) {
    let (cluster, public) = (fixture.dir.path().join("cluster.key"), fixture.dir.path().join("snapshot.pub"));
    std::fs::write(&cluster, fixture.cluster_key.to_text().expose()).unwrap();
    std::fs::set_permissions(&cluster, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fixture.signer.public_key().save(&public).unwrap();
    (cluster, public)
}

#[test]
fn all_mistakes_are_told_together_and_no_secret_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("entrepot.toml");
    let text = r#"
        [registry]
        listen = "everywhere"
        trusted_proxies = ["10.0.0.0/8", "the proxy"]
        external_url = "registry.example"
        [node]
        id = "Node 1"
        cache_size = 10
        [control]
        apis = []
        [redis]
        urls = ["redis://user:hunter22@cache"]
        [peer]
        address = "http://10.0.0.5:5003/path"
        ca_file = "/nowhere/ca.pem"
        [filling]
        [postgres]
        url = "of the other program"
        [store]
        bucket = "b"
        kind = "tape"
        [drain]
        notic = "15s"
    "#;
    std::fs::write(&file, text).unwrap();
    let (code, said) = run(&["--check", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{said}");
    for place in [
        "registry.listen",
        "registry.trusted_proxies",
        "registry.external_url",
        "node.id",
        "node.cache_size",
        "control.apis",
        "redis.urls",
        "peer.address",
        "peer.ca_file",
        "[filling]",
        "store.kind",
        "drain.notic",
        "keys.cluster_key_file",
    ] {
        assert!(said.contains(place), "{place} is not among the mistakes:\n{said}");
    }
    assert!(!said.contains("hunter22") && !said.contains("[postgres]") && !said.contains("panicked"), "{said}");
    let (code, again) = run(&["--config", file.to_str().unwrap()]);
    assert_eq!((code, again), (Some(2), said), "a start tells the same");
}

#[test]
fn clear_text_away_from_loopback_is_refused_unless_it_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("entrepot.toml");
    let mistakes = |registry: &str| {
        std::fs::write(&file, format!("[registry]\n{registry}")).unwrap();
        run(&["--check", "--config", file.to_str().unwrap()]).1
    };
    for open in ["listen = '0.0.0.0:5000'", "listen = '[::]:5000'"] {
        let said = mistakes(open);
        assert!(said.contains("registry.listen") && said.contains("allow_plain = true"), "{said}");
        assert!(!mistakes(&format!("{open}\nallow_plain = true")).contains("registry.listen"));
    }
    assert!(!mistakes("").contains("registry.listen"), "it is on loopback unless told otherwise");
}

#[test]
fn a_right_configuration_passes_the_check_and_the_version_is_told() {
    let fixture = Fixture::new();
    let file = configuration(&fixture, Host::free(), &bucket("http://127.0.0.1:1".to_owned(), "b"), "");
    let (code, said) = run(&["--check", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    let output = Command::new(program()).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        concat!("entrepot-data-plane ", env!("CARGO_PKG_VERSION"))
    );
}

fn bucket(endpoint: String, name: &str) -> BucketConfig {
    BucketConfig {
        bucket: name.to_owned(),
        prefix: Prefix::all(),
        endpoint: Some(endpoint.parse().unwrap()),
        allow_plain_http: true,
        trusted_certificates: None,
        proxy: None,
        service: Service::S3 {
            region: Seaweed::REGION.to_owned(),
            path_style: true,
            credentials: Some(AccessKey {
                id: Seaweed::ACCESS_KEY_ID.to_owned(),
                secret: Secret::new(Seaweed::SECRET_ACCESS_KEY.to_owned()),
            }),
        },
    }
}

fn configuration(fixture: &Fixture, host: Host, bucket: &BucketConfig, more: &str) -> PathBuf {
    let (cluster, public) = keys(fixture);
    let show = |path: &Path| path.display().to_string();
    let text = format!(
        r#"
        [registry]
        listen = "{registry}"
        [peer]
        listen = "{peer}"
        address = "http://{peer}"
        [node]
        id = "node-1"
        data_dir = "{data}"
        [control]
        apis = ["http://127.0.0.1:1"]
        [operations]
        listen = "{operations}"
        [store]
        kind = "s3"
        bucket = "{name}"
        endpoint = "{endpoint}"
        allow_plain_http = true
        access_key_id = "{id}"
        secret_access_key = "{secret}"
        [keys]
        cluster_key_file = "{cluster}"
        snapshot_public_key_files = ["{public}"]
        [drain]
        notice = "2s"
        limit = "30s"
        {more}
        "#,
        registry = host.at(REGISTRY),
        peer = host.at(PEER),
        operations = host.at(OPERATIONS),
        data = show(&fixture.dir.path().join("data")),
        name = bucket.bucket,
        endpoint = bucket.endpoint.as_ref().unwrap(),
        id = Seaweed::ACCESS_KEY_ID,
        secret = Seaweed::SECRET_ACCESS_KEY,
        cluster = show(&cluster),
        public = show(&public),
    );
    let file = fixture.dir.path().join("entrepot.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A bucket with a snapshot, and the program using it.
struct Setting {
    // It ends before its log is removed.
    program: Program,
    upstream: FakeUpstream,
    store: BucketStore,
    host: Host,
    _ground: Fixture,
}

async fn setting(seaweed: &Seaweed, more: &str) -> Setting {
    let (fixture, upstream) = (Fixture::new(), FakeUpstream::start().await);
    let bucket = bucket(seaweed.endpoint(), &seaweed.bucket().await);
    let store = BucketStore::open(bucket.clone(), "a-test".parse().unwrap()).await.unwrap();
    check_layout(&store).await.unwrap();
    fixture.publish_into(&store, 1, &upstream).await;
    let host = Host::free();
    let file = configuration(&fixture, host, &bucket, more);
    let program = Program::new("node-1", program(), fixture.dir.path()).arg("--config").arg(file);
    Setting { program, upstream, store, host, _ground: fixture }
}

impl Setting {
    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        client.get(format!("http://{}{path}", self.host.at(REGISTRY))).basic_auth(KEY.0, Some(KEY.1))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_at_the_start_is_waited_for_while_probes_are_answered() {
    let Some(seaweed) = Seaweed::start().await else { return };
    let setting = setting(&seaweed, "").await;
    let image = setting.upstream.publish_image("app", "v1", &[images::random_bytes(1, 2 << 20)]);
    seaweed.stop().await;
    setting.program.start();
    let operations = setting.host.at(OPERATIONS);
    setting.program.until_not_ready(operations).await;
    assert_eq!(probe(operations, "/livez").await.unwrap().status, 200);
    wait_until(LIMIT, "it says what it waits for", async || {
        probe(operations, "/readyz").await.is_ok_and(|probed| probed.text.contains("store: "))
    })
    .await;
    assert!(setting.get("/v2/").send().await.is_err(), "clients are not kept waiting");
    seaweed.resume().await;
    setting.program.until_ready(operations).await;
    let metrics = probe(operations, "/metrics").await.unwrap();
    assert!(metrics.metric("entrepot_store_operation_duration_seconds_count", &["outcome=\"ok\""]) >= 1.0);
    assert_eq!(metrics.metric("entrepot_store_away", &[]), 0.0);
    let blob = format!("/v2/demo/app/blobs/{}", image.layers[0]);
    assert_eq!(setting.get("/v2/demo/app/manifests/v1").send().await.unwrap().status(), 200);
    assert_eq!(setting.get(&blob).send().await.unwrap().bytes().await.unwrap().len(), 2 << 20);
    assert_eq!(setting.program.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sigterm_it_is_not_ready_at_once_serves_on_for_its_notice_and_leaves_nothing() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let setting = setting(seaweed, "").await;
    let image = setting.upstream.publish_image("app", "v1", &[images::random_bytes(1, 6 << 20)]);
    setting.upstream.publish_image("late", "v1", &[images::random_bytes(2, 100)]);
    setting.program.start();
    let operations = setting.host.at(OPERATIONS);
    setting.program.until_ready(operations).await;
    assert_eq!(setting.get("/v2/demo/app/manifests/v1").send().await.unwrap().status(), 200);
    setting.upstream.script(&image.layers[0], Fault::Rate(1 << 20));
    let mut streaming = setting.get(&format!("/v2/demo/app/blobs/{}", image.layers[0])).send().await.unwrap();
    let mut bytes = streaming.chunk().await.unwrap().unwrap().to_vec();

    setting.program.terminate();
    setting.program.until_not_ready(operations).await;
    let late = setting.get("/v2/demo/late/manifests/v1").send().await.unwrap();
    assert_eq!(late.status(), 200, "those who have not looked away yet are served");
    let registry = setting.host.at(REGISTRY);
    let refuses = async || tokio::net::TcpStream::connect(registry).await.is_err();
    wait_until(LIMIT, "no connection is taken any more", refuses).await;
    assert!(setting.program.is_running());
    while let Some(chunk) = streaming.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(images::sha256(&bytes), image.layers[0]);
    assert_eq!(setting.program.ended().await.code(), Some(0));
    let left = async |prefix: Prefix| setting.store.list(&prefix, None, 10).await.unwrap();
    assert!(left(layout::nodes_prefix()).await.is_empty(), "its record is gone");
    assert!(left(layout::all_uploads_prefix()).await.is_empty(), "no upload is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_trace_goes_on_through_the_node_and_ends_there() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let collector = OtlpCollector::start().await;
    let more = format!("[telemetry]\notlp_endpoint = \"{}\"\notlp_interval = \"1s\"", collector.url());
    let setting = setting(seaweed, &more).await;
    let image = setting.upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    setting.program.start();
    setting.program.until_ready(setting.host.at(OPERATIONS)).await;
    assert_eq!(setting.get("/v2/demo/app/manifests/v1").send().await.unwrap().status(), 200);

    let blob = setting.get(&format!("/v2/demo/app/blobs/{}", image.layers[0]));
    let blob = blob.header("traceparent", format!("00-{TRACE}-{CALLER}-01")).send().await.unwrap();
    assert_eq!(blob.bytes().await.unwrap().len(), 3 << 20);
    const SERVER: &str = "GET /v2/{name}/blobs/{digest}";
    let trace = || collector.trace(TRACE);
    for name in [SERVER, "pull", "fill", "upstream.request"] {
        let what = format!("the span `{name}` comes");
        wait_until(Duration::from_secs(60), &what, async || trace().iter().any(|span| span.name == name)).await;
    }
    let spans = trace();
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let server = span(SERVER);
    assert_eq!((server.service.as_str(), server.parent_id.as_str()), ("entrepot-data-plane", CALLER));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/v2/{name}/blobs/{digest}"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(server.attributes.get(key).map(String::as_str), Some(value), "{:?}", server.attributes);
    }
    let request = span("upstream.request");
    for (key, value) in
        [("server.address", "127.0.0.1"), ("http.request.method", "GET"), ("http.response.status_code", "200")]
    {
        assert_eq!(request.attributes.get(key).map(String::as_str), Some(value), "{:?}", request.attributes);
    }
    for span in &spans {
        let hangs = span.parent_id != CALLER && !spans.iter().any(|other| other.span_id == span.parent_id);
        assert!(!hangs, "`{}` hangs in the air", span.name);
    }
    for entry in setting.upstream.log() {
        assert!(!entry.headers.contains_key("traceparent"), "the upstream is told of our traces");
    }
    assert_eq!(setting.program.stop().await.code(), Some(0));
    assert!(collector.metrics().iter().any(|metric| metric.name == "http.server.request.duration"));
}
