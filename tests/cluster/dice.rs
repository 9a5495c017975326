//! Numbers that a seed decides.

/// Numbers that are the same for the same seed: SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// One of so many; `None` if there is none.
    pub(crate) fn below(&mut self, bound: usize) -> Option<usize> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 8).ok()?.checked_rem(bound)
    }

    /// One of these.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn any<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len()).expect("there is something to choose from")]
    }
}
