//! The reasons to ask an upstream, by urgency.

/// Why an upstream is asked, the most urgent reason first. A limited budget is shared in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A client waits.
    Pull,
    /// A repository is brought up to date without a client waiting.
    Sync,
    /// Content is fetched before anybody asks for it.
    Warm,
}
