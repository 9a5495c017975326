//! The reports in memory, and whether there may be others in the store.

use std::collections::BTreeMap;

use bytes::Bytes;
use entrepot_store::Key;

/// How much memory the reports may take.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// The memory that a report takes in addition to its events.
const OVERHEAD_BYTES: usize = 256;
/// How many events the control plane takes at a time.
pub(super) const EVENTS: usize = 1000;
/// How large those are that go together: what gRPC takes is four times as much, and the database has a few seconds for it.
const TOGETHER_BYTES: usize = 1024 * 1024;

/// A report as in the store, with its events as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) key: Key,
    pub(super) events: Vec<Bytes>,
}

/// The reports in memory, by key and therefore by age.
#[derive(Debug)]
pub(super) struct Queue {
    reports: BTreeMap<Key, Vec<Bytes>>,
    bytes: usize,
    max_bytes: usize,
    /// Whether the store may have reports that are not in memory.
    may_lack: bool,
}

impl Default for Queue {
    /// Empty. Reports of an earlier run may be in the store.
    fn default() -> Self {
        Self { reports: BTreeMap::new(), bytes: 0, max_bytes: MAX_BYTES, may_lack: true }
    }
}

impl Queue {
    /// Adds a report that is in the store. If there is no room, it is noted that one is missing here.
    pub(super) fn add(&mut self, report: Report) {
        let bytes = weight(&report.events);
        if self.reports.contains_key(&report.key) {
            return;
        }
        if self.bytes + bytes > self.max_bytes && !self.reports.is_empty() {
            self.may_lack = true;
            return;
        }
        self.bytes += bytes;
        self.reports.insert(report.key, report.events);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(events) = self.reports.remove(key) {
            self.bytes -= weight(&events);
        }
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.reports.contains_key(key)
    }

    /// The oldest reports, as many as the control plane takes at a time.
    pub(super) fn oldest(&self) -> Vec<Report> {
        let (mut oldest, mut events, mut bytes): (Vec<Report>, usize, usize) = (Vec::new(), 0, 0);
        for (key, own) in &self.reports {
            events += own.len();
            bytes += weight(own);
            // One that is too large by itself is the control plane's to refuse.
            if (events > EVENTS || bytes > TOGETHER_BYTES) && !oldest.is_empty() {
                break;
            }
            oldest.push(Report { key: key.clone(), events: own.clone() });
        }
        oldest
    }

    /// Notes that the store may have reports that are not in memory.
    pub(super) fn note_lack(&mut self) {
        self.may_lack = true;
    }

    /// Whether the store may have reports that are not in memory.
    pub(super) fn may_lack(&self) -> bool {
        self.may_lack
    }

    /// Prepares for listing the store: afterwards nothing counts as missing, unless that is noted again.
    pub(super) fn begin_listing(&mut self) {
        self.may_lack = false;
    }
}

fn weight(events: &[Bytes]) -> usize {
    OVERHEAD_BYTES + events.iter().map(Bytes::len).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(number: usize, events: usize) -> Report {
        let key = Key::parse(&format!("events/{number:04}")).unwrap();
        Report { key, events: vec![Bytes::from_static(b"1234"); events] }
    }

    fn sizes(queue: &Queue) -> Vec<usize> {
        queue.oldest().iter().map(|report| report.events.len()).collect()
    }

    #[test]
    fn the_oldest_go_together_up_to_what_the_control_plane_takes() {
        let mut queue = Queue::default();
        assert!(queue.oldest().is_empty());
        for (number, events) in [(3, 1), (1, 600), (2, 400), (4, 1001)] {
            queue.add(report(number, events));
        }
        assert_eq!(sizes(&queue), [600, 400]);
        for number in [1, 2] {
            queue.remove(&report(number, 0).key);
        }
        assert_eq!(sizes(&queue), [1]);
        queue.remove(&report(3, 0).key);
        assert_eq!(sizes(&queue), [1001], "one that is too large by itself is the control plane's to refuse");
    }

    #[test]
    fn what_is_large_goes_in_several_reports_whatever_its_number() {
        let mut queue = Queue::default();
        for (number, bytes) in [(1, 700_000), (2, 300_000), (3, 300_000), (4, 3_000_000)] {
            let key = report(number, 0).key;
            queue.add(Report { key, events: vec![Bytes::from(vec![0; bytes])] });
        }
        for together in [vec![1, 2], vec![3], vec![4]] {
            let keys: Vec<Key> = queue.oldest().into_iter().map(|report| report.key).collect();
            assert_eq!(keys, together.iter().map(|number| report(*number, 0).key).collect::<Vec<_>>());
            keys.iter().for_each(|key| queue.remove(key));
        }
    }

    #[test]
    fn what_has_no_room_is_known_to_be_lacking() {
        let mut queue = Queue { max_bytes: 2 * OVERHEAD_BYTES + 8, ..Queue::default() };
        assert!(queue.may_lack(), "an earlier life may have left something");
        queue.begin_listing();
        queue.add(report(1, 1));
        queue.add(report(1, 1));
        queue.add(report(2, 1));
        assert!(!queue.may_lack(), "the same report takes no further room");
        queue.add(report(3, 1));
        assert!(queue.may_lack() && !queue.contains(&report(3, 1).key));
        queue.begin_listing();
        queue.remove(&report(1, 1).key);
        queue.add(report(3, 1));
        assert!(!queue.may_lack());
        assert_eq!(sizes(&queue), [1, 1]);
    }
}
