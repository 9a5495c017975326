//! What is on the disk, by bookkeeping alone: which blobs, how long ago each was used, and whether there is room.

use std::collections::{BTreeMap, HashMap};

use crate::Key;

/// What any file takes is a multiple of this: a block of a usual file system.
const BLOCK_BYTES: u64 = 4096;
/// However small they are: each takes an inode, and memory here.
const MOST_BLOBS: usize = 100_000;

/// Knows every cached blob. The sum of what they and those on their way take never passes the limit.
#[derive(Debug)]
pub(super) struct Index {
    limit_bytes: u64,
    blobs: HashMap<Key, Blob>,
    /// By when they were last used, the longest ago first.
    order: BTreeMap<u64, Key>,
    next_use: u64,
    /// What the blobs take on the disk.
    taken_bytes: u64,
    /// What those on their way take.
    reserved_bytes: u64,
    /// On their way, and whether they are wanted when they arrive.
    landing: HashMap<Key, Wanted>,
}

#[derive(Debug)]
struct Blob {
    size_bytes: u64,
    last_use: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Yes,
    /// Its object was deleted meanwhile.
    NoMore,
}

impl Index {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            blobs: HashMap::new(),
            order: BTreeMap::new(),
            next_use: 0,
            taken_bytes: 0,
            reserved_bytes: 0,
            landing: HashMap::new(),
        }
    }

    /// The largest blob that is kept: one alone must not drive out all others.
    pub(super) fn largest_blob_bytes(&self) -> u64 {
        self.limit_bytes / 2
    }

    pub(super) fn blobs(&self) -> usize {
        self.blobs.len()
    }

    pub(super) fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    pub(super) fn size_bytes(&self, key: &Key) -> Option<u64> {
        self.blobs.get(key).map(|blob| blob.size_bytes)
    }

    /// Notes that a blob is used now; says how large it is.
    pub(super) fn touch(&mut self, key: &Key) -> Option<u64> {
        let blob = self.blobs.get_mut(key)?;
        if let Some(key) = self.order.remove(&blob.last_use) {
            blob.last_use = self.next_use;
            self.order.insert(blob.last_use, key);
            self.next_use += 1;
        }
        Some(blob.size_bytes)
    }

    /// Adds a blob whose file is there, as the one that was used last.
    pub(super) fn add(&mut self, key: Key, size_bytes: u64) {
        self.remove(&key);
        self.taken_bytes += takes(size_bytes);
        self.order.insert(self.next_use, key.clone());
        self.blobs.insert(key, Blob { size_bytes, last_use: self.next_use });
        self.next_use += 1;
    }

    /// Forgets a blob, also one that is on its way. Returns whether there was a file.
    pub(super) fn forget(&mut self, key: &Key) -> bool {
        if let Some(wanted) = self.landing.get_mut(key) {
            *wanted = Wanted::NoMore;
        }
        self.remove(key)
    }

    /// Whether a blob should be brought here now; only one may do it at a time.
    pub(super) fn begin(&mut self, key: &Key) -> bool {
        if self.blobs.contains_key(key) || self.landing.contains_key(key) {
            return false;
        }
        self.landing.insert(key.clone(), Wanted::Yes);
        true
    }

    /// Makes room for a file that grows from one size to another, and says which files must go for it; `None` if
    /// there cannot be room.
    pub(super) fn grow(&mut self, from_bytes: u64, to_bytes: u64) -> Option<Vec<Key>> {
        let more = takes(to_bytes) - takes(from_bytes);
        if to_bytes > self.largest_blob_bytes() || self.reserved_bytes + more > self.limit_bytes {
            return None;
        }
        self.reserved_bytes += more;
        Some(self.evict())
    }

    /// Ends what [`Self::begin`] began, with a file of that size or with none. Returns whether it is kept: if not, the
    /// file must go.
    pub(super) fn end(&mut self, key: &Key, reserved_for_bytes: u64, landed: Option<u64>) -> bool {
        self.reserved_bytes -= takes(reserved_for_bytes);
        let wanted = self.landing.remove(key);
        match landed {
            Some(size_bytes) if wanted == Some(Wanted::Yes) => {
                self.add(key.clone(), size_bytes);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The blobs to go, those used the longest ago, until the limit is kept.
    pub(super) fn evict(&mut self) -> Vec<Key> {
        let mut gone = Vec::new();
        while self.taken_bytes + self.reserved_bytes > self.limit_bytes || self.blobs.len() > MOST_BLOBS {
            let Some((_, key)) = self.order.first_key_value() else { break };
            let key = key.clone();
            self.remove(&key);
            gone.push(key);
        }
        gone
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(blob) = self.blobs.remove(key) else { return false };
        self.order.remove(&blob.last_use);
        self.taken_bytes -= takes(blob.size_bytes);
        true
    }
}

/// What a file of this size takes on the disk.
fn takes(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: u8) -> Key {
        format!("blobs/sha256/00/{number}").parse().unwrap()
    }

    /// Brings a blob in whole.
    fn land(index: &mut Index, number: u8, size_bytes: u64) -> Option<Vec<Key>> {
        assert!(index.begin(&key(number)));
        let gone = index.grow(0, size_bytes);
        let landed = gone.as_ref().map(|_| size_bytes);
        index.end(&key(number), landed.unwrap_or(0), landed);
        gone
    }

    #[test]
    fn what_was_used_the_longest_ago_goes_first() {
        let mut index = Index::new(4 * BLOCK_BYTES);
        for number in 0..3 {
            land(&mut index, number, 1000).unwrap();
        }
        index.touch(&key(0));
        assert_eq!(land(&mut index, 3, 5000), Some(vec![key(1)]));
        assert_eq!(land(&mut index, 4, 10), Some(vec![key(2)]));
        assert!(index.size_bytes(&key(0)).is_some());
    }

    #[test]
    fn what_is_too_large_drives_nothing_out() {
        let mut index = Index::new(4 * BLOCK_BYTES);
        land(&mut index, 0, 1000).unwrap();
        assert_eq!(land(&mut index, 1, 2 * BLOCK_BYTES + 1), None);
        assert_eq!((index.blobs(), index.reserved_bytes), (1, 0));
    }

    #[test]
    fn what_was_deleted_on_its_way_does_not_arrive() {
        let mut index = Index::new(4 * BLOCK_BYTES);
        assert!(index.begin(&key(0)) && !index.begin(&key(0)));
        index.grow(0, 10).unwrap();
        assert!(!index.forget(&key(0)));
        assert!(!index.begin(&key(0)), "the first is still at it");
        assert!(!index.end(&key(0), 10, Some(10)));
        assert_eq!((index.blobs(), index.reserved_bytes, index.taken_bytes), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn the_limit_is_kept_and_nothing_leaks(steps in proptest::collection::vec((0u8..6, 0u8..12, 0u64..20_000), 0..200)) {
            let limit_bytes = 10 * BLOCK_BYTES;
            let mut index = Index::new(limit_bytes);
            let mut landing: HashMap<u8, u64> = HashMap::new();
            for (step, number, size_bytes) in steps {
                match step {
                    0 if index.begin(&key(number)) => drop(landing.insert(number, 0)),
                    1 | 2 => if let Some(&had) = landing.get(&number)
                        && index.grow(had, had + size_bytes).is_some() {
                        landing.insert(number, had + size_bytes);
                    },
                    3 => if let Some(has) = landing.remove(&number) {
                        index.end(&key(number), has, Some(has).filter(|has| has % 3 > 0));
                    },
                    4 => drop(index.forget(&key(number))),
                    _ => drop(index.touch(&key(number))),
                }
                prop_assert!(index.taken_bytes + index.reserved_bytes <= limit_bytes);
                prop_assert_eq!(index.order.len(), index.blobs.len());
                prop_assert_eq!(index.landing.len(), landing.len());
            }
            for (number, has) in landing {
                index.end(&key(number), has, None);
            }
            prop_assert_eq!(index.reserved_bytes, 0);
            prop_assert_eq!(index.taken_bytes, index.blobs.values().map(|blob| takes(blob.size_bytes)).sum::<u64>());
        }
    }
}
