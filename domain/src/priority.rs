//! For whose sake an upstream is asked.

/// For whose sake an upstream is asked, the most urgent first. What an upstream lets us have is shared in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A client waits.
    Pull,
    /// A repository is brought up to date without a client waiting.
    Sync,
    /// Content is fetched before anybody asks for it.
    Warm,
}
