//! A fair distribution of places: who gets one now, who waits, and who is next.
//!
//! A party that is alone may have all places but one eighth. That eighth is kept for parties with no place yet, or with
//! no more places than a client usually asks for at once, so that nobody has to be interrupted for them. Of the waiting
//! parties, the one with the fewest places is served first, and among equals the one that was served longest ago.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// The fraction of places that is kept free: one in this many.
const KEPT: usize = 8;

/// How many of the kept places one party may have, as long as that leaves some for others.
const FEW: usize = 4;

/// The places, the parties that have them, and those that wait.
#[derive(Clone, Debug)]
pub struct Shares<K> {
    free: usize,
    kept: usize,
    parties: HashMap<K, Party>,
    waiting: usize,
    /// Counts what happens, to order it.
    count: u64,
}

/// Identifies a waiting request.
pub type Ticket = u64;

#[derive(Clone, Debug, Default)]
struct Party {
    held: usize,
    waiting: VecDeque<Ticket>,
    /// When it was last served, or began to wait.
    turn: u64,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Creates this many places, all free.
    pub fn new(places: usize) -> Self {
        // A single place cannot be kept for others.
        let kept = places.div_ceil(KEPT).min(places.saturating_sub(1));
        Self { free: places, kept, parties: HashMap::new(), waiting: 0, count: 0 }
    }

    /// Gives `party` a place. If it may not have one now, returns the ticket with which it waits.
    pub fn ask(&mut self, party: K) -> Option<Ticket> {
        self.count += 1;
        let (free, kept, count) = (self.free, self.kept, self.count);
        let party = self.parties.entry(party).or_default();
        // No waiting party may have a place that is free now, so nobody is overtaken.
        if may_have(party.held, free, kept) {
            (party.held, party.turn) = (party.held + 1, count);
            self.free -= 1;
            return None;
        }
        if party.waiting.is_empty() {
            party.turn = count;
        }
        party.waiting.push_back(count);
        self.waiting += 1;
        Some(count)
    }

    /// Takes back a place from `party`. Returns the tickets that are served now.
    #[must_use]
    pub fn give_back(&mut self, party: &K) -> Vec<Ticket> {
        if let Some(one) = self.parties.get_mut(party).filter(|one| one.held > 0) {
            one.held -= 1;
            self.free += 1;
            self.leave(party);
        }
        let mut served = Vec::new();
        while let Some(ticket) = self.serve_next() {
            served.push(ticket);
        }
        served
    }

    /// Forgets a request that has waited long enough.
    pub fn give_up(&mut self, party: &K, ticket: Ticket) {
        if let Some(one) = self.parties.get_mut(party) {
            let before = one.waiting.len();
            one.waiting.retain(|waiting| *waiting != ticket);
            self.waiting -= before - one.waiting.len();
            self.leave(party);
        }
    }

    fn serve_next(&mut self) -> Option<Ticket> {
        if self.waiting == 0 || self.free == 0 {
            return None;
        }
        let (free, kept) = (self.free, self.kept);
        let waiting = self.parties.values_mut().filter(|party| !party.waiting.is_empty());
        let next =
            waiting.min_by_key(|party| (party.held, party.turn)).filter(|next| may_have(next.held, free, kept))?;
        let ticket = next.waiting.pop_front()?;
        self.count += 1;
        (next.held, next.turn) = (next.held + 1, self.count);
        self.free -= 1;
        self.waiting -= 1;
        Some(ticket)
    }

    /// Forgets a party that has no place and does not wait.
    fn leave(&mut self, party: &K) {
        if self.parties.get(party).is_some_and(|party| party.held == 0 && party.waiting.is_empty()) {
            self.parties.remove(party);
        }
    }
}

/// Whether a party with `held` places may have one of those that are free.
fn may_have(held: usize, free: usize, kept: usize) -> bool {
    free > kept || (free > 0 && held == 0) || (held < FEW && held < free)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `party` ask this many times; returns the tickets of those requests that wait.
    fn ask(shares: &mut Shares<&'static str>, party: &'static str, times: usize) -> Vec<Ticket> {
        (0..times).filter_map(|_| shares.ask(party)).collect()
    }

    #[test]
    fn whoever_is_alone_has_all_but_an_eighth_and_others_find_that() {
        let mut shares = Shares::new(80);
        assert_eq!(ask(&mut shares, "many", 100).len(), 30, "70 of 80 are had");
        assert!(ask(&mut shares, "new", 4).is_empty(), "as many as a client asks for at once");
        assert_eq!(ask(&mut shares, "new", 1).len(), 1, "the rest is kept for others");
        for other in ["a", "b", "c", "d", "e", "f"] {
            assert!(ask(&mut shares, other, 1).is_empty(), "{other} has none yet");
        }
        assert_eq!(ask(&mut shares, "late", 1).len(), 1, "there are no more");
    }

    #[test]
    fn a_few_places_are_kept_for_several_too() {
        let mut shares = Shares::new(4);
        assert_eq!(ask(&mut shares, "many", 9).len(), 6, "all but one");
        assert!(ask(&mut shares, "new", 1).is_empty());
        let mut shares = Shares::new(20);
        assert_eq!(ask(&mut shares, "many", 20).len(), 3);
        assert_eq!(ask(&mut shares, "new", 5).len(), 3, "two of three");
        assert!(ask(&mut shares, "newer", 1).is_empty());
        assert!(ask(&mut Shares::new(1), "only", 1).is_empty());
    }

    #[test]
    fn those_that_wait_are_served_in_turn_and_who_has_least_comes_first() {
        let mut shares = Shares::new(8);
        let many = ask(&mut shares, "many", 12);
        let other = [ask(&mut shares, "other", 3), ask(&mut shares, "third", 2)].concat();
        assert_eq!((many.len(), other.len()), (5, 4), "one is kept, and taken by the first that had none");
        // `third` has no place yet, so it comes first; then both have one, and `other` has waited longer. `many` has
        // most.
        let served: Vec<_> = (0..4).flat_map(|_| shares.give_back(&"many")).collect();
        assert_eq!(served, [other[2], other[0], other[3]], "one stays free: it is kept");
        assert!(ask(&mut shares, "fourth", 1).is_empty());
    }

    #[test]
    fn what_ends_leaves_nothing_behind() {
        let mut shares = Shares::new(2);
        let waiting = ask(&mut shares, "one", 3);
        shares.give_up(&"one", waiting[0]);
        shares.give_up(&"one", waiting[0]);
        assert_eq!(shares.give_back(&"one"), [waiting[1]]);
        assert!(shares.give_back(&"one").is_empty());
        assert!(shares.give_back(&"nobody").is_empty());
        assert_eq!((shares.free, shares.waiting, shares.parties.len()), (2, 0, 0));
    }

    #[test]
    fn nobody_who_may_have_a_place_waits_whatever_happens() {
        let mut shares = Shares::new(9);
        let (mut held, mut waiting, mut seed) = (Vec::new(), Vec::new(), 1_u64);
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (what, which) = ((seed >> 33) % 3, (seed >> 40) as usize);
            match what {
                0 => match shares.ask(which % 5) {
                    Some(ticket) => waiting.push((which % 5, ticket)),
                    None => held.push(which % 5),
                },
                1 if !held.is_empty() => {
                    let party = held.swap_remove(which % held.len());
                    for served in shares.give_back(&party) {
                        let at = waiting.iter().position(|(_, ticket)| *ticket == served).expect("it waited");
                        held.push(waiting.swap_remove(at).0);
                    }
                }
                2 if !waiting.is_empty() => {
                    let (party, ticket) = waiting.swap_remove(which % waiting.len());
                    shares.give_up(&party, ticket);
                }
                _ => {}
            }
            assert_eq!((shares.free + held.len(), shares.waiting), (9, waiting.len()));
            let least = |party: &usize| held.iter().filter(|one| *one == party).count();
            assert!(waiting.iter().all(|(party, _)| !may_have(least(party), shares.free, shares.kept)));
        }
    }
}
