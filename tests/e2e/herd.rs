//! Many clients at once on one cold blob: what they cost the upstream, and how long they wait.
//!
//! The short forms run with all other tests. The full ones are one command, which prints the figures:
//! `ENTREPOT_HERD=full cargo test -p entrepot-tests --test e2e herd -- --nocapture --test-threads 1`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use entrepot_test_support::{FakeUpstream, Fault, images};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::registry::{LIMIT, Registry};
use crate::report::report;

const MIB: usize = 1 << 20;
/// The speed of the upstream in the first test.
const SHAPED: u64 = 4 << 20;
/// The speed of the slow reader in the second test.
const SLOW: u64 = 32 << 10;

/// The number of clients, and the size of the blob.
#[derive(Clone, Copy)]
struct Form {
    clients: usize,
    size: usize,
}

impl Form {
    /// `short`, unless the full form is requested.
    fn of(short: Self, full: Self) -> Self {
        match std::env::var("ENTREPOT_HERD").as_deref() {
            Ok("full") => full,
            Ok("") | Err(_) => short,
            Ok(other) => panic!("ENTREPOT_HERD is `full` or nothing, and not `{other}`"),
        }
    }
}

/// A registry with a rule, and an upstream with a blob that nobody has pulled.
struct Herd {
    registry: Registry,
    upstream: FakeUpstream,
    client: reqwest::Client,
    began: Instant,
}

/// What a client observed.
struct Seen {
    head: Duration,
    first_byte: Duration,
    /// How much the upstream had sent when the first byte arrived.
    landed_before: u64,
    end: Duration,
}

impl Herd {
    async fn new() -> Result<Arc<Self>> {
        let (registry, upstream) = (Registry::start().await?, FakeUpstream::start().await);
        registry.rule("demo", &upstream).await?;
        // As on any day, the repository exists and the login is known.
        let small = upstream.publish_blob("app", b"small");
        registry.blob("demo/app", &small).await?;
        // There is a limit for each read, but not for the whole blob.
        let client = reqwest::Client::builder().no_proxy().read_timeout(LIMIT).build()?;
        Ok(Arc::new(Self { registry, upstream, client, began: Instant::now() }))
    }

    fn blob(&self, seed: u64, size: usize) -> (String, Bytes) {
        let bytes = Bytes::from(images::random_bytes(seed, size));
        (self.upstream.publish_blob("app", &bytes), bytes)
    }

    /// How many bytes of a blob the upstream has sent.
    fn sent(&self, digest: &str) -> u64 {
        self.upstream.log().iter().filter(|entry| entry.path.ends_with(digest)).map(|entry| entry.sent_bytes).sum()
    }

    /// Reads a blob from the registry.
    async fn read(self: Arc<Self>, digest: String, expected: Bytes, began: Instant) -> Result<Seen> {
        let request = self.registry.request_by(&self.client, &format!("/v2/demo/app/blobs/{digest}"));
        self.receive(request, &digest, &expected, began, None).await
    }

    /// Reads a blob from any server, and compares each byte as it arrives. A reader with a `hurry` is slow until that
    /// is set.
    async fn receive(
        &self,
        request: reqwest::RequestBuilder,
        digest: &str,
        expected: &[u8],
        began: Instant,
        mut hurry: Option<watch::Receiver<bool>>,
    ) -> Result<Seen> {
        let mut answer = request.send().await?.error_for_status()?;
        let (head, mut at, mut first) = (began.elapsed(), 0, None);
        while let Some(chunk) = answer.chunk().await? {
            if first.is_none() {
                first = Some((began.elapsed(), self.sent(digest)));
            }
            let same = expected.get(at..at + chunk.len()).is_some_and(|expected| *expected == *chunk);
            ensure!(same, "the bytes from {at} on are wrong");
            at += chunk.len();
            if let Some(hurry) = &mut hurry {
                let pause = Duration::from_secs_f64(chunk.len() as f64 / SLOW as f64);
                let _ = tokio::time::timeout(pause, hurry.wait_for(|hurry| *hurry)).await;
            }
        }
        ensure!(at == expected.len(), "{at} of {} bytes, and a proper end", expected.len());
        let (first_byte, landed_before) = first.context("a blob has a first byte")?;
        Ok(Seen { head, first_byte, landed_before, end: began.elapsed() })
    }

    /// Starts this many clients on a blob.
    async fn all(self: &Arc<Self>, clients: usize, digest: &str, expected: &Bytes) -> Result<Vec<Seen>> {
        let (mut reads, began) = (JoinSet::new(), Instant::now());
        for _ in 0..clients {
            reads.spawn(self.clone().read(digest.to_owned(), expected.clone(), began));
        }
        let mut seen = Vec::new();
        while let Some(read) = reads.join_next().await {
            seen.push(read??);
        }
        Ok(seen)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_on_a_cold_blob_has_it_fetched_once_and_reads_it_as_it_lands() -> Result<()> {
    let form = Form::of(Form { clients: 60, size: 16 * MIB }, Form { clients: 200, size: 64 * MIB });
    let herd = Herd::new().await?;
    let (digest, bytes) = herd.blob(1, form.size);
    herd.upstream.script(&digest, Fault::Rate(SHAPED));
    let seen = herd.all(form.clients, &digest, &bytes).await?;

    let (bodies, sent) = (herd.upstream.fetches_of(&digest), herd.sent(&digest));
    ensure!(bodies == 1, "the upstream sent {bodies} bodies");
    ensure!(sent * 100 <= form.size as u64 * 101, "the upstream sent {sent} bytes");
    let latest = seen.iter().map(|seen| seen.landed_before).max().unwrap_or_default();
    ensure!(latest < form.size as u64 / 2, "somebody had its first byte when the upstream had sent {latest}");

    let direct = herd.client.get(format!("{}/v2/app/blobs/{digest}", herd.upstream.url()));
    let direct = herd.receive(direct, &digest, &bytes, Instant::now(), None).await?;
    let first = |part: f64| quantile(seen.iter().map(|seen| seen.first_byte), part);
    let head = |part: f64| quantile(seen.iter().map(|seen| seen.head), part);
    let slowest = seen.iter().map(|seen| seen.end).max().unwrap_or_default();
    let what = format!("{} clients on {} MiB at {} MiB/s", form.clients, form.size / MIB, SHAPED >> 20);
    report(
        &what,
        format_args!(
            "head p50 {:.1?}, p99 {:.1?}; first byte p50 {:.1?}, p99 {:.1?} (direct {:.1?}, goal 50 ms); slowest {:.2?}, direct {:.2?}, \
             which is {:.3} times (goal 1.1); {:.1} MiB had left the upstream when the last had its first byte",
            head(0.5),
            head(0.99),
            first(0.5),
            first(0.99),
            direct.first_byte,
            slowest,
            direct.end,
            slowest.as_secs_f64() / direct.end.as_secs_f64(),
            latest as f64 / MIB as f64,
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_among_fast_ones_is_waited_for_by_nobody() -> Result<()> {
    let form = Form::of(Form { clients: 30, size: 8 * MIB }, Form { clients: 99, size: 32 * MIB });
    let herd = Herd::new().await?;
    let at_rest = forget_peak();
    let (digest, bytes) = herd.blob(1, form.size);
    let without = herd.all(form.clients, &digest, &bytes).await?;

    let (digest, bytes) = herd.blob(2, form.size);
    let (hurry, slow) = herd.slow_reader(digest.clone(), bytes.clone());
    let with = herd.all(form.clients, &digest, &bytes).await?;
    ensure!(!slow.is_finished(), "the slow one was as fast as the others");
    hurry.send_replace(true);
    slow.await??;
    ensure!(herd.upstream.fetches_of(&digest) == 1, "a slow reader costs the upstream nothing");

    let p99 = |seen: &[Seen]| quantile(seen.iter().map(|seen| seen.end), 0.99);
    let (without, with) = (p99(&without), p99(&with));
    let what = format!("{} fast clients on {} MiB", form.clients, form.size / MIB);
    report(
        &what,
        format_args!(
            "p99 {without:.2?}; beside one at {} KiB/s {with:.2?}, which is {:.3} times (goal 1.1)",
            SLOW >> 10,
            with.as_secs_f64() / without.as_secs_f64(),
        ),
    );
    let held = 2 * form.size / MIB;
    report(
        "peak memory of the process",
        format_args!("{} MiB, {at_rest} before; node, clients, and an upstream that holds {held} MiB twice", peak()),
    );
    report("all of it took", format_args!("{:.1?}", herd.began.elapsed()));
    Ok(())
}

impl Herd {
    /// A reader that is slow until it is told to hurry.
    fn slow_reader(
        self: &Arc<Self>,
        digest: String,
        expected: Bytes,
    ) -> (watch::Sender<bool>, tokio::task::JoinHandle<Result<Seen>>) {
        let (hurry, hurries) = watch::channel(false);
        let herd = self.clone();
        let reading = tokio::spawn(async move {
            let request = herd.registry.request_by(&herd.client, &format!("/v2/demo/app/blobs/{digest}"));
            herd.receive(request, &digest, &expected, Instant::now(), Some(hurries)).await
        });
        (hurry, reading)
    }
}

/// The smallest duration that this share of all durations does not exceed.
fn quantile(durations: impl Iterator<Item = Duration>, part: f64) -> Duration {
    let mut durations: Vec<Duration> = durations.collect();
    durations.sort();
    let at = (durations.len() as f64 * part).ceil() as usize;
    durations[at.clamp(1, durations.len()) - 1]
}

/// The peak memory of the process, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()).unwrap_or_default() >> 10
}

/// Resets the peak, and returns how much memory is used now. If the system does not permit that, the peak is that of
/// the whole run.
fn forget_peak() -> usize {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak()
}
