//! What a blob has cost the upstream.

use std::fmt;

use entrepot_test_support::{FakeUpstream, LogEntry};
use http::header;

/// The bodies of one blob, in the order in which they were asked for: from where, and how many bytes of it were sent.
pub(super) struct Cost(Vec<(u64, u64)>);

impl Cost {
    /// What the blob `digest` has cost so far. A body is a GET that was answered with content.
    pub(super) fn of(upstream: &FakeUpstream, digest: &str) -> Self {
        let log = upstream.log().into_iter();
        let bodies = log.filter(|entry| entry.method == "GET" && entry.is_fetch() && entry.path.ends_with(digest));
        Self(bodies.map(|entry| (begin(&entry), entry.sent_bytes)).collect())
    }

    pub(super) fn bodies(&self) -> usize {
        self.0.len()
    }

    /// How many bytes were sent.
    pub(super) fn sent(&self) -> u64 {
        self.0.iter().map(|(_, sent)| sent).sum()
    }

    /// Where each body begins.
    pub(super) fn begins(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(begin, _)| *begin)
    }

    /// How often the byte was sent that was sent most often.
    pub(super) fn opens_per_byte(&self) -> usize {
        let sent_from = |at: u64| self.0.iter().filter(|(begin, sent)| (*begin..begin + sent).contains(&at)).count();
        self.begins().map(sent_from).max().unwrap_or_default()
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for {} bodies, {} bytes", self.bodies(), self.sent())?;
        for (begin, sent) in &self.0 {
            write!(f, " [{begin} +{sent}]")?;
        }
        Ok(())
    }
}

/// Where the body begins that was asked for.
fn begin(entry: &LogEntry) -> u64 {
    let range = entry.headers.get(header::RANGE).filter(|_| entry.status == 206);
    let first = range.and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    first.unwrap_or_default()
}
