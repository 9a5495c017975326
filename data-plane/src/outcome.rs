//! How pulls end.

/// How a pull ended, for people and for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// From the store, without asking the upstream.
    Hit,
    /// From the store, after the upstream had confirmed it.
    Revalidated,
    /// From the upstream.
    Miss,
    /// From the upstream, through another node that fetches it.
    Follow,
    /// From the store, while the upstream is asked in the background.
    Background,
    /// From the store, although the upstream should have confirmed it and did not.
    Stale,
    /// From the upstream, without storing it.
    Bypass,
}

impl Outcome {
    /// The name in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Follow => "follow",
            Self::Background => "background",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
        }
    }
}
