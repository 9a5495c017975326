//! What is wrong with a configuration.

use std::fmt;

/// One mistake: where, what, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) place: String,
    pub(super) what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// All mistakes of a configuration, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

impl Problems {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [only] => write!(f, "{only}"),
            all => {
                write!(f, "the configuration has {} mistakes:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for Problems {}

/// Says that a value is missing because of a mistake which [`super::Reader::finish`] will tell.
#[derive(Clone, Debug)]
#[must_use]
pub struct Reported(pub(super) Problem);

impl From<Reported> for Problems {
    fn from(reported: Reported) -> Self {
        Self(vec![reported.0])
    }
}
