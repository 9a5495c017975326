//! No secret is anywhere in clear: database, Redis, bucket, logs, metrics and telemetry are searched for all of them.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use entrepot_proto::v1 as pb;
use entrepot_store::{BlobStore as _, Entry, Prefix};
use entrepot_test_support::upstream::Auth;
use entrepot_test_support::{FakeUpstream, images};
use http::{Method, StatusCode};

use crate::client::{Credential, send};
use crate::cluster::{ADMIN, Cluster, admin_key};
use crate::report::report;

const UPSTREAM: (&str, &str) = ("upstream-robot", "upstream-password-55102");
const WRONG: &str = "mistyped-password-90210";
/// Put where a secret must not be, to see that it is found there.
const PLANTED: &str = "planted-secret-31337";

/// By how much of its beginning a form is looked up.
const BEGINS: usize = 8;

/// A secret, in every form in which somebody could read it.
struct Needle {
    what: String,
    forms: Vec<Vec<u8>>,
}

impl Needle {
    fn text(what: &str, secret: &str) -> Self {
        Self::bytes(what, secret.as_bytes())
    }

    /// A secret that is any bytes: raw, in hex, in Base64.
    fn bytes(what: &str, secret: &[u8]) -> Self {
        assert!(secret.len() >= BEGINS, "`{what}` is too short to be searched for");
        let hex = hex::encode(secret);
        let texts = [
            hex.to_uppercase(),
            hex,
            STANDARD.encode(secret),
            STANDARD_NO_PAD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
        ];
        let mut forms: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
        forms.push(secret.to_vec());
        Self { what: what.to_owned(), forms }
    }
}

/// A place where secrets could be.
struct Haystack {
    place: String,
    bytes: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_key_or_token_of_a_run_is_anywhere_in_clear() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.set_auth(Auth::Token(UPSTREAM.0.to_owned(), UPSTREAM.1.to_owned()));
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 6 << 20), images::random_bytes(2, 1000)]);
    upstream.publish_image(PLANTED, "v1", &[images::random_bytes(3, 1000)]);
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    let mut needles = use_every_secret(&cluster, &upstream).await?;
    needles.extend(configured(&cluster)?);

    // The search finds what is there to be found, in each place.
    plant(&cluster).await?;
    needles.push(Needle::text("what was planted", PLANTED));
    let (search, haystacks) = (Search::of(&needles), haystacks(&cluster).await?);
    let mut finds = Vec::new();
    for haystack in &haystacks {
        let mut found = search.finds(&haystack.bytes);
        assert!(found.remove("what was planted"), "the search is blind in {}", haystack.place);
        finds.extend(found.into_iter().map(|what| format!("{what} is in {}", haystack.place)));
    }
    let size: usize = haystacks.iter().map(|haystack| haystack.bytes.len()).sum();
    report("secrets that were searched for", needles.len() - 1);
    report("places that were searched", format!("{} with {size} bytes", haystacks.len()));
    report("found in clear", finds.len());
    assert!(finds.is_empty(), "{finds:#?}");
    Ok(())
}

/// Does everything that takes a secret, and says which there were.
async fn use_every_secret(cluster: &Cluster, upstream: &FakeUpstream) -> Result<Vec<Needle>> {
    let api = cluster.api();
    api.upstream_with_password("demo", upstream, Some(UPSTREAM)).await?;
    api.rule_to("demo", "demo").await?;
    let principal = pb::Principal { permission_set: pb::PermissionSet::Puller.into(), ..Default::default() };
    let principal_id = "robot".to_owned();
    let request = pb::CreatePrincipalRequest { principal_id, principal: Some(principal), request_id: String::new() };
    api.principals().create_principal(request).await?;
    // A request id makes the control plane remember the request.
    let request_id = uuid::Uuid::new_v4().to_string();
    let request = pb::CreateAccessKeyRequest { parent: "principals/robot".to_owned(), request_id };
    let robot = api.access_keys().create_access_key(request).await?.into_inner();
    let robot_key = robot.access_key.context("a key")?.key_id;
    let login = api.login_token().await?;

    let mut needles = vec![
        Needle::text("the administrator's secret", ADMIN.1),
        Needle::text("the administrator's key", &admin_key()),
        Needle::text("the upstream's password", UPSTREAM.1),
        Needle::text("the upstream's name and password", &format!("{}:{}", UPSTREAM.0, UPSTREAM.1)),
        Needle::text("an access key's secret", &robot.secret),
        Needle::text("a login token", &login),
        Needle::text("a wrong password", WRONG),
    ];
    for node in &cluster.nodes {
        for (name, password) in [("AWS", &*login), (&*robot_key, &*robot.secret), ADMIN] {
            let client = node.client().with(Credential::Password(name.to_owned(), password.to_owned()));
            let Credential::Bearer(bearer) = client.log_in("demo/app").await?.credential().clone() else { continue };
            client.with(Credential::Bearer(bearer.clone())).pull("demo/app", "v1").await?;
            needles.push(Needle::text(&format!("a bearer token of `{name}` by `{}`", node.name()), &bearer));
        }
        let wrong = node.client().with(Credential::Password(ADMIN.0.to_owned(), WRONG.to_owned()));
        assert_eq!(wrong.get("/v2/").await?.status, StatusCode::UNAUTHORIZED);
        // People put secrets where they do not belong.
        let query = format!("/v2/demo/app/manifests/v1?password={}", ADMIN.1);
        node.client().get(&query).await?;
        let form = format!("grant_type=password&username=AWS&scope=repository:demo/app:pull&password={login}");
        let posted = node.client().with(Credential::Nobody).request(Method::POST, "/token");
        let posted = posted.header("content-type", "application/x-www-form-urlencoded").body(form);
        assert_eq!(send(posted).await?.status, StatusCode::OK);
    }
    for entry in upstream.log() {
        let token = entry.authorization().and_then(|text| text.strip_prefix("Bearer ")).map(str::to_owned);
        needles.extend(token.map(|token| Needle::text("a token of the upstream", &token)));
    }
    // An upstream that fails is talked about in logs.
    upstream.set_auth(Auth::Token(UPSTREAM.0.to_owned(), "changed".to_owned()));
    let refused = cluster.nodes[0].client().get("/v2/demo/other/manifests/v1").await?;
    assert!(refused.status.is_server_error() || refused.status.is_client_error());
    upstream.set_auth(Auth::Token(UPSTREAM.0.to_owned(), UPSTREAM.1.to_owned()));
    Ok(needles)
}

/// The secrets that the configuration names.
fn configured(cluster: &Cluster) -> Result<Vec<Needle>> {
    let key = |file: &str| -> Result<Vec<u8>> {
        let text = std::fs::read_to_string(cluster.shared.keys().join(file))?;
        let digits = text.trim().rsplit_once(':').context("a key file has a label")?.1;
        Ok(hex::decode(digits)?)
    };
    Ok(vec![
        Needle::bytes("the cluster key", &key("cluster.key")?),
        Needle::bytes("the snapshot seed", &key("snapshot.key")?),
        Needle::text("the bucket's secret", &cluster.shared.store.secret_access_key),
        Needle::text("the password of Redis", &cluster.shared.redis_password),
        Needle::text("the password of Postgres", &cluster.shared.postgres_password),
    ])
}

/// Puts something into each place that the search must find: by a pull of a repository of that name where that does
/// it, by hand elsewhere.
async fn plant(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        node.client().pull(&format!("demo/{PLANTED}"), "v1").await?;
    }
    cluster.api().listed(&format!("demo/{PLANTED}"), "v1").await;
    cluster.redis.command(&["SET", "planted", PLANTED]).await;
    let collected = async || String::from_utf8_lossy(&cluster.otlp.raw()).contains(PLANTED);
    cluster.until("the planted name has come by OTLP", collected).await;
    cluster.store().await?.put(&"nodes/planted".parse()?, Bytes::from_static(PLANTED.as_bytes())).await?;
    Ok(())
}

/// Everything that the run has left anywhere.
async fn haystacks(cluster: &Cluster) -> Result<Vec<Haystack>> {
    let mut haystacks = vec![
        Haystack { place: "the database".to_owned(), bytes: cluster.postgres_program("pg_dump", &[&cluster.database]) },
        Haystack { place: "Redis".to_owned(), bytes: cluster.redis.dump().await.into_bytes() },
        Haystack { place: "the bucket".to_owned(), bytes: bucket(cluster).await? },
        Haystack { place: "what came by OTLP".to_owned(), bytes: cluster.otlp.raw() },
    ];
    let (mut logs, mut metrics) = (String::new(), String::new());
    for member in cluster.control_planes.iter().chain(&cluster.nodes) {
        logs += &member.program.log();
        metrics += &member.metrics().await?.text;
    }
    haystacks.push(Haystack { place: "the logs".to_owned(), bytes: logs.into_bytes() });
    // No label of a metric has unbounded values, so none can be made to hold what is planted.
    metrics += &format!("# {PLANTED}\n");
    haystacks.push(Haystack { place: "the metrics".to_owned(), bytes: metrics.into_bytes() });
    Ok(haystacks)
}

/// All objects of the bucket with their keys.
async fn bucket(cluster: &Cluster) -> Result<Vec<u8>> {
    let store = cluster.store().await?;
    let mut everything = Vec::new();
    for folder in ["content", "blobs", "repositories", "uploads", "snapshot", "nodes", "events"] {
        let prefix = Prefix::below(folder).context("a folder")?;
        for Entry { key, .. } in store.list(&prefix, None, 10_000).await? {
            everything.extend_from_slice(key.as_str().as_bytes());
            everything.push(b'\n');
            if let Ok(Some(object)) = store.get(&key).await {
                everything.extend_from_slice(&object.bytes);
            }
        }
    }
    Ok(everything)
}

/// All needles' forms by how they begin, so that one walk over a place finds any of them.
struct Search<'a> {
    needles: &'a [Needle],
    begins: HashMap<[u8; BEGINS], Vec<(usize, &'a [u8])>>,
    /// Which pairs of bytes a form begins with at all.
    possible: Vec<bool>,
}

impl<'a> Search<'a> {
    fn of(needles: &'a [Needle]) -> Self {
        let mut search = Self { needles, begins: HashMap::new(), possible: vec![false; 1 << 16] };
        for (number, needle) in needles.iter().enumerate() {
            for form in &needle.forms {
                let begin = *form.first_chunk().expect("long enough to be searched for");
                search.begins.entry(begin).or_default().push((number, form));
                search.possible[usize::from(u16::from_ne_bytes([form[0], form[1]]))] = true;
            }
        }
        search
    }

    /// What is found in `bytes`.
    fn finds(&self, bytes: &[u8]) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        for (at, begin) in bytes.array_windows::<BEGINS>().enumerate() {
            if !self.possible[usize::from(u16::from_ne_bytes([begin[0], begin[1]]))] {
                continue;
            }
            let forms = self.begins.get(begin).into_iter().flatten();
            let here = forms.filter(|(_, form)| bytes[at..].starts_with(form));
            found.extend(here.map(|(number, _)| &*self.needles[*number].what));
        }
        found
    }
}
