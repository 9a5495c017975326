//! What a principal may do with a repository.

use crate::future;

/// Something that a principal may or may not do. A snapshot lists the permitted actions of each principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read what is in a repository.
    Pull,
    /// Write into a repository that clients push to.
    Push,
    /// Delete content and tags.
    Delete,
    /// Create a repository by being the first to pull from it.
    Create,
    /// Have missing content fetched from an upstream.
    Fill,
    /// Write on behalf of another of our registries.
    Replicate,
}

impl Action {
    /// All actions known to this release.
    pub const ALL: [Self; 6] = [Self::Pull, Self::Push, Self::Delete, Self::Create, Self::Fill, Self::Replicate];

    /// The name in snapshots.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Create => "create",
            Self::Fill => "fill",
            Self::Replicate => "replicate",
        }
    }

    /// The action with this name. A name that this release does not know grants nothing.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name).or_else(|| future::action(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_unknown_ones_mean_nothing() {
        for action in Action::ALL {
            assert_eq!(Action::from_name(action.as_str()), Some(action));
        }
        for unknown in ["", "Pull", "*", "sign"] {
            assert_eq!(Action::from_name(unknown), None, "{unknown}");
        }
    }
}
