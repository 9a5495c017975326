//! Faults that depend on a seed.

use std::collections::HashMap;
use std::time::Duration;

use super::script::Fault;
use crate::images::random_bytes;

/// Faults occur within the first bytes of a body, up to this power of two; small content is affected as often.
const REACH: u64 = 21;

/// Decides which request gets which fault. The decision depends on the seed, on the request's method and path, and on
/// how many equal requests came before. So the order of different requests does not matter.
pub(super) struct Chaos {
    pub(super) seed: u64,
    pub(super) percent: u8,
    seen: HashMap<String, u64>,
}

impl Chaos {
    pub(super) fn new(seed: u64, percent: u8) -> Self {
        Self { seed, percent, seen: HashMap::new() }
    }

    /// The fault for this request, if any.
    pub(super) fn fault(&mut self, request: &str) -> Option<Fault> {
        let seen = self.seen.entry(request.to_owned()).or_default();
        let mut dice = Dice::new(self.seed, request, *seen);
        *seen += 1;
        (dice.below(100) < u64::from(self.percent)).then(|| any_fault(&mut dice))
    }
}

/// A fault that any registry could show, and that a later request may not have.
fn any_fault(dice: &mut Dice) -> Fault {
    let reach = dice.below(REACH);
    let at = dice.below(1 << reach);
    match dice.below(14) {
        0 => Fault::Status(429, None),
        1 => Fault::Status(429, Some("1".to_owned())),
        2 => Fault::Status(503, None),
        3 => Fault::Status(500, None),
        4 => Fault::HangUp,
        5 => Fault::CutAfter(at),
        6 => Fault::ResetAfter(at),
        7 => Fault::EndAfter(at),
        8 => Fault::StallAfter(at),
        9 => Fault::FlipBitAt(at),
        10 => Fault::Html,
        11 => Fault::NoLength,
        12 => Fault::ExpireTokens,
        _ => Fault::Delay(Duration::from_millis(dice.below(1000))),
    }
}

/// Numbers that depend only on the seed and the request.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, request: &str, seen: u64) -> Self {
        // FNV-1a, whose result is the same on every machine and in every release.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let begin = 0xcbf2_9ce4_8422_2325;
        Self(seed.to_le_bytes().into_iter().chain(seen.to_le_bytes()).chain(request.bytes()).fold(begin, mix))
    }

    fn below(&mut self, bound: u64) -> u64 {
        let bytes = random_bytes(self.0, 8);
        self.0 = u64::from_le_bytes(bytes.try_into().expect("eight bytes were asked for"));
        self.0 % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(seed: u64, requests: &[&str]) -> Vec<String> {
        let mut chaos = Chaos::new(seed, 50);
        requests.iter().map(|request| format!("{request} {:?}", chaos.fault(request))).collect()
    }

    #[test]
    fn a_seed_decides_the_same_again_in_whatever_order_requests_come() {
        let (one, other) = ("GET /v2/a/blobs/1", "GET /v2/a/blobs/2");
        let first = faults(7, &[one, one, one, other, other, other].repeat(8));
        assert_eq!(first, faults(7, &[one, one, one, other, other, other].repeat(8)));
        let mut sorted = first.clone();
        sorted.sort();
        let mut turned = faults(7, &[other, one].repeat(24));
        turned.sort();
        assert_eq!(sorted, turned);
        assert_ne!(first, faults(8, &[one, one, one, other, other, other].repeat(8)));
    }

    #[test]
    fn as_many_requests_meet_a_fault_as_was_said() {
        for percent in [0, 30, 100] {
            let mut chaos = Chaos::new(1, percent);
            let hit = (0..2000).filter(|_| chaos.fault("GET /").is_some()).count();
            let expected = 20 * usize::from(percent);
            assert!(hit.abs_diff(expected) < 100, "{hit} of 2000 at {percent} percent");
        }
    }
}
