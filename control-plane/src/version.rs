//! Which configuration.

use std::fmt;

/// Which configuration: a later epoch beats any revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// Raised by a restore of the database.
    pub epoch: i64,
    /// Raised by each change.
    pub revision: i64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, revision {}", self.epoch, self.revision)
    }
}
