//! Why a pull fails. `http/error.rs` maps this to the wire, once.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::exact;
use entrepot_domain::{Action, ResourceId};
use entrepot_upstream::Login;

/// Why a pull fails. Cheap to clone, since all readers of a fill get the same one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The path or method is not one of ours, or a name in it is malformed.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Nobody, or nobody known, is asking.
    #[error("{0}")]
    Unauthenticated(LoginFault),
    /// The token does not cover the repository; another one could.
    #[error("the token does not allow pulling from this repository; ask the token endpoint for its scope")]
    InsufficientScope,
    /// The principal may not do what this would take.
    #[error("this principal may not {}", match .action {
        Action::Pull => "pull from this repository",
        Action::Push => "push to this repository",
        Action::Delete => "delete from this repository",
        Action::Create => "have this repository created, which does not exist yet",
        Action::Fill => "have content fetched from an upstream, and this is not cached",
        Action::Replicate => "replicate to this repository",
    })]
    Denied {
        /// What it may not do.
        action: Action,
    },
    /// Too many failed logins with this key.
    #[error("too many failed logins with this key")]
    TooManyLogins {
        /// When to try again.
        retry_after: Duration,
    },
    /// No rule covers the name, and no repository has it.
    #[error("no rule covers this name; `entrepot rule list` shows the prefixes that rules cover")]
    NoRule,
    /// What covers the name is not understood here; a node of a later release may serve it.
    #[error("`{item}` covers this name, and this node is of a release that does not understand it")]
    LeftOut {
        /// What is not understood, such as `rules/hub`.
        item: Arc<str>,
    },
    /// The repository is there or could be, the content is not.
    #[error("{} is unknown{}", asked_name(*.asked), .rule.as_ref().map_or(String::new(), |rule| format!(": the upstream of rule `{rule}` does not have it")))]
    NotFound {
        /// What was asked for.
        asked: Asked,
        /// The rule whose upstream was asked.
        rule: Option<ResourceId>,
    },
    /// The upstream refuses us.
    #[error(
        "the upstream `{upstream}` of rule `{rule}` denies access (status {status}): {}",
        match .login {
            Login::Anonymous => "it may not have this image, or want a credential",
            Login::Credential => "it may not have this image, or want another credential",
        }
    )]
    UpstreamDenied {
        /// The rule.
        rule: ResourceId,
        /// Its upstream.
        upstream: ResourceId,
        /// What it, or its token server, answered.
        status: u16,
        /// As whom it was asked.
        login: Login,
    },
    /// The upstream has had enough requests from us.
    #[error(
        "the upstream `{upstream}` of rule `{rule}` limits our requests (status 429){}; what is cached goes on being served",
        pause(*.retry_after)
    )]
    UpstreamThrottled {
        /// The rule.
        rule: ResourceId,
        /// Its upstream.
        upstream: ResourceId,
        /// When the upstream wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// What the upstream lets us ask for is kept for clients that wait.
    #[error("the budget of upstream `{upstream}` of rule `{rule}` is kept for clients that wait")]
    OverBudget {
        /// The rule.
        rule: ResourceId,
        /// Its upstream.
        upstream: ResourceId,
        /// When there is more of it.
        retry_after: Duration,
    },
    /// The upstream does not answer, or answers that it is broken.
    #[error("the upstream `{upstream}` of rule `{rule}` is away{}", status.map_or(String::new(), |status| format!(" (status {status})")))]
    UpstreamAway {
        /// The rule.
        rule: ResourceId,
        /// Its upstream.
        upstream: ResourceId,
        /// What it answered, if it did.
        status: Option<u16>,
    },
    /// The upstream leads to an address or token realm that it has no leave for.
    #[error("the upstream `{upstream}` of rule `{rule}` is refused: {what}")]
    UpstreamRefused {
        /// The rule.
        rule: ResourceId,
        /// Its upstream.
        upstream: ResourceId,
        /// What was refused, and the remedy.
        what: String,
    },
    /// The upstream delivered something that is not what was asked for.
    #[error("the upstream `{upstream}` of rule `{rule}` delivered bad content: {what}")]
    BadContent {
        /// The rule.
        rule: ResourceId,
        /// Its upstream.
        upstream: ResourceId,
        /// What is wrong with it.
        what: String,
    },
    /// The upstream did not confirm a tag that was last confirmed longer ago than the rule allows.
    #[error(
        "rule `{rule}` serves a tag unconfirmed for {} at most, and this one was last confirmed {}: {cause}",
        exact(*.max_stale), .validated.map_or_else(|| "never".to_owned(), |at| format!("at {}", at.format("%FT%TZ")))
    )]
    TooStale {
        /// The rule.
        rule: ResourceId,
        /// What it allows.
        max_stale: Duration,
        /// When the upstream last confirmed the tag.
        validated: Option<DateTime<Utc>>,
        /// Why it did not do so now.
        cause: Box<PullError>,
    },
    /// The store does not answer.
    #[error("the registry's storage is away")]
    StoreAway,
    /// The node does not know its configuration yet.
    #[error("this node has no configuration yet")]
    NoSnapshot,
    /// This node is doing as much as it may.
    #[error("this node is busy")]
    Busy,
    /// The work did not end in time, or was broken off; what was done of it is not lost.
    #[error("this node has given up for now; what is under way goes on, so try again")]
    GaveUp,
    /// Something that cannot be.
    #[error("an internal error; the node's log says more")]
    Internal,
}

impl PullError {
    /// Whether the upstream has said that the repository may not have this, or does not have it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::UpstreamDenied { .. })
    }
}

/// Why a request asks for nothing that exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such path.
    #[error("there is nothing at this path; images are below `/v2/`")]
    NoSuchPath,
    /// A name with an encoded slash, which is no separator.
    #[error("the repository name holds an encoded slash")]
    EncodedSlash,
    /// A path that exists, and a method that it does not offer.
    #[error("this registry serves pulls: only GET and HEAD are supported here")]
    Method,
    /// The repository name breaks the grammar.
    #[error("the repository name {0}")]
    Name(#[from] entrepot_domain::name::NameError),
    /// The tag breaks the grammar, so no such tag can exist.
    #[error("the tag {0}")]
    Tag(entrepot_domain::reference::TagError),
    /// The size of a page is no number.
    #[error("`n` must be a whole number, such as `n=100`")]
    PageSize,
    /// The digest is malformed.
    #[error("the digest must be `sha256:` with 64, or `sha512:` with 128 lower-case hex digits")]
    MalformedDigest,
    /// The digest's algorithm is not known here, so nothing can have it.
    #[error("the digest uses an algorithm that is not known here; `sha256` and `sha512` are")]
    UnknownAlgorithm(Asked),
}

/// What was asked for, where that is all that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A manifest.
    Manifest,
    /// A blob.
    Blob,
    /// A repository.
    Repository,
}

/// Why nobody known is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginFault {
    /// No credentials.
    #[error("log in first: `entrepot login-password | docker login --username AWS --password-stdin <registry>`")]
    Missing,
    /// Credentials that are not ours, or wrong.
    #[error("the credentials are wrong or revoked; get a new token with `entrepot login-password`")]
    Wrong,
    /// A token that was right once.
    #[error("the token has expired; get a new one with `entrepot login-password`")]
    Expired,
}

/// For how long an upstream is asked nothing, rounded up: who comes then is not too early.
fn pause(left: Option<Duration>) -> String {
    match left.filter(|left| !left.is_zero()) {
        Some(left) => {
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            format!(", and is asked nothing for {}", exact(Duration::from_secs(seconds)))
        }
        None => String::new(),
    }
}

fn asked_name(asked: Asked) -> &'static str {
    match asked {
        Asked::Manifest => "the manifest",
        Asked::Blob => "the blob",
        Asked::Repository => "the repository",
    }
}
