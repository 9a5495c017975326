//! File descriptors, which limit how much a process may have open. Each connection takes one, and so does each file
//! that is read for it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// The highest limit that we ask for. Some systems have none at all, and code that loops over all descriptors would
/// never finish.
const MOST: u64 = 1 << 20;

/// Raises the process's limit of open files to the highest value that it may set itself.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(had) = current else { return };
    let wanted = maximum.unwrap_or(MOST).min(MOST);
    if wanted <= had {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        warn!(descriptors = had, "the limit of open files stays as it is: {error}");
    }
}

/// The number of connections that a listener may have: `most`, but at most one `part`-th of the file descriptors.
#[must_use]
pub fn connections(most: usize, part: u64) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    most.min(usize::try_from(limit / part).unwrap_or(usize::MAX)).max(1)
}
