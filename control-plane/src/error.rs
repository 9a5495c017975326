//! Why a call failed, for any edge. `api/status.rs` turns it into a gRPC status.

use std::time::Duration;

use entrepot_proto::convert::Violations;

use crate::db;
use crate::snapshot::{PublishError, Version};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request is invalid; this has all its mistakes.
    #[error("{0}")]
    Invalid(#[from] Violations),
    /// The caller is not known here.
    #[error(
        "{0}: send `authorization: Bearer <key id>:<secret>`; the entrepot command takes them from ENTREPOT_KEY, as in `export ENTREPOT_KEY=<key id>:<secret>`"
    )]
    Unauthenticated(LoginFault),
    /// A node did not prove its identity.
    #[error("only nodes may call this, with a token made from the cluster key that is not older than 60 s")]
    NotANode,
    /// The caller lacks the permission.
    #[error("`{principal}` may not do this: it takes the permission set ADMINISTRATOR")]
    Denied { principal: String },
    /// The resource does not exist.
    #[error("`{name}` does not exist{remedy}")]
    NotFound { kind: &'static str, name: String, field: Option<&'static str>, remedy: &'static str },
    /// The resource exists already.
    #[error("`{name}` exists already{remedy}")]
    Exists { kind: &'static str, name: String, remedy: String },
    /// The answer contained a secret, which is not kept.
    #[error(
        "this request was answered before, and its secret is not kept: revoke that key and create another one with a new `request_id`"
    )]
    SecretNotKept,
    /// Something still needs the resource as it is.
    #[error("{description}")]
    Precondition { kind: &'static str, subject: String, description: String },
    /// The database is older than the published snapshot.
    #[error(
        "the database is behind the published snapshot ({published}), as after a restore from a backup: run `entrepot admin restore --config FILE` with this control plane's configuration (for `entrepot up`: `entrepot admin restore --data-dir DIR`), which raises the epoch and rebuilds the index"
    )]
    Behind { published: Version },
    /// Only a control plane of another release can show or change it.
    #[error("{what}; a control plane of that release shows and changes it")]
    NotUnderstood { item: String, what: String },
    /// Somebody else has changed it.
    #[error("`{name}` was changed since you read it: read it again and repeat the change with its new etag")]
    StaleEtag { name: String },
    /// Somebody else is changing it.
    #[error("another change was in the way: repeat the call")]
    Contended(#[source] Option<Cause>),
    /// There were too many wrong secrets.
    #[error("too many attempts with this key: try again in {} s", .retry_after.as_secs().max(1))]
    TooManyAttempts { retry_after: Duration },
    /// The limit of watchers is reached.
    #[error("too many callers are watching: try again later, or use the list instead")]
    TooManyWatchers,
    /// The limit of running operations is reached.
    #[error("{limit} operations are running already: wait for one to end, or cancel one")]
    TooManyOperations { limit: i64 },
    /// A live node does not reply.
    #[error("`{node}` cannot be asked: {why}")]
    NodeSilent { node: String, why: String },
    /// A node has reported events that only a later release knows. All others were applied.
    #[error("{count} events are of a later release than this control plane, `{first}` for one: keep them")]
    UnknownEvents { count: usize, first: String },
    /// Events are about a repository that is unknown here and whose record cannot be read. All others were applied.
    #[error(
        "the record of the repository `{repository}` is damaged: keep the events about it until it is written again"
    )]
    DamagedRecord { repository: String },
    /// The start is not done.
    #[error("the control plane is starting: {why}")]
    Starting { why: String },
    /// Postgres or the store is away.
    #[error("{what} is away: try again")]
    Away {
        what: &'static str,
        #[source]
        cause: Cause,
    },
    /// A bug, or a state that must not occur.
    #[error("internal error; the log of the control plane says more")]
    Internal(#[source] Cause),
}

/// The underlying error, for the log only.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginFault {
    #[error("the call carries no credentials")]
    Missing,
    #[error("the call's `authorization` is not of the form `Bearer <key id>:<secret>`")]
    Malformed,
    #[error("the key is unknown or revoked, or the secret is wrong")]
    Wrong,
}

impl ApiError {
    /// An error about one field.
    pub(crate) fn field(field: impl Into<String>, description: impl std::fmt::Display) -> Self {
        Self::Invalid(Violations::one(field, description))
    }

    /// The error for a resource that does not exist.
    pub(crate) fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        Self::NotFound { kind, name: name.into(), field: None, remedy: "" }
    }

    /// Whether the same call may succeed later.
    pub(crate) fn may_retry(&self) -> bool {
        matches!(
            self,
            Self::StaleEtag { .. }
                | Self::Contended(_)
                | Self::NodeSilent { .. }
                | Self::Starting { .. }
                | Self::Away { .. }
        )
    }
}

impl From<db::Error> for ApiError {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Away(_) => Self::Away { what: "the database", cause: error.into() },
            // A taken value is looked up before it is written, so somebody else was faster.
            db::Error::Contended(_) | db::Error::Taken(_) | db::Error::Reference(_) => {
                Self::Contended(Some(error.into()))
            }
            db::Error::NotUnderstood { ref item, .. } => {
                Self::NotUnderstood { item: item.clone(), what: error.to_string() }
            }
            db::Error::Corrupt { .. } | db::Error::TooOld { .. } | db::Error::Migrate(_) | db::Error::Refused(_) => {
                Self::Internal(error.into())
            }
        }
    }
}

impl From<entrepot_store::Error> for ApiError {
    fn from(error: entrepot_store::Error) -> Self {
        if error.is_conflict() {
            Self::Contended(Some(error.into()))
        } else if error.retry() {
            Self::Away { what: "the store", cause: error.into() }
        } else {
            Self::Internal(error.into())
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Db(error) => error.into(),
            PublishError::Store(error) => error.into(),
            PublishError::Slow | PublishError::Missing(_) => Self::Away { what: "the store", cause: error.into() },
            PublishError::Contended => Self::Contended(Some(error.into())),
            PublishError::Untrusted(_) => Self::Internal(error.into()),
        }
    }
}
