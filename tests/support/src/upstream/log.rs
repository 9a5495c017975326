//! The requests and their answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};

use http::request::Parts;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug, Default)]
pub struct LogEntry {
    pub method: String,
    pub path: String,
    /// Its query; empty for none.
    pub query: String,
    pub headers: HeaderMap,
    /// The status of the answer; 0 if there is none yet.
    pub status: u16,
    /// How many bytes of the answer's body were sent so far.
    pub sent_bytes: u64,
}

impl LogEntry {
    /// Whether it was answered with content, or has not been answered yet.
    pub fn is_fetch(&self) -> bool {
        matches!(self.status, 0 | 200 | 206)
    }

    pub fn authorization(&self) -> Option<&str> {
        self.headers.get(header::AUTHORIZATION)?.to_str().ok()
    }
}

/// A request that is being answered.
#[derive(Default)]
pub(super) struct Live {
    asked: LogEntry,
    status: AtomicU16,
    sent_bytes: AtomicU64,
}

impl Live {
    pub(super) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn entry(&self) -> LogEntry {
        let (status, sent_bytes) = (self.status.load(Ordering::SeqCst), self.sent_bytes.load(Ordering::SeqCst));
        LogEntry { status, sent_bytes, ..self.asked.clone() }
    }
}

/// All requests and connections.
#[derive(Default)]
pub(super) struct Log {
    requests: Mutex<Vec<Arc<Live>>>,
    connections: AtomicUsize,
}

impl Log {
    pub(super) fn asked(&self, request: &Parts) -> Arc<Live> {
        let asked = LogEntry {
            method: request.method.to_string(),
            path: request.uri.path().to_owned(),
            query: request.uri.query().unwrap_or_default().to_owned(),
            headers: request.headers.clone(),
            status: 0,
            sent_bytes: 0,
        };
        let live = Arc::new(Live { asked, status: AtomicU16::default(), sent_bytes: AtomicU64::default() });
        self.requests.lock().push(live.clone());
        live
    }

    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn entries(&self) -> Vec<LogEntry> {
        self.requests.lock().iter().map(|live| live.entry()).collect()
    }

    /// The requests and bytes sent, summed for each method and path.
    pub(super) fn report(&self) -> Value {
        let mut paths: BTreeMap<String, Value> = BTreeMap::new();
        for entry in self.entries() {
            let begin = || json!({ "requests": 0, "bytes": 0, "with_authorization": 0, "statuses": {} });
            let path = paths.entry(format!("{} {}", entry.method, entry.path)).or_insert_with(begin);
            let mut add = |pointer: &str, more: u64| {
                let sum = path.pointer_mut(pointer).expect("a field was made for it");
                *sum = (sum.as_u64().unwrap_or_default() + more).into();
            };
            add("/requests", 1);
            add("/bytes", entry.sent_bytes);
            add("/with_authorization", u64::from(entry.authorization().is_some()));
            let status = &mut path["statuses"][entry.status.to_string()];
            *status = (status.as_u64().unwrap_or_default() + 1).into();
        }
        json!({ "connections": self.connections(), "paths": paths })
    }

    pub(super) fn count(&self, which: impl Fn(&LogEntry) -> bool) -> usize {
        self.entries().iter().filter(|entry| which(entry)).count()
    }
}
