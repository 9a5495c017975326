//! Rows that are left out of lists because only another release understands them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tracing::warn;

use super::Error;

/// How many different reasons are remembered, so that each is logged once.
const REMEMBERED: usize = 1000;

/// The rows that were left out.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    count: AtomicU64,
    said: Mutex<HashSet<String>>,
}

impl LeftOut {
    /// How often a row was left out.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts a row that is left out, and logs each reason once.
    pub(super) fn note(&self, why: &Error) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let why = why.to_string();
        let mut said = self.said.lock();
        if said.len() >= REMEMBERED {
            said.clear();
        }
        if said.insert(why.clone()) {
            warn!("left a row of the database out: {why}");
        }
    }
}
