//! The positions of a fill's readers, and which of them wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// The readers of one fill. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Readers(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    readers: BTreeMap<u64, Position>,
}

/// The position of a reader.
#[derive(Clone, Copy, Debug)]
struct Position {
    at: u64,
    end: Option<u64>,
    /// Since when it has waited for the byte at its position.
    waits_since: Option<Instant>,
}

/// A reader in the table, until this is dropped.
pub(super) struct Reader {
    readers: Readers,
    number: u64,
}

impl Readers {
    /// Adds a reader of the bytes from `at` on, up to `end` or the last one.
    pub(super) fn enter(&self, at: u64, end: Option<u64>) -> Reader {
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.readers.insert(number, Position { at, end, waits_since: None });
        Reader { readers: self.clone(), number }
    }

    /// Among the readers that are further ahead than `landed`: the byte that has been waited for longest, and how long.
    pub(super) fn waiting_ahead(&self, landed: u64) -> Option<(u64, Duration)> {
        let table = self.lock();
        let waiting = table.readers.values().filter(|reader| reader.at > landed);
        let waiting = waiting.filter_map(|reader| Some((reader.at, reader.waits_since?)));
        waiting.min_by_key(|(_, since)| *since).map(|(at, since)| (at, since.elapsed()))
    }

    /// Whether a reader is in `from..=to`, and wants bytes after that.
    pub(super) fn are_in(&self, from: u64, to: u64) -> bool {
        let is_in = |reader: &Position| (from..=to).contains(&reader.at) && reader.end.is_none_or(|end| end > to);
        self.lock().readers.values().any(is_in)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock()
    }
}

impl Reader {
    /// Notes how far it has read.
    pub(super) fn is_at(&self, at: u64) {
        if let Some(reader) = self.readers.lock().readers.get_mut(&self.number) {
            (reader.at, reader.waits_since) = (at, None);
        }
    }

    pub(super) fn waits(&self) {
        if let Some(reader) = self.readers.lock().readers.get_mut(&self.number) {
            reader.waits_since.get_or_insert_with(Instant::now);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.lock().readers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_ahead_is_found_until_it_reads_or_leaves() {
        let readers = Readers::default();
        let (behind, first, second) = (readers.enter(5, None), readers.enter(20, Some(30)), readers.enter(40, None));
        behind.waits();
        first.waits();
        second.waits();
        assert_eq!(readers.waiting_ahead(10).map(|(at, _)| at), Some(20));
        first.is_at(25);
        assert_eq!(readers.waiting_ahead(10).map(|(at, _)| at), Some(40));
        assert!(readers.are_in(20, 28) && !readers.are_in(20, 30));
        drop((first, second));
        assert_eq!(readers.waiting_ahead(10), None);
        assert!(!readers.are_in(20, 28));
    }
}
