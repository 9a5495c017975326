//! Recent messages to forget something: a read that began before such a message is not held.

use std::collections::HashMap;
use std::time::Duration;

use entrepot_store::Key;
use tokio::time::Instant;

/// How many messages are remembered individually. Beyond that, nothing that began before them is held.
const WORDS: usize = 100_000;
/// How long a message is remembered at least, if there are many: longer than a read takes.
const LIFETIME: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Words {
    keys: HashMap<Key, (u64, Instant)>,
    prefixes: Vec<(String, u64, Instant)>,
    /// Nothing that began before this number is held.
    all: u64,
}

impl Words {
    pub(super) fn note_key(&mut self, key: &Key, number: u64) {
        self.make_room(number);
        self.keys.insert(key.clone(), (number, Instant::now()));
    }

    pub(super) fn note_prefix(&mut self, prefix: &str, number: u64) {
        self.make_room(number);
        self.prefixes.push((prefix.to_owned(), number, Instant::now()));
    }

    /// Whether there was a message about `key` since `number`.
    pub(super) fn are_about(&self, key: &Key, number: u64) -> bool {
        let about_key = self.keys.get(key).is_some_and(|(word, _)| *word > number);
        let mut prefixes = self.prefixes.iter();
        self.all > number || about_key || prefixes.any(|(prefix, word, _)| *word > number && is_below(key, prefix))
    }

    /// Drops messages that are too old to matter. If that is not enough, drops all of them, and then nothing older is
    /// held.
    fn make_room(&mut self, number: u64) {
        if self.keys.len() + self.prefixes.len() < WORDS {
            return;
        }
        let is_young = |at: &Instant| at.elapsed() < LIFETIME;
        self.keys.retain(|_, (_, at)| is_young(at));
        self.prefixes.retain(|(_, _, at)| is_young(at));
        if self.keys.len() + self.prefixes.len() >= WORDS / 2 {
            self.all = number;
            self.keys.clear();
            self.prefixes.clear();
        }
    }
}

pub(super) fn is_below(key: &Key, prefix: &str) -> bool {
    key.as_str().starts_with(prefix)
}
