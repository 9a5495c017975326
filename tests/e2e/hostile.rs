//! Every way in which an upstream misbehaves, for blobs, manifests and indexes, with one client and with many: each
//! client ends with the right bytes or an honest error, nothing wrong is stored, and nothing is left over.
//!
//! In a process of its own, one test after the other: what is left over is counted in tasks and bytes of the process.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[expect(dead_code, reason = "other tests need more of it")]
mod registry;
mod report;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use entrepot_data_plane::UpstreamLimits;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, PointerRecord};
use entrepot_store::Entry;
use entrepot_test_support::{Auth, FakeUpstream, Fault, images, wait_until};
use futures_util::{StreamExt as _, future};
use peak_alloc::PeakAlloc;
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use registry::{LIMIT, Registry};
use report::report;

/// Counts the bytes in use, whatever the allocator below it keeps for later.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Whose turn it is.
static TURN: Mutex<()> = Mutex::const_new(());

/// How many clients want the same at once.
const CLIENTS: [usize; 2] = [1, 20];
/// How many rows of the table are tried at once.
const ROWS_AT_ONCE: usize = 12;
/// How many more connections to Postgres, each with a task, the control plane may have made meanwhile: its whole pool.
/// There are many more pulls in each test.
const DATABASE_TASKS: usize = 8;

/// How a client's pull ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// With the right bytes and a proper end.
    Right,
    /// With an end that is none, so that the client notices.
    CutShort,
    /// With this status and this code.
    Says(u16, String),
    /// With what it must never end with.
    Wrong(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("right"),
            Self::CutShort => f.write_str("cut"),
            Self::Says(status, code) => write!(f, "{status} {code}"),
            Self::Wrong(what) => write!(f, "WRONG: {what}"),
        }
    }
}

/// The endings that are right for a fault, as [`Ending`] writes them.
type Endings = &'static [&'static str];

const RIGHT: Endings = &["right"];
const AWAY: Endings = &["503 UNAVAILABLE"];
const BAD: Endings = &["502 UNKNOWN"];
const DENIED: Endings = &["403 DENIED"];
/// A large blob is on its way before anybody can know; who comes later is told.
const CUT_OR_BAD: Endings = &["cut", "502 UNKNOWN"];
/// The rest is asked for, and does not come, either.
const NO_END: Endings = &["cut", "502 UNKNOWN", "503 UNAVAILABLE"];
const CUT_OR_AWAY: Endings = &["cut", "503 UNAVAILABLE"];
/// What was cut and looks whole is found out, or gone on with.
const FOUND_OUT: Endings = &["right", "cut", "502 UNKNOWN"];
const HONEST: Endings = &["right", "cut", "502 UNKNOWN", "503 UNAVAILABLE"];

/// What is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Larger than what is verified whole before its first byte leaves.
    LargeBlob,
    SmallBlob,
    Manifest,
    Index,
}

const KINDS: [Kind; 4] = [Kind::LargeBlob, Kind::SmallBlob, Kind::Manifest, Kind::Index];

/// One fault, and how pulls end that meet it.
struct Row {
    name: &'static str,
    large_blob: Endings,
    small_blob: Endings,
    manifest: Endings,
    play: fn(&Scene),
}

impl Row {
    fn endings(&self, kind: Kind) -> Endings {
        match kind {
            Kind::LargeBlob => self.large_blob,
            Kind::SmallBlob => self.small_blob,
            Kind::Manifest | Kind::Index => self.manifest,
        }
    }
}

/// A row whose endings are the same for all content.
const fn all(name: &'static str, endings: Endings, play: fn(&Scene)) -> Row {
    row(name, [endings, endings, endings], play)
}

/// A row with the endings for large blobs, small blobs, and manifests.
const fn row(name: &'static str, endings: [Endings; 3], play: fn(&Scene)) -> Row {
    let [large_blob, small_blob, manifest] = endings;
    Row { name, large_blob, small_blob, manifest, play }
}

/// An upstream with one thing in it, and the origins that redirects lead to.
struct Scene {
    upstream: FakeUpstream,
    /// There is leave for this one.
    elsewhere: FakeUpstream,
    /// There is none for this one.
    private: FakeUpstream,
    path: String,
    bytes: Vec<u8>,
}

impl Scene {
    fn gets(&self) -> String {
        format!("GET {}", self.path)
    }

    fn always(&self, fault: Fault) {
        self.upstream.script(self.gets(), fault);
    }

    fn times(&self, times: usize, fault: Fault) {
        self.upstream.script_times(self.gets(), fault, times);
    }

    /// Neither what is fetched nor any question tells how large it is.
    fn says_no_length(&self) {
        self.upstream.script(&self.path, Fault::NoLength);
        self.upstream.script(&self.path, Fault::NoRanges);
    }

    /// The token server does this; everybody needs a token.
    fn tokens(&self, fault: Fault) {
        self.upstream.set_auth(Auth::AnonymousToken);
        self.upstream.script("/token", fault);
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn middle(&self) -> u64 {
        self.size() / 2
    }
}

fn status(status: u16) -> Fault {
    Fault::Status(status, None)
}

fn header(name: &str, value: &str) -> Fault {
    Fault::Header(name.to_owned(), value.to_owned())
}

/// The upstream cannot, or will not.
const REFUSALS: &[Row] = &[
    all("429", AWAY, |s| s.always(status(429))),
    all("429 with a Retry-After", AWAY, |s| s.always(Fault::Status(429, Some("1".to_owned())))),
    all("a burst of 503", RIGHT, |s| s.times(2, status(503))),
    all("500", AWAY, |s| s.always(status(500))),
    all("502 with a Retry-After", AWAY, |s| s.always(Fault::Status(502, Some("1".to_owned())))),
    row("404", [&["404 BLOB_UNKNOWN"], &["404 BLOB_UNKNOWN"], &["404 MANIFEST_UNKNOWN"]], |s| s.always(status(404))),
    all("403", DENIED, |s| s.always(status(403))),
    all("401 without a challenge", DENIED, |s| s.always(status(401))),
    all("silence", AWAY, |s| s.always(Fault::Silence)),
    all("a late answer", RIGHT, |s| s.always(Fault::Delay(Duration::from_millis(300)))),
    all("hung up twice", RIGHT, |s| s.times(2, Fault::HangUp)),
    all("hung up", AWAY, |s| s.always(Fault::HangUp)),
];

/// The bytes do not come, or not all of them.
const BROKEN_BODIES: &[Row] = &[
    all("a reset at the first byte", RIGHT, |s| s.times(1, Fault::ResetAfter(0))),
    all("a reset in the middle", RIGHT, |s| s.times(1, Fault::ResetAfter(s.middle()))),
    all("a reset at the last byte", RIGHT, |s| s.times(1, Fault::ResetAfter(s.size() - 1))),
    row("five cuts", [RIGHT, RIGHT, AWAY], |s| s.times(5, Fault::CutAfter(s.size() / 5))),
    row("cuts without end", [CUT_OR_AWAY, AWAY, AWAY], |s| s.always(Fault::CutAfter(0))),
    all("cuts, and no ranges", RIGHT, |s| {
        s.times(2, Fault::CutAfter(s.middle()));
        s.always(Fault::NoRanges);
    }),
    all("a cut without a length", RIGHT, |s| {
        s.times(1, Fault::CutAfter(s.middle()));
        s.always(Fault::NoLength);
    }),
    row("a cut, and another range", [FOUND_OUT, FOUND_OUT, RIGHT], |s| {
        s.times(1, Fault::CutAfter(s.middle()));
        s.always(header("content-range", "bytes 5-9/10"));
    }),
    row("a stall in the middle", [RIGHT, RIGHT, AWAY], |s| s.times(1, Fault::StallAfter(s.middle()))),
    row("stalls without end", [CUT_OR_AWAY, AWAY, AWAY], |s| s.always(Fault::StallAfter(0))),
    row("truncated with a proper end", [FOUND_OUT, FOUND_OUT, BAD], |s| s.always(Fault::EndAfter(s.middle()))),
    row("nothing with a proper end", [NO_END, NO_END, BAD], |s| s.always(Fault::EndAfter(0))),
    all("no length", RIGHT, |s| s.always(Fault::NoLength)),
    all("no length, and nobody says one", RIGHT, Scene::says_no_length),
    row("truncated, and nobody says the length", [CUT_OR_BAD, CUT_OR_BAD, BAD], |s| {
        s.says_no_length();
        s.always(Fault::EndAfter(s.middle()));
    }),
    row("too large a length", [CUT_OR_BAD, BAD, AWAY], |s| s.always(Fault::WrongLength(1000))),
    row("too small a length", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::WrongLength(-100))),
    all("a slow body", RIGHT, |s| s.always(Fault::Rate(s.size() * 20))),
];

/// The bytes come, and are not what was asked for.
const LIES: &[Row] = &[
    row("a flipped bit at the beginning", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::FlipBitAt(0))),
    row("a flipped bit in the middle", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::FlipBit)),
    row("a flipped bit at the end", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::FlipBitAt(u64::MAX))),
    row("a flipped bit, and nobody says the length", [CUT_OR_BAD, CUT_OR_BAD, BAD], |s| {
        s.says_no_length();
        s.always(Fault::FlipBit);
    }),
    row("other bytes of the same size", [CUT_OR_BAD, BAD, BAD], |s| {
        s.always(Fault::Body(images::random_bytes(99, s.bytes.len())));
    }),
    row("more bytes", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::Body([&s.bytes[..], &s.bytes[..]].concat()))),
    // What the bytes hash to counts, not what the upstream says of them.
    all("a wrong digest header", RIGHT, |s| s.always(Fault::DigestHeader(images::sha256(b"another")))),
    all("no digest header", RIGHT, |s| s.always(Fault::NoDigestHeader)),
    all("a web page", BAD, |s| s.always(Fault::Html)),
    all("an encoding", BAD, |s| s.always(header("content-encoding", "gzip"))),
];

/// Others are needed for an answer.
const DETOURS: &[Row] = &[
    all("a redirect elsewhere", RIGHT, |s| {
        s.upstream.set_auth(Auth::AnonymousToken);
        s.always(Fault::RedirectToOrigin(s.elsewhere.url()));
    }),
    all("a redirect elsewhere that breaks off", RIGHT, |s| {
        s.upstream.set_auth(Auth::AnonymousToken);
        s.always(Fault::RedirectToOrigin(s.elsewhere.url()));
        s.elsewhere.script_times(s.gets(), Fault::CutAfter(s.middle()), 1);
    }),
    all("a redirect to a private address", BAD, |s| s.always(Fault::RedirectToOrigin(s.private.url()))),
    all("a redirect to a metadata service", BAD, |s| {
        s.always(Fault::Redirect(302, "http://169.254.169.254/latest/meta-data/".to_owned()));
    }),
    all("a redirect to itself", BAD, |s| s.always(Fault::Redirect(307, "?again".to_owned()))),
    all("tokens", RIGHT, |s| s.upstream.set_auth(Auth::AnonymousToken)),
    all("a token server that fails", AWAY, |s| s.tokens(status(503))),
    all("a token server that is silent", AWAY, |s| s.tokens(Fault::Silence)),
    all("a token server that throttles", AWAY, |s| s.tokens(Fault::Status(429, Some("1".to_owned())))),
    all("a token server with a web page", BAD, |s| s.tokens(Fault::Html)),
    all("a token server that lies", DENIED, |s| s.tokens(Fault::Body(br#"{"token":"a-lie"}"#.to_vec()))),
    all("a token server that leads away", BAD, |s| s.tokens(Fault::RedirectToOrigin(s.private.url()))),
    all("a token that expires in mid-body", RIGHT, |s| {
        s.upstream.set_auth(Auth::AnonymousToken);
        s.times(1, Fault::ExpireTokens);
        s.times(1, Fault::CutAfter(s.middle()));
    }),
    all("whatever a seed decides", HONEST, |s| s.upstream.chaos(s.size(), 40)),
];

/// Short, so that many waits fit into a test; long enough for a busy machine.
fn hasty() -> UpstreamLimits {
    UpstreamLimits {
        head: Duration::from_secs(2),
        token: Duration::from_secs(1),
        stall: Duration::from_millis(700),
        resumes: 6,
        retry_wait: Duration::from_millis(1),
        pause: Duration::from_millis(300),
        probe: Duration::from_millis(300),
        ..UpstreamLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_an_upstream_that_refuses_get_an_honest_error() -> Result<()> {
    play("refusals", REFUSALS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_an_upstream_that_breaks_off_or_stalls_get_the_right_bytes_or_an_honest_end() -> Result<()> {
    play("broken bodies", BROKEN_BODIES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_an_upstream_that_lies_never_complete_what_is_not_right() -> Result<()> {
    play("lies", LIES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_and_token_servers_that_misbehave_lead_no_login_and_no_request_astray() -> Result<()> {
    play("detours", DETOURS).await
}

/// Tries all content with all numbers of clients for each row, and looks at what is left.
async fn play(name: &str, rows: &'static [Row]) -> Result<()> {
    let _turn = TURN.lock().await;
    let begun = Instant::now();
    let registry = Arc::new(Registry::start_with_limits(hasty()).await?);
    registry.get("/v2/").await?;
    let before = Before { tasks: alive_tasks() + DATABASE_TASKS, memory_kib: memory_kib() };
    let watch = Watch::start(registry.clone(), before);
    let played = futures_util::stream::iter(rows.iter().enumerate()).map(async |(number, row)| {
        let played = play_row(&registry, &format!("row{number}"), row).await;
        played.with_context(|| format!("`{}`", row.name))
    });
    let played: Vec<Result<()>> = played.buffer_unordered(ROWS_AT_ONCE).collect().await;
    let seen = watch.end().await;
    let failures: Vec<String> = played.into_iter().filter_map(|row| Some(format!("{:#}", row.err()?))).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    ensure!(
        seen.iter().zip(KEPT).all(|((_, most), kept)| *most > kept),
        "not all that should be gone later was seen: {seen:?}"
    );
    let left = Left { registry: &registry, before };
    let quiet = tokio::time::timeout(LIMIT, left.none()).await.is_ok();
    ensure!(quiet, "left over after {LIMIT:?} without a pull: {:?}", left.count());
    let kept = left.count()[COUNTED.len() - 1].1;
    let objects = every_object_is_what_it_is_called(&registry).await?;
    let took = begun.elapsed();
    report(name, format_args!("{took:.1?}, {objects} objects; at once at most {seen:?}; {kept} KiB more than before"));
    Ok(())
}

/// One row: an upstream and a rule of its own, and one thing after the other.
async fn play_row(registry: &Arc<Registry>, id: &str, row: &Row) -> Result<()> {
    let (upstream, elsewhere, private) =
        (FakeUpstream::start().await, FakeUpstream::start().await, FakeUpstream::start().await);
    elsewhere.set_auth(Auth::Unwanted);
    registry.upstream_that_leads_to(id, &upstream, &[elsewhere.address().to_string()]).await?;
    registry.rule_to(id, id).await?;
    let mut scene = Scene { upstream, elsewhere, private, path: String::new(), bytes: Vec::new() };
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
    let mut failures = Vec::new();
    for kind in KINDS {
        for clients in CLIENTS {
            let seed = images::sha256(format!("{} {kind:?} {clients}", row.name).as_bytes());
            publish(&mut scene, kind, u64::from_str_radix(&seed[7..19], 16)?);
            let path = scene.path.replacen("/v2/", &format!("/v2/{id}/"), 1);
            (row.play)(&scene);
            let (asked, begun) = (scene.upstream.request_count(), Instant::now());
            let pulls = (0..clients).map(|_| pull(registry, &client, &path, &scene.bytes));
            let endings: BTreeSet<Ending> = future::join_all(pulls).await.into_iter().collect();
            let shown: Vec<String> = endings.iter().map(Ending::to_string).collect();
            let asked = scene.upstream.request_count() - asked;
            let what = format!("{}, {kind:?}, {clients} clients", row.name);
            report(&what, format_args!("{shown:?} in {:.1?} by {asked} requests", begun.elapsed()));
            if shown.iter().any(|ending| !row.endings(kind).contains(&ending.as_str())) {
                failures.push(format!("{kind:?} with {clients} clients: {shown:?}"));
            }
            scene.upstream.heal();
            scene.elsewhere.heal();
            scene.upstream.set_auth(Auth::Open);
            // What was refused is not remembered for longer.
            registry.clock.advance(Duration::from_secs(601));
            let healed = format!("{path} is served after `{}`", row.name);
            let again = async || pull(registry, &client, &path, &scene.bytes).await == Ending::Right;
            wait_until(LIMIT, &healed, again).await;
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    ensure!(scene.private.connections() == 0, "somebody came to the address that there is no leave for");
    let trapped = scene.elsewhere.log().iter().filter(|entry| entry.authorization().is_some()).count();
    ensure!(trapped == 0, "{trapped} requests brought a login to another origin");
    // With it goes what a node keeps for each upstream.
    registry.delete_rule(id).await
}

/// Publishes one thing that nobody has seen before.
fn publish(scene: &mut Scene, kind: Kind, seed: u64) {
    let blob = |size: usize| {
        let bytes = images::random_bytes(seed, size);
        (format!("/v2/app/blobs/{}", scene.upstream.publish_blob("app", &bytes)), bytes)
    };
    let child = || scene.upstream.publish_image_for("app", None, "linux/amd64", &[images::random_bytes(seed, 1000)]);
    (scene.path, scene.bytes) = match kind {
        Kind::LargeBlob => blob(2 << 20),
        Kind::SmallBlob => blob(100_000),
        Kind::Manifest => {
            let image = child();
            (format!("/v2/app/manifests/{}", image.manifest), image.manifest_bytes.to_vec())
        }
        Kind::Index => {
            let index = images::index(&["linux/amd64"], &[child()]);
            let digest = scene.upstream.publish_manifest("app", None, images::OCI_INDEX, &index);
            (format!("/v2/app/manifests/{digest}"), index)
        }
    };
    scene.elsewhere.publish_all_of(&scene.upstream);
}

/// One client, which does not resume.
async fn pull(registry: &Registry, client: &reqwest::Client, path: &str, expected: &[u8]) -> Ending {
    let answer = match registry.request_by(client, path).send().await {
        Ok(answer) => answer,
        Err(error) => return Ending::Wrong(format!("no answer: {error:?}")),
    };
    let status = answer.status().as_u16();
    let (waits, length) = (answer.headers().contains_key("retry-after"), answer.content_length());
    match answer.bytes().await {
        Ok(bytes) if status == 200 && *bytes == *expected => Ending::Right,
        Ok(bytes) if status == 200 => Ending::Wrong(format!("{} of {} bytes", bytes.len(), expected.len())),
        Ok(_) if status == 503 && !waits => Ending::Wrong("a 503 that does not say when to come again".to_owned()),
        Ok(bytes) => {
            let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            Ending::Says(status, body["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
        }
        Err(error) if error.is_timeout() => Ending::Wrong(format!("no end, of {length:?} bytes")),
        Err(_) if status == 200 => Ending::CutShort,
        Err(error) => Ending::Wrong(format!("half an error: {error:?}")),
    }
}

/// Reads all content of the store back.
async fn every_object_is_what_it_is_called(registry: &Registry) -> Result<usize> {
    let keys = registry.store.list(&layout::pointers_prefix(), None, usize::MAX).await?;
    for Entry { key, .. } in &keys {
        let Some(Parsed::Pointer { digest }) = layout::parse(key) else { anyhow::bail!("`{key}` is no pointer") };
        let pointer = records::read::<PointerRecord>(&*registry.store, key).await?.context("the pointer")?.0;
        let object = pointer.object.with_context(|| format!("`{key}` names an object"))?;
        let object = registry.store.get(&object).await?.with_context(|| format!("the object of `{key}` is there"))?;
        ensure!(images::sha256(&object.bytes) == digest.to_string(), "the object of `{key}` holds something else");
    }
    Ok(keys.len())
}

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn memory_kib() -> usize {
    MEMORY.current_usage() >> 10
}

/// What there was before anybody pulled.
#[derive(Clone, Copy)]
struct Before {
    tasks: usize,
    memory_kib: usize,
}

/// What should be gone when all is quiet.
struct Left<'a> {
    registry: &'a Registry,
    before: Before,
}

const COUNTED: [&str; 6] = ["spools", "unfinished objects", "fills", "pulls", "tasks", "KiB of memory"];
/// What may stay of each. Of memory, the records of what was pulled, and what is known of each answer.
const KEPT: [usize; COUNTED.len()] = [0, 0, 0, 0, 0, 8 * 1024];

impl Left<'_> {
    fn count(&self) -> [(&'static str, usize); COUNTED.len()] {
        let gauge = |name: &str| self.registry.metric(name) as usize;
        let counts = [
            self.registry.spool_count(),
            self.registry.unfinished_count(),
            gauge("entrepot_fill_active"),
            gauge("entrepot_pull_active"),
            alive_tasks().saturating_sub(self.before.tasks),
            memory_kib().saturating_sub(self.before.memory_kib),
        ];
        std::array::from_fn(|at| (COUNTED[at], counts[at]))
    }

    /// Waits until there is none of it.
    async fn none(&self) {
        while self.count().iter().zip(KEPT).any(|((_, count), kept)| *count > kept) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Looks at what should be gone later while it is there, and keeps the most of each.
struct Watch {
    ends: Arc<AtomicBool>,
    most: Arc<[AtomicUsize; COUNTED.len()]>,
    looking: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn start(registry: Arc<Registry>, before: Before) -> Self {
        let (ends, most) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicUsize; COUNTED.len()]>::default());
        let (end, seen) = (ends.clone(), most.clone());
        let looking = tokio::spawn(async move {
            let left = Left { registry: &registry, before };
            while !end.load(Ordering::SeqCst) {
                for ((_, count), most) in left.count().into_iter().zip(&*seen) {
                    most.fetch_max(count, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { ends, most, looking }
    }

    async fn end(self) -> Vec<(&'static str, usize)> {
        self.ends.store(true, Ordering::SeqCst);
        self.looking.await.expect("looking does not fail");
        COUNTED.into_iter().zip(self.most.iter().map(|most| most.load(Ordering::SeqCst))).collect()
    }
}
