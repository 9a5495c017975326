//! The list of the other nodes, as successive lists of their records have shown them.
//!
//! A record's bytes stay the same while nothing changes, so it is read only if the list shows an unknown version. The
//! list's times show that a node has rewritten its record. How long ago that was is judged by this node's own clocks.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_store::{Entry, Version};
use entrepot_trust::{NodeRecord, node_record};
use uuid::Uuid;

use crate::moment::Moment;

/// How long after a change of its record was seen a node counts as alive. By then it holds nothing.
const LIVE_FOR: Duration = Duration::from_secs(35);
/// How old the list of nodes may be by which confirmations are counted.
const LIST_FOR: Duration = Duration::from_secs(20);

/// A run of a node: its id, and the id of the run.
pub(super) type Life = (ResourceId, Uuid);

/// The other nodes.
#[derive(Default)]
pub(super) struct Roll {
    known: HashMap<ResourceId, Known>,
    /// All runs that were seen recently, even if two share an id, with the time when a change of their record was last
    /// seen.
    lives: HashMap<Life, (NodeRecord, Moment)>,
    /// When the last list began of which everything is known.
    listed: Option<Moment>,
}

/// What is known about a record.
struct Known {
    write_time: DateTime<Utc>,
    size_bytes: u64,
    /// The version that was read.
    version: Version,
    /// Its content; `None` if it is not trusted.
    record: Option<NodeRecord>,
    /// When a change was last seen, or when it was first seen.
    changed: Moment,
    /// Whether its node was seen to write it, or had done so recently by the store's clock.
    was_live: bool,
}

/// The result of reading a record.
pub(super) enum Read {
    /// This version was read, with this content; `None` if it is not trusted.
    Known(Version, Option<NodeRecord>),
    /// It no longer exists.
    Gone,
    /// The store did not answer.
    Unread,
}

/// One list of the others' records, and what was read from it.
pub(super) struct Listing {
    pub(super) begun: Moment,
    pub(super) entries: HashMap<ResourceId, Entry>,
    /// Whether the list is complete.
    pub(super) is_whole: bool,
    pub(super) read: HashMap<ResourceId, Read>,
}

impl Roll {
    /// The listed records that must be read.
    pub(super) fn unread(&self, entries: &HashMap<ResourceId, Entry>) -> Vec<ResourceId> {
        let is_known = |id: &ResourceId, entry: &Entry| {
            self.known.get(id).is_some_and(|known| match &entry.version {
                Some(version) => *version == known.version,
                // If lists have no versions, a rewritten record may have other content.
                None => (entry.modify_time, entry.size_bytes) == (known.write_time, known.size_bytes),
            })
        };
        entries.iter().filter(|(id, entry)| !is_known(id, entry)).map(|(id, _)| id.clone()).collect()
    }

    /// Takes in a list.
    pub(super) fn note(&mut self, listing: Listing, now: Moment) {
        let Listing { begun, entries, mut is_whole, mut read } = listing;
        let mut before = std::mem::take(&mut self.known);
        for (id, entry) in entries {
            let old = before.remove(&id);
            let known = match (read.remove(&id), old) {
                (Some(Read::Known(version, record)), old) => Known::read(&entry, version, record, old.as_ref(), now),
                (None, Some(old)) => old.listed(&entry, now),
                (Some(Read::Unread) | None, old) => {
                    is_whole = false;
                    let Some(old) = old else { continue };
                    old
                }
                (Some(Read::Gone), _) => continue,
            };
            if let Some(record) = &known.record {
                self.lives.insert((id.clone(), record.boot_id), (record.clone(), known.changed));
            }
            self.known.insert(id, known);
        }
        self.lives.retain(|_, (_, changed)| changed.age_at(now) < LIVE_FOR);
        if is_whole {
            self.listed = Some(begun);
        }
    }

    /// The record of a node, alive or not.
    pub(super) fn record(&self, id: &ResourceId) -> Option<&NodeRecord> {
        self.known.get(id)?.record.as_ref()
    }

    /// The records of live nodes.
    pub(super) fn live(&self, now: Moment) -> impl Iterator<Item = &NodeRecord> {
        self.known.values().filter(move |known| known.is_live(now)).filter_map(|known| known.record.as_ref())
    }

    /// Whether a node is alive.
    pub(super) fn is_live(&self, id: &ResourceId, now: Moment) -> bool {
        self.known.get(id).is_some_and(|known| known.is_live(now))
    }

    /// The nodes that may rely on records they have read, and whether there may be more of them.
    pub(super) fn holders(&self, now: Moment) -> (Vec<NodeRecord>, bool) {
        let live = self.lives.values().filter(|(record, at)| record.hold_ms > 0 && at.age_at(now) < LIVE_FOR);
        let is_old = self.listed.is_none_or(|listed| listed.age_at(now) > LIST_FOR);
        (live.map(|(record, _)| record.clone()).collect(), is_old)
    }

    /// Whether this run was seen recently.
    pub(super) fn has(&self, life: &Life) -> bool {
        self.lives.contains_key(life)
    }
}

impl Known {
    /// A listed record that was just read; `old` is what was known before.
    fn read(entry: &Entry, version: Version, record: Option<NodeRecord>, old: Option<&Self>, now: Moment) -> Self {
        let was_live = old.is_some() || node_record::is_live(entry.modify_time, now.wall());
        let (write_time, size_bytes) = (entry.modify_time, entry.size_bytes);
        Self { write_time, size_bytes, version, record, changed: now, was_live }
    }

    fn is_live(&self, now: Moment) -> bool {
        self.was_live && self.changed.age_at(now) < LIVE_FOR
    }

    /// The same record, listed again.
    fn listed(self, entry: &Entry, now: Moment) -> Self {
        if entry.modify_time == self.write_time {
            return self;
        }
        Self { write_time: entry.modify_time, size_bytes: entry.size_bytes, changed: now, was_live: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use entrepot_records::layout;
    use entrepot_runtime::Clock;
    use entrepot_store::{BlobStore as _, LocalStore};
    use entrepot_trust::ClusterKey;
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;

    /// A store with the records of other nodes, and the roll of this one.
    struct World {
        store: Arc<LocalStore>,
        key: ClusterKey,
        clock: Clock,
        roll: Roll,
        reads: usize,
        _dir: TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            let store = Arc::new(LocalStore::open(dir.path().join("store")).unwrap());
            let (key, clock) = (ClusterKey::generate(), Clock::manual(Clock::system().now()));
            Self { store, key, clock, roll: Roll::default(), reads: 0, _dir: dir }
        }

        fn now(&self) -> Moment {
            Moment::now(&self.clock)
        }

        /// Writes a record until its file shows a later time: the kernel's times stand still for some milliseconds.
        async fn write(&self, record: &NodeRecord) {
            let bytes = Bytes::from(self.key.sign_node_record(record));
            let before = self.write_time(record).await;
            while self.write_time(record).await == before {
                self.store.put(&layout::node(&record.node_id), bytes.clone()).await.unwrap();
            }
        }

        async fn write_time(&self, record: &NodeRecord) -> Option<DateTime<Utc>> {
            let entries = self.store.list(&layout::nodes_prefix(), None, 100).await.unwrap();
            let key = layout::node(&record.node_id);
            entries.into_iter().find(|entry| entry.key == key).map(|entry| entry.modify_time)
        }

        /// Lists the records, and reads those that must be read.
        async fn survey(&mut self) {
            let (begun, mut read) = (self.now(), HashMap::new());
            let entries = self.store.list(&layout::nodes_prefix(), None, 100).await.unwrap();
            let named = |entry: Entry| (entry.key.as_str()["nodes/".len()..].parse().unwrap(), entry);
            let entries: HashMap<ResourceId, Entry> = entries.into_iter().map(named).collect();
            for id in self.roll.unread(&entries) {
                let object = self.store.get(&layout::node(&id)).await.unwrap().unwrap();
                let record = self.key.read_node_record(&object.bytes).ok();
                read.insert(id, Read::Known(object.version, record));
                self.reads += 1;
            }
            self.roll.note(Listing { begun, entries, is_whole: true, read }, self.now());
        }

        fn holders(&self) -> Vec<u128> {
            let (holders, _) = self.roll.holders(self.now());
            let mut boots: Vec<u128> = holders.iter().map(|record| record.boot_id.as_u128()).collect();
            boots.sort_unstable();
            boots
        }
    }

    fn record(id: &str, boot: u128) -> NodeRecord {
        NodeRecord {
            node_id: id.parse().unwrap(),
            boot_id: Uuid::from_u128(boot),
            peer_address: None,
            release: String::new(),
            running: None,
            start_time: DateTime::UNIX_EPOCH,
            hold_ms: 5000,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_is_read_when_it_says_something_new_and_its_node_lives_while_it_is_written() {
        let mut world = World::new();
        for _ in 0..10 {
            world.write(&record("a", 1)).await;
            world.write(&record("b", 2)).await;
            world.survey().await;
            advance(Duration::from_secs(12)).await;
        }
        assert_eq!((world.reads, world.holders()), (2, vec![1, 2]));
        world.write(&NodeRecord { hold_ms: 0, ..record("a", 1) }).await;
        world.survey().await;
        assert_eq!((world.reads, world.holders()), (3, vec![2]), "what changes is read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_dead_when_its_record_has_not_changed_for_so_long_by_either_clock() {
        let mut world = World::new();
        world.write(&record("a", 1)).await;
        world.survey().await;
        advance(Duration::from_secs(34)).await;
        world.survey().await;
        assert_eq!((world.holders(), world.roll.live(world.now()).count()), (vec![1], 1));
        advance(Duration::from_secs(1)).await;
        assert_eq!((world.holders(), world.roll.live(world.now()).count()), (vec![], 0));
        world.write(&record("a", 1)).await;
        world.survey().await;
        assert_eq!(world.holders(), [1]);
        world.clock.advance(Duration::from_secs(35));
        assert_eq!(world.holders(), [] as [u128; 0], "nor by the clock on the wall");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_grows_old_by_either_clock() {
        let mut world = World::new();
        let is_old = |world: &World| world.roll.holders(world.now()).1;
        assert!(is_old(&world));
        world.survey().await;
        assert!(!is_old(&world));
        advance(Duration::from_secs(21)).await;
        assert!(is_old(&world));
        world.survey().await;
        world.clock.advance(Duration::from_secs(21));
        assert!(is_old(&world));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_lives_with_one_id_both_are_told_for_as_long_as_they_may_hold() {
        let mut world = World::new();
        world.write(&record("a", 1)).await;
        world.survey().await;
        advance(Duration::from_secs(10)).await;
        world.write(&record("a", 2)).await;
        world.survey().await;
        assert_eq!(world.holders(), [1, 2]);
        advance(Duration::from_secs(25)).await;
        assert_eq!(world.holders(), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_record_cannot_be_read_the_list_is_not_whole_and_it_is_tried_again() {
        let mut world = World::new();
        world.survey().await;
        advance(Duration::from_secs(21)).await;
        world.write(&record("a", 1)).await;
        let entry = world.store.list(&layout::nodes_prefix(), None, 1).await.unwrap().remove(0);
        let id: ResourceId = "a".parse().unwrap();
        let (entries, read) = (HashMap::from([(id.clone(), entry)]), HashMap::from([(id, Read::Unread)]));
        world.roll.note(Listing { begun: world.now(), entries, is_whole: true, read }, world.now());
        assert!(world.roll.holders(world.now()).1);
        world.survey().await;
        assert_eq!((world.reads, world.roll.holders(world.now()).1), (1, false));
    }
}
