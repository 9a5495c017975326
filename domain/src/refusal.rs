//! How long an upstream's refusal is remembered: long enough that a herd of clients does not become a herd of requests,
//! and short enough that newly pushed or permitted content appears soon.

use std::time::Duration;

/// The ways in which an upstream refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It has no such tag. Somebody may push one at any moment.
    NoTag,
    /// It has no content with this digest.
    NoContent,
    /// It denies us access.
    Denied,
    /// Its bytes do not match the digest.
    WrongContent,
    /// It redirects to a place to which it may not redirect.
    Astray,
}

impl Refusal {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoTag => "no_tag",
            Self::NoContent => "no_content",
            Self::Denied => "denied",
            Self::WrongContent => "wrong_content",
            Self::Astray => "astray",
        }
    }

    /// How long the refusal is remembered after it has come `times` in a row, counted from 1.
    #[must_use]
    pub fn remembered_for(self, times: u32) -> Duration {
        let (first, most) = match self {
            Self::NoTag => (5, 60),
            Self::NoContent | Self::Astray => (60, 60),
            Self::Denied => (30, 30),
            Self::WrongContent => (30, 600),
        };
        let doublings = times.saturating_sub(1).min(10);
        Duration::from_secs((first << doublings).min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_soon_is_forgotten_soon_and_what_repeats_is_remembered_longer() {
        let seconds = |refusal: Refusal| [1, 2, 3, 9, u32::MAX].map(|times| refusal.remembered_for(times).as_secs());
        assert_eq!(seconds(Refusal::NoTag), [5, 10, 20, 60, 60]);
        assert_eq!(seconds(Refusal::NoContent), [60; 5]);
        assert_eq!(seconds(Refusal::Denied), [30; 5]);
        assert_eq!(seconds(Refusal::WrongContent), [30, 60, 120, 600, 600]);
        assert_eq!(seconds(Refusal::Astray), [60; 5]);
    }
}
