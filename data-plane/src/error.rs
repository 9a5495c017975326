//! Why a pull fails. `http/error.rs` maps this to the wire, once.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::exact;
use entrepot_domain::hops::Loop;
use entrepot_domain::{Action, ResourceId};
use entrepot_upstream::Login;

/// Why a pull fails. It is cheap to clone, since all readers of a fill get the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The path or method is unknown, or a name in it is malformed.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The caller is not logged in, or not known.
    #[error("{0}")]
    Unauthenticated(LoginFault),
    /// The token does not cover the repository; another token could.
    #[error("the token does not allow pulling from this repository; ask the token endpoint for its scope")]
    InsufficientScope,
    /// The principal lacks a permission.
    #[error("this principal may not {}", match .action {
        Action::Pull => "pull from this repository",
        Action::Push => "push to this repository",
        Action::Delete => "delete from this repository",
        Action::Create => "have this repository created, which does not exist yet",
        Action::Fill => "have content fetched from an upstream, and this is not cached",
        Action::Replicate => "replicate to this repository",
    })]
    Denied { action: Action },
    /// The request goes round in a circle of registries, or may do so.
    #[error("this request goes no further: {0}")]
    Loop(Loop),
    /// Too many logins with this key from the client's network have failed.
    #[error("too many failed logins with this key from your network")]
    TooManyLogins { retry_after: Duration },
    /// No rule covers the name, and there is no repository with it.
    #[error("no rule covers this name; `entrepot rule list` shows the prefixes that rules cover")]
    NoRule,
    /// The item that covers the name is not understood here; a node of a later release may serve it.
    #[error("`{item}` covers this name, and this node is of a release that does not understand it")]
    LeftOut {
        /// The item, such as `rules/hub`.
        item: Arc<str>,
    },
    /// The repository exists or could exist, but the content does not.
    #[error("{} is unknown{}", asked_name(*.asked), .rule.as_ref().map_or(String::new(), |rule| format!(": the upstream of rule `{rule}` does not have it")))]
    NotFound {
        asked: Asked,
        /// The rule whose upstream was asked.
        rule: Option<ResourceId>,
    },
    /// The stored content is damaged, and there is no upstream to fetch it again from.
    #[error("{} is damaged in the registry's storage, and no rule covers it that could fetch it anew; see the node's log", asked_name(*.asked))]
    Damaged { asked: Asked },
    /// The upstream denies access.
    #[error(
        "the upstream `{upstream}` of rule `{rule}` denies access (status {status}): {}",
        match .login {
            Login::Anonymous => "it may not have this image, or want a credential",
            Login::Credential => "it may not have this image, or want another credential",
        }
    )]
    UpstreamDenied {
        rule: ResourceId,
        upstream: ResourceId,
        /// The status of the upstream or its token server.
        status: u16,
        /// The login that was used.
        login: Login,
    },
    /// The upstream limits our requests.
    #[error(
        "the upstream `{upstream}` of rule `{rule}` limits our requests (status 429){}; what is cached is still served",
        pause(*.retry_after)
    )]
    UpstreamThrottled {
        rule: ResourceId,
        upstream: ResourceId,
        /// When to ask the upstream again.
        retry_after: Option<Duration>,
    },
    /// The rest of the upstream's budget is reserved for clients that wait.
    #[error("the budget of upstream `{upstream}` of rule `{rule}` is kept for clients that wait")]
    OverBudget {
        rule: ResourceId,
        upstream: ResourceId,
        /// When there will be more.
        retry_after: Duration,
    },
    /// The upstream does not answer, or answers that it is broken.
    #[error("the upstream `{upstream}` of rule `{rule}` is away{}", status.map_or(String::new(), |status| format!(" (status {status})")))]
    UpstreamAway {
        rule: ResourceId,
        upstream: ResourceId,
        /// The status, if there was an answer.
        status: Option<u16>,
    },
    /// The upstream has noticed that the request goes round in a circle.
    #[error(
        "the upstream `{upstream}` of rule `{rule}` leads back to this registry, or through too many others (status 508)"
    )]
    UpstreamLoops { rule: ResourceId, upstream: ResourceId },
    /// The upstream leads to an address or token realm that is not allowed.
    #[error("the upstream `{upstream}` of rule `{rule}` is refused: {what}")]
    UpstreamRefused {
        rule: ResourceId,
        upstream: ResourceId,
        /// What was refused, and how to allow it.
        what: String,
    },
    /// The upstream delivered something else than was requested.
    #[error("the upstream `{upstream}` of rule `{rule}` delivered bad content: {what}")]
    BadContent { rule: ResourceId, upstream: ResourceId, what: String },
    /// The upstream did not confirm a tag whose last confirmation is older than the rule allows.
    #[error(
        "rule `{rule}` serves a tag unconfirmed for {} at most, and this one was last confirmed {}: {cause}",
        exact(*.max_stale), .validated.map_or_else(|| "never".to_owned(), |at| format!("at {}", at.format("%FT%TZ")))
    )]
    TooStale {
        rule: ResourceId,
        /// The rule's limit.
        max_stale: Duration,
        /// When the upstream last confirmed the tag.
        validated: Option<DateTime<Utc>>,
        /// Why it did not confirm it now.
        cause: Box<PullError>,
    },
    /// The store does not answer.
    #[error("the registry's storage is away")]
    StoreAway,
    /// A record cannot be used, and only the control plane can write it again.
    #[error(
        "the record `{record}` cannot be used; the node's log says why, and `entrepot admin reindex` writes that of a \
         repository again"
    )]
    BadRecord { record: String },
    /// The node does not know its configuration yet.
    #[error("this node has no configuration yet")]
    NoSnapshot,
    /// This node is doing as much as it may.
    #[error("this node is busy")]
    Busy,
    /// The work did not finish in time, or was broken off. Its progress is not lost.
    #[error("this node has given up for now; what is under way goes on, so try again")]
    GaveUp,
    /// Something that must not happen.
    #[error("an internal error; the node's log says more")]
    Internal,
}

impl PullError {
    /// Whether the upstream has said that the repository does not have this, or must not be read.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::UpstreamDenied { .. })
    }

    /// Whether this is about the path of one request only, and says nothing about what the upstream has.
    pub(crate) fn is_loop(&self) -> bool {
        matches!(self, Self::Loop(_) | Self::UpstreamLoops { .. })
    }
}

/// Why a request is for something that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("there is nothing at this path; images are below `/v2/`")]
    NoSuchPath,
    /// A name contains an encoded slash, which is not a separator.
    #[error("the repository name holds an encoded slash")]
    EncodedSlash,
    /// The path exists, but does not support the method.
    #[error("this registry serves pulls: only GET and HEAD are supported here")]
    Method,
    /// The repository name is illegal.
    #[error("the repository name {0}")]
    Name(#[from] entrepot_domain::name::NameError),
    /// The tag is illegal, so it cannot exist.
    #[error("the tag {0}")]
    Tag(entrepot_domain::reference::TagError),
    /// The page size is not a number.
    #[error("`n` must be a whole number, such as `n=100`")]
    PageSize,
    #[error("the digest must be `sha256:` with 64, or `sha512:` with 128 lower-case hex digits")]
    MalformedDigest,
    /// The digest's algorithm is not known here, so nothing can have it.
    #[error("the digest uses an algorithm that is not known here; `sha256` and `sha512` are")]
    UnknownAlgorithm(Asked),
}

/// The kind of content that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Manifest,
    Blob,
    Repository,
}

/// Why the caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginFault {
    #[error("log in first: `entrepot login-password | docker login --username AWS --password-stdin <registry>`")]
    Missing,
    /// The credentials are not ours, or wrong.
    #[error("the credentials are wrong or revoked; get a new token with `entrepot login-password`")]
    Wrong,
    /// The token has expired.
    #[error("the token has expired; get a new one with `entrepot login-password`")]
    Expired,
}

/// For how long an upstream is not asked, rounded up so that a client does not come back too early.
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
