//! Lasting trouble is reported twice, when it begins and when it ends, however often it is met in between.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether there is trouble that was reported.
#[derive(Debug, Default)]
pub struct Trouble(AtomicBool);

impl Trouble {
    /// Notes that there is trouble. Returns true if this is new, and so to be reported.
    pub fn begin(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Notes that there is none. Returns true if there was trouble before, and its end is to be reported.
    pub fn end(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_begin_and_the_end_are_reported_once_each() {
        let trouble = Trouble::default();
        assert!(!trouble.end(), "nothing has begun");
        assert_eq!([trouble.begin(), trouble.begin(), trouble.begin()], [true, false, false]);
        assert_eq!([trouble.end(), trouble.end(), trouble.begin()], [true, false, true]);
    }
}
