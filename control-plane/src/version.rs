//! Versions of the configuration.

use std::fmt;

/// A version of the configuration: a later epoch is newer, whatever the revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// Raised when the database is restored.
    pub epoch: i64,
    /// Raised by each change.
    pub revision: i64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, revision {}", self.epoch, self.revision)
    }
}
