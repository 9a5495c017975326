//! Damaged objects: what nodes have found in the place of content.
//!
//! The memory or the disk of one node may be what is broken, and other nodes may read the same object right. So a node
//! that finds an object damaged writes that down and leaves it where it is. Only when a second one has read it wrong from
//! the store, too, or there is none besides, no pointer names it any more. It stays where it is for some days after that.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::word::{Rest, rest_of_new};

/// How many nodes have to say something of an object.
const WORDS: usize = 2;

/// What nodes have found in an object that is to have the content of a digest, at [`crate::layout::damage`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageRecord {
    /// What it is to hash to.
    pub digest: Digest,
    /// When it was found damaged.
    pub find_time: DateTime<Utc>,
    /// The nodes that have read something else, or nothing.
    pub wrong_for: BTreeSet<String>,
    /// The nodes that have read it right.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub right_for: BTreeSet<String>,
    /// When it was first seen that no pointer names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside_time: Option<DateTime<Utc>>,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

impl DamageRecord {
    /// An object of which nobody has said anything yet.
    pub fn new(digest: Digest, now: DateTime<Utc>) -> Self {
        Self {
            digest,
            find_time: now,
            wrong_for: BTreeSet::new(),
            right_for: BTreeSet::new(),
            set_aside_time: None,
            write: Uuid::nil(),
            rest: rest_of_new(),
        }
    }

    /// Notes what a node has read; the last that it says counts.
    pub fn note(&mut self, node: &str, is_right: bool) {
        let (to, from) = if is_right {
            (&mut self.right_for, &mut self.wrong_for)
        } else {
            (&mut self.wrong_for, &mut self.right_for)
        };
        from.remove(node);
        to.insert(node.to_owned());
    }

    /// Whether it matters what a node reads that has not said so yet.
    pub fn wants_word_of(&self, node: &str) -> bool {
        let has_spoken = self.wrong_for.contains(node) || self.right_for.contains(node);
        self.set_aside_time.is_none() && !has_spoken && self.wrong_for.len() + self.right_for.len() < WORDS
    }

    /// Whether no pointer is to name it any more; `is_alone` says that there is but one node.
    pub fn is_agreed(&self, is_alone: bool) -> bool {
        let wrong = self.wrong_for.len();
        wrong >= WORDS || (is_alone && wrong > 0 && self.right_for.is_empty())
    }

    /// Whether it was kept, or at least remembered, for long enough.
    pub fn is_over(&self, now: DateTime<Utc>, kept: Duration) -> bool {
        let age = now - self.set_aside_time.unwrap_or(self.find_time);
        age.to_std().is_ok_and(|age| age > kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(wrong: &[&str], right: &[&str]) -> DamageRecord {
        let mut record = DamageRecord::new(Digest::sha256(b""), DateTime::UNIX_EPOCH);
        wrong.iter().for_each(|node| record.note(node, false));
        right.iter().for_each(|node| record.note(node, true));
        record
    }

    #[test]
    fn one_node_decides_only_where_it_is_alone_and_nobody_has_read_it_right() {
        for (wrong, right, among_others, alone) in [
            (&[][..], &[][..], false, false),
            (&["a"], &[], false, true),
            (&["a", "a"], &[], false, true),
            (&["a"], &["b"], false, false),
            (&["a", "b"], &[], true, true),
            (&["a", "b"], &["c"], true, true),
            // The second word of a node replaces its first one.
            (&["a", "b"], &["a"], false, false),
        ] {
            let record = found(wrong, right);
            assert_eq!((record.is_agreed(false), record.is_agreed(true)), (among_others, alone), "{record:?}");
        }
    }

    #[test]
    fn a_second_word_is_wanted_and_no_third() {
        assert!(found(&["a"], &[]).wants_word_of("b"));
        assert!(!found(&["a"], &[]).wants_word_of("a"));
        assert!(!found(&["a"], &["b"]).wants_word_of("c"));
        assert!(!found(&["a", "b"], &[]).wants_word_of("c"));
    }

    #[test]
    fn it_is_kept_from_the_time_at_which_it_was_set_aside() {
        let (day, kept) = (Duration::from_secs(86_400), Duration::from_secs(7 * 86_400));
        let mut record = found(&["a", "b"], &[]);
        assert!(!record.is_over(record.find_time + kept, kept) && record.is_over(record.find_time + kept + day, kept));
        record.set_aside_time = Some(record.find_time + day);
        assert!(!record.is_over(record.find_time + kept + day, kept));
    }
}
