//! How much a node does at once, derived from the memory that it may use.
//!
//! A fill needs memory for two parts on their way into the store, and for what is being read for it. A reader needs one
//! chunk from the spool and the buffers of its connection, and so does a node that follows. Everything else is
//! constant. So a node that limits these numbers also limits its memory, and refuses further work before it begins.

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What an idle node needs for code, connections and snapshots.
const BASE_BYTES: u64 = 96 * MIB;
/// The default size of the memory of records.
const RECORDS_BYTES: u64 = 64 * MIB;
/// The memory of one fill: two parts of 8 MiB, one being gathered and one being sent, and chunks on their way to the
/// spool.
const FILL_BYTES: u64 = 16 * MIB + 512 * KIB;
/// The memory of one reader (a client or a node that follows): a chunk of 256 KiB from the spool or the store, and its
/// connection's buffer.
const READER_BYTES: u64 = 384 * KIB;
/// The percentages of the remaining memory for fills, readers and followers. The rest is for connections, and for
/// memory that is freed late.
const SHARES: (u64, u64, u64) = (40, 30, 10);

/// How much a node does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// How many fetches from upstreams.
    pub fills: usize,
    /// How many answers with a blob.
    pub readers: usize,
    /// How many other nodes reading fills, counted per fill.
    pub followers: usize,
}

impl Capacity {
    /// The capacity of a node that may use this much memory.
    #[must_use]
    pub fn of_memory(bytes: u64) -> Self {
        let left = bytes.saturating_sub(BASE_BYTES + RECORDS_BYTES);
        let count = |share: u64, each: u64, least: usize, most: usize| {
            usize::try_from(left / 100 * share / each).unwrap_or(most).clamp(least, most)
        };
        Self {
            fills: count(SHARES.0, FILL_BYTES, 4, 256),
            readers: count(SHARES.1, READER_BYTES, 64, 8192),
            followers: count(SHARES.2, READER_BYTES, 32, 2048),
        }
    }

    /// How much memory that takes at most, not counting connections.
    #[must_use]
    pub fn memory_bytes(self) -> u64 {
        let (fills, readers) = (self.fills as u64, (self.readers + self.followers) as u64);
        BASE_BYTES + RECORDS_BYTES + fills * FILL_BYTES + readers * READER_BYTES
    }
}

impl Default for Capacity {
    /// The capacity of a node with 1 GiB.
    fn default() -> Self {
        Self::of_memory(1024 * MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_to_its_memory() {
        for mib in [384, 512, 1024, 4096, 65_536] {
            let capacity = Capacity::of_memory(mib * MIB);
            assert!(capacity.memory_bytes() <= mib * MIB, "{capacity:?} takes too much for {mib} MiB");
        }
        assert_eq!(Capacity::default(), Capacity { fills: 20, readers: 691, followers: 230 });
        assert_eq!(Capacity::of_memory(0), Capacity { fills: 4, readers: 64, followers: 32 });
        assert_eq!(Capacity::of_memory(u64::MAX), Capacity { fills: 256, readers: 8192, followers: 2048 });
    }
}
