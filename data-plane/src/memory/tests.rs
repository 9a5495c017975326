#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use chrono::DateTime;
use entrepot_store::{BlobStore as _, LocalStore};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::time::{advance, sleep};

use super::*;

mod away;
mod hold;

const HOLD: Duration = Duration::from_secs(5);

/// A store for one kind of question: what it says, how long that takes, and how often it was asked.
#[derive(Default)]
struct Fake {
    says: Mutex<HashMap<Key, FakeRecord>>,
    reads: AtomicUsize,
    takes: Mutex<Duration>,
    is_away: Mutex<bool>,
    /// Reads wait here for leave, where there is a limit.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FakeRecord {
    Value(u32),
    Tombstone(u32),
}

#[derive(Clone)]
struct Ask(Arc<Fake>, Key);

impl Question for Ask {
    type Answer = FakeRecord;

    fn key(&self) -> &Key {
        &self.1
    }

    async fn ask(&self, _: &Store) -> Result<Option<(FakeRecord, usize)>, Error> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        // As it is when the read begins.
        let said = self.0.says.lock().get(&self.1).copied();
        let (takes, gate, is_away) = (*self.0.takes.lock(), self.0.gate.lock().clone(), *self.0.is_away.lock());
        sleep(takes).await;
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        if is_away { Err(Error::Away("gone".into())) } else { Ok(said.map(|said| (said, 4))) }
    }

    fn is_there(answer: &FakeRecord) -> bool {
        matches!(answer, FakeRecord::Value(_))
    }

    /// One byte is a value.
    fn decode(&self, bytes: &Bytes) -> Option<FakeRecord> {
        bytes.first().map(|value| FakeRecord::Value(u32::from(*value)))
    }
}

struct World {
    memory: Memory,
    fake: Arc<Fake>,
    clock: Clock,
    store: Store,
    _dir: TempDir,
}

impl World {
    fn new(hold: Hold) -> Self {
        let dir = TempDir::new().unwrap();
        let store: Store = Arc::new(LocalStore::open(dir.path().join("store")).unwrap());
        let clock = Clock::manual(DateTime::UNIX_EPOCH);
        let memory = Memory::new(store.clone(), clock.clone(), Tasks::new(), 100_000, hold);
        Self { memory, fake: Arc::default(), clock, store, _dir: dir }
    }

    fn holding() -> Self {
        Self::new(Hold::alone(|| HOLD))
    }

    fn key(number: u32) -> Key {
        format!("repositories/a{number}/_repository").parse().unwrap()
    }

    fn ask(&self) -> Ask {
        Ask(self.fake.clone(), Self::key(1))
    }

    fn say(&self, said: Option<FakeRecord>) {
        let mut says = self.fake.says.lock();
        match said {
            Some(said) => drop(says.insert(Self::key(1), said)),
            None => drop(says.remove(&Self::key(1))),
        }
    }

    async fn read(&self) -> (Option<FakeRecord>, Source) {
        let found = self.memory.read(&self.ask()).await.unwrap();
        (found.answer, found.source)
    }

    fn reads(&self) -> usize {
        self.fake.reads.load(Ordering::Relaxed)
    }

    /// By both clocks.
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        advance(time).await;
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_held_for_the_hold_time_by_either_clock() {
    let world = World::holding();
    world.say(Some(FakeRecord::Value(1)));
    assert_eq!(world.read().await, (Some(FakeRecord::Value(1)), Source::Store));
    world.say(Some(FakeRecord::Value(2)));
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(world.read().await, (Some(FakeRecord::Value(1)), Source::Memory));
    advance(Duration::from_secs(3)).await;
    assert_eq!(world.read().await, (Some(FakeRecord::Value(2)), Source::Store), "the monotonic clock says so");
    world.say(Some(FakeRecord::Value(3)));
    world.clock.advance(HOLD);
    assert_eq!(world.read().await, (Some(FakeRecord::Value(3)), Source::Store), "the wall clock says so");
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_from_when_it_was_asked_for_and_a_late_one_is_not_held() {
    let world = World::holding();
    world.say(Some(FakeRecord::Value(1)));
    *world.fake.takes.lock() = Duration::from_secs(2);
    world.read().await;
    *world.fake.takes.lock() = Duration::ZERO;
    world.say(Some(FakeRecord::Value(2)));
    advance(Duration::from_secs(3)).await;
    assert_eq!(
        world.read().await,
        (Some(FakeRecord::Value(2)), Source::Store),
        "the answer came 3 s ago, the question 5 s"
    );
    *world.fake.takes.lock() = HOLD;
    world.memory.forget(&World::key(1));
    world.read().await;
    *world.fake.takes.lock() = Duration::ZERO;
    assert_eq!(world.read().await.1, Source::Store);
}

#[tokio::test(start_paused = true)]
async fn a_hold_time_of_zero_asks_each_time() {
    let world = World::new(Hold::alone(|| Duration::ZERO));
    world.say(Some(FakeRecord::Value(1)));
    for _ in 0..5 {
        assert_eq!(world.read().await.1, Source::Store);
    }
    assert_eq!(world.reads(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_was_begun_before_a_word_is_not_held() {
    for below in [false, true] {
        let world = World::holding();
        world.say(Some(FakeRecord::Value(1)));
        *world.fake.takes.lock() = Duration::from_millis(100);
        let (memory, ask) = (world.memory.clone(), world.ask());
        let reading = tokio::spawn(async move { memory.read(&ask).await.unwrap().answer });
        settle().await;
        world.say(Some(FakeRecord::Value(2)));
        if below {
            world.memory.forget_below("repositories/a")
        } else {
            world.memory.forget(&World::key(1))
        }
        assert_eq!(reading.await.unwrap(), Some(FakeRecord::Value(1)), "it had asked before that");
        assert_eq!(world.read().await, (Some(FakeRecord::Value(2)), Source::Store));
    }
}

#[tokio::test(start_paused = true)]
async fn an_earlier_read_does_not_replace_what_a_later_one_has_found() {
    let world = World::holding();
    world.say(Some(FakeRecord::Value(1)));
    *world.fake.takes.lock() = Duration::from_millis(100);
    let (memory, ask) = (world.memory.clone(), world.ask());
    let early = tokio::spawn(async move { memory.read_anew(&ask).await.unwrap().answer });
    settle().await;
    world.say(Some(FakeRecord::Value(2)));
    *world.fake.takes.lock() = Duration::ZERO;
    world.memory.read_anew(&world.ask()).await.unwrap();
    assert_eq!(early.await.unwrap(), Some(FakeRecord::Value(1)));
    assert_eq!(world.read().await, (Some(FakeRecord::Value(2)), Source::Memory));
}

#[tokio::test(start_paused = true)]
async fn reads_of_what_is_not_there_are_shared_by_one_that_runs_and_one_that_is_next() {
    for said in [None, Some(FakeRecord::Tombstone(1))] {
        let world = World::holding();
        world.say(said);
        let gate = Arc::new(Semaphore::new(0));
        *world.fake.gate.lock() = Some(gate.clone());
        let ask = || {
            let (memory, ask) = (world.memory.clone(), world.ask());
            tokio::spawn(async move { memory.read(&ask).await.unwrap().answer })
        };
        let first = ask();
        settle().await;
        let others: Vec<_> = (0..50).map(|_| ask()).collect();
        settle().await;
        assert_eq!(world.reads(), 1);
        gate.add_permits(100);
        assert_eq!(first.await.unwrap(), said);
        for other in others {
            assert_eq!(other.await.unwrap(), said);
        }
        assert_eq!(world.reads(), 2, "those that came while the first ran share the next");
        world.say(Some(FakeRecord::Value(1)));
        assert_eq!(world.read().await, (Some(FakeRecord::Value(1)), Source::Store), "what appears is seen at once");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_read_behind_the_answers_and_twice_in_a_hold_time_at_most() {
    let world = World::holding();
    world.say(Some(FakeRecord::Value(1)));
    world.read().await;
    for _ in 0..1000 {
        world.pass(Duration::from_millis(50)).await;
        assert_eq!(world.read().await.1, Source::Memory, "nobody waits");
        settle().await;
    }
    let (reads, hold_times) = (world.reads(), 10);
    assert!((hold_times..=2 * hold_times + 1).contains(&reads), "{reads} reads in {hold_times} hold times");
}

#[tokio::test(start_paused = true)]
async fn what_this_node_writes_is_read_before_it_is_believed() {
    let world = World::holding();
    let key: Key = "repositories/a/_x/tags/v1".parse().unwrap();
    let store = Forgetful::new(world.store.clone(), world.memory.clone());
    let ask = Ask(world.fake.clone(), key.clone());
    world.fake.says.lock().insert(key.clone(), FakeRecord::Value(1));
    world.memory.read(&ask).await.unwrap();
    store.put(&key, Bytes::from_static(b"new")).await.unwrap();
    world.fake.says.lock().insert(key.clone(), FakeRecord::Value(2));
    assert_eq!(world.memory.read(&ask).await.unwrap().answer, Some(FakeRecord::Value(2)));
    assert!(store.replace_if(&key, None, Bytes::from_static(b"newer")).await.is_err());
    world.fake.says.lock().insert(key.clone(), FakeRecord::Value(3));
    assert_eq!(world.memory.read(&ask).await.unwrap().answer, Some(FakeRecord::Value(3)), "also if it did not succeed");
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded() {
    let world = World::holding();
    for number in 0..2000 {
        let key = World::key(number);
        world.fake.says.lock().insert(key.clone(), FakeRecord::Value(number));
        world.memory.read(&Ask(world.fake.clone(), key)).await.unwrap();
    }
    world.memory.0.known.run_pending_tasks();
    let bytes = world.memory.0.known.weighted_size();
    assert!(bytes <= 100_000, "{bytes}");
}

#[tokio::test(start_paused = true)]
async fn work_is_believed_that_began_within_the_hold_time_and_since_the_last_word_about_its_repository() {
    let world = World::holding();
    let since = |name: &str| world.memory.believed_since(&name.parse().unwrap());
    advance(HOLD * 2).await;
    let began = Instant::now();
    assert_eq!(since("a1"), Some(began - HOLD), "words are lost");
    world.memory.forget(&World::key(1));
    world.memory.forget_below("repositories/a3/b/_0/tags/");
    assert_eq!(["a1", "a2", "a3/b"].map(since), [Some(began), Some(began - HOLD), Some(began)]);
    let never = World::new(Hold::never());
    assert_eq!(never.memory.believed_since(&"a1".parse().unwrap()), None, "nobody waits for it to forget");
}
