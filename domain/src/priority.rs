//! Who wants something of an upstream, by how long they can wait.

/// For whom an upstream is asked. What comes first here goes first where not all can go at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A client waits for the answer.
    #[default]
    Pull,
    /// What is cached is brought up to date; nobody waits for it yet.
    Sync,
    /// What may be wanted one day is fetched ahead.
    Warm,
}
