//! Every way in which an upstream misbehaves, for blobs, manifests and indexes, with one client and with many: each
//! client ends with the right bytes or an honest error, nothing wrong is stored, and nothing is left over.
//!
//! It has a process of its own and runs one test after the other, since leftovers are counted in tasks and bytes of the
//! process.

#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "hostile/left_over.rs"]
mod left_over;
#[expect(dead_code, reason = "other tests need more of it")]
mod registry;
mod report;
#[path = "hostile/table.rs"]
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use entrepot_data_plane::UpstreamLimits;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, PointerRecord};
use entrepot_store::Entry;
use entrepot_test_support::{Auth, FakeUpstream, images, wait_until};
use futures_util::{StreamExt as _, future};
use peak_alloc::PeakAlloc;
use tokio::sync::Mutex;

use left_over::{Before, COUNTED, KEPT, Left, Watch, alive_tasks, memory_kib};
use registry::{LIMIT, Registry};
use report::report;
use table::{BROKEN_BODIES, DETOURS, KINDS, Kind, LIES, REFUSALS, Row, Scene};

/// Counts the bytes in use, whatever the allocator below keeps for later.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

static TURN: Mutex<()> = Mutex::const_new(());

/// How many clients want the same content at once.
const CLIENTS: [usize; 2] = [1, 20];
/// How many rows of the table run at once.
const ROWS_AT_ONCE: usize = 12;
/// How many more database connections, each with a task, the control plane may have opened meanwhile: its whole pool.
/// Each test has many more pulls than that.
const DATABASE_TASKS: usize = 8;

/// How a client's pull ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// With the right bytes and a proper end.
    Right,
    /// With an improper end, so that the client notices.
    CutShort,
    /// With this status and this code.
    Says(u16, String),
    /// In a way that must never happen.
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

/// Short limits, so that many waits fit into a test, but long enough for a busy machine.
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

/// Tries each row with all kinds of content and all numbers of clients, and checks what is left over.
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

/// One row: an upstream and a rule of its own, and one kind of content after the other.
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
            // What was refused is no longer remembered.
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
    // This also removes what a node keeps for each upstream.
    registry.delete_rule(id).await
}

/// Publishes content that nobody has seen before.
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

/// Reads all content in the store, and verifies it.
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
