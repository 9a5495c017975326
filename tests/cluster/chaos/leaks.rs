//! What a fill needs and must give back: counted while there is some of it, and when all is quiet.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use entrepot_test_support::program::probe;
use parking_lot::Mutex;

use crate::cluster::{Cluster, Member};

/// A node that is paused says nothing; the others are still counted.
const LIMIT: Duration = Duration::from_secs(1);
/// How many more files than before a node may have open when all is quiet: connections that are kept.
const MORE_FILES: usize = 100;
/// What a quiet node may take: what docs/operate.md says of one that does nothing.
const QUIET_MEMORY_KIB: u64 = (96 + 64) * 1024;

/// How much there is of everything, by its name. A name is missing if somebody did not say.
pub(super) type Counts = BTreeMap<&'static str, f64>;

/// The most that was seen of everything.
#[derive(Default)]
pub(super) struct Most(Mutex<Counts>);

impl Most {
    pub(super) fn see(&self, counts: Counts) {
        let mut most = self.0.lock();
        for (name, count) in counts {
            let seen = most.entry(name).or_default();
            *seen = seen.max(count);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.0.lock().clone()
    }
}

/// Counts what must be none when nothing is being pulled: on nodes, in Redis and in the bucket.
pub(super) async fn count(cluster: &Cluster) -> Counts {
    let mut counts = Counts::new();
    let metrics =
        [("fills", "entrepot_fill_active"), ("readers", "entrepot_reader_active"), ("pulls", "entrepot_pull_active")];
    let mut silent = 0;
    for node in &cluster.nodes {
        match tokio::time::timeout(LIMIT, probe(node.at.operations(), "/metrics")).await {
            Ok(Ok(probed)) => {
                for (name, metric) in metrics {
                    *counts.entry(name).or_default() += probed.metric(metric, &[]);
                }
            }
            _ => silent += 1,
        }
        *counts.entry("spools").or_default() +=
            files(node).iter().filter(|file| is_spool(file, cluster)).count() as f64;
    }
    counts.insert("silent nodes", f64::from(silent));
    for (name, pattern) in [("leases of blobs", "f:*"), ("leases of tags", "t:*")] {
        if let Ok(keys) = cluster.redis.try_command(&["KEYS", pattern]).await {
            counts.insert(name, keys.lines().count() as f64);
        }
    }
    counts.insert("uploads", uploads(cluster).await.len() as f64);
    counts
}

/// The uploads that nobody has completed or aborted.
pub(super) async fn uploads(cluster: &Cluster) -> Vec<String> {
    cluster.seaweed.unfinished_uploads(&cluster.shared.store.bucket).await
}

/// A spool has no name any more.
fn is_spool(file: &Path, cluster: &Cluster) -> bool {
    file.starts_with(cluster.folder()) && file.to_string_lossy().ends_with(" (deleted)")
}

/// The open files of a member.
fn files(member: &Member) -> Vec<PathBuf> {
    let Some(id) = member.program.id() else { return Vec::new() };
    let files = std::fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_link(file.path()).ok()).collect()
}

/// The memory and the open files of a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) memory_kib: u64,
    peak_kib: u64,
    pub(super) files: usize,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, peak_kib, files } = self;
        write!(f, "{memory_kib} KiB (peak {peak_kib}), {files} files")
    }
}

impl Held {
    /// Whether it is no more than a quiet node may hold that had `before` at first.
    pub(super) fn is_little(&self, before: &Self) -> bool {
        self.files <= before.files + MORE_FILES && self.memory_kib <= QUIET_MEMORY_KIB
    }

    pub(super) fn by(member: &Member) -> Self {
        let id = member.program.id().unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or_default()
        };
        Self { memory_kib: field("VmRSS:"), peak_kib: field("VmHWM:"), files: files(member).len() }
    }
}

pub(super) fn line(counts: &Counts) -> String {
    let mut line = String::new();
    for (name, count) in counts {
        let _ = write!(line, "{}{name} {count}", if line.is_empty() { "" } else { ", " });
    }
    line
}
