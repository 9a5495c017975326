//! Which bytes of a fill its readers may have.

use std::ops::Range;

/// Which bytes of a fill its readers may have: those that have landed, except the tail that is held back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    landed: u64,
    /// Sorted, and not touching each other.
    ahead: Vec<Range<u64>>,
    limit: u64,
}

impl Reach {
    /// The first `landed` bytes and the ranges of `ahead`, both only up to `limit`.
    pub(super) fn new(landed: u64, ahead: impl Iterator<Item = Range<u64>>, limit: u64) -> Self {
        Self { landed, ahead: ahead.collect(), limit }
    }

    /// The end of the readable bytes from `at` on; `at` itself if there is nothing yet.
    pub fn until(&self, at: u64) -> u64 {
        let mut end = if at < self.landed { self.landed } else { at };
        for part in &self.ahead {
            if part.contains(&end) {
                end = part.end;
            }
        }
        end.min(self.limit).max(at)
    }

    /// How many bytes have landed without a gap, held back or not.
    pub fn landed_bytes(&self) -> u64 {
        self.landed
    }

    /// Whether any byte may be read.
    pub fn has_any(&self) -> bool {
        self.landed.min(self.limit) > 0 || self.ahead.iter().any(|part| part.start < part.end.min(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_that_touch_are_read_through_and_the_end_is_held_back() {
        let reach = Reach::new(10, [10..20, 30..40].into_iter(), 35);
        for (at, until) in [(0, 20), (10, 20), (20, 20), (25, 25), (30, 35), (35, 35), (50, 50)] {
            assert_eq!(reach.until(at), until, "{at}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_read_that_has_not_landed(landed in 0u64..50, gap in 1u64..50, len in 0u64..50, limit: u8, at: u8) {
            let (start, limit, at) = (landed + gap, u64::from(limit), u64::from(at));
            let reach = Reach::new(landed, std::iter::once(start..start + len), limit);
            let until = reach.until(at);
            prop_assert!(until >= at);
            for byte in at..until {
                prop_assert!(byte < limit && (byte < landed || (start..start + len).contains(&byte)));
            }
        }
    }
}
