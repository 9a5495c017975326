//! Who asks, and may they? Answered from the snapshot alone.

pub(crate) mod challenge;
pub(crate) mod token;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use entrepot_domain::{AccessKeyId, RepositoryName};
use entrepot_runtime::Clock;
use entrepot_trust::{Access, SecretVerifier, TokenError, Tokens};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use uuid::Uuid;

use crate::control::Snapshot;
use crate::error::{LoginFault, PullError};
use crate::trail;

/// Identifies callers.
pub(crate) struct Auth {
    pub(crate) tokens: Tokens,
    pub(crate) secrets: SecretVerifier,
    pub(crate) clock: Clock,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Nobody known.
    Anonymous,
    /// A principal, by its password.
    Principal(Principal),
    /// A principal, by a bearer token and for what that grants.
    Bearer(Uuid, Vec<Access>),
}

/// A principal that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) uid: Uuid,
    pub(crate) key_id: String,
}

impl Caller {
    /// Whether the caller may pull from `repository`, which is in its canonical spelling.
    pub(crate) fn require_pull(&self, repository: &RepositoryName) -> Result<(), PullError> {
        match self {
            Self::Anonymous => Err(PullError::Unauthenticated(LoginFault::Missing)),
            // Every permission set may pull.
            Self::Principal(_) => Ok(()),
            Self::Bearer(_, access) if access.iter().any(|access| access.allows_pull(repository)) => Ok(()),
            Self::Bearer(..) => Err(PullError::InsufficientScope),
        }
    }

    /// The principal behind the caller, if there is one.
    pub(crate) fn principal(&self) -> Option<Uuid> {
        match self {
            Self::Anonymous => None,
            Self::Principal(principal) => Some(principal.uid),
            Self::Bearer(uid, _) => Some(*uid),
        }
    }

    /// Whether the caller is somebody at all.
    pub(crate) fn require_login(&self) -> Result<(), PullError> {
        match self {
            Self::Anonymous => Err(PullError::Unauthenticated(LoginFault::Missing)),
            Self::Principal(_) | Self::Bearer(..) => Ok(()),
        }
    }
}

trait AllowsPull {
    fn allows_pull(&self, repository: &RepositoryName) -> bool;
}

impl AllowsPull for Access {
    fn allows_pull(&self, repository: &RepositoryName) -> bool {
        self.repository == repository.as_str() && self.actions.iter().any(|action| action == "pull")
    }
}

impl Auth {
    /// Who sends a request with these headers.
    pub(crate) async fn identify(&self, headers: &HeaderMap, snapshot: &Snapshot) -> Result<Caller, PullError> {
        let wrong = PullError::Unauthenticated(LoginFault::Wrong);
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(Caller::Anonymous) };
        let (scheme, value) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(wrong.clone())?;
        if scheme.eq_ignore_ascii_case("basic") {
            let (username, password) = basic(value.trim()).ok_or(wrong)?;
            return self.password(&username, &password, snapshot).await;
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(wrong);
        }
        let claims = self.tokens.verify_bearer(snapshot.registry_id, value.trim(), self.clock.now()).map_err(fault)?;
        let (Some(uid), Some(key_id)) = (claims.principal_uid, claims.key_id) else { return Ok(Caller::Anonymous) };
        self.still_good(uid, &key_id, snapshot)?;
        Ok(Caller::Bearer(uid, claims.access))
    }

    /// Whom a user name and password mean: a login token under any name, or an access key's secret under its id.
    pub(crate) async fn password(
        &self,
        username: &str,
        password: &str,
        snapshot: &Snapshot,
    ) -> Result<Caller, PullError> {
        if username.is_empty() && password.is_empty() {
            return Ok(Caller::Anonymous);
        }
        // Tokens first: one under a key's name must not count as a failed attempt at that key's secret.
        match self.tokens.verify_login(snapshot.registry_id, password, self.clock.now()) {
            Ok(claims) => {
                self.still_good(claims.principal_uid, &claims.key_id, snapshot)?;
                return Ok(Caller::Principal(Principal { uid: claims.principal_uid, key_id: claims.key_id }));
            }
            Err(TokenError::Expired) => return Err(fault(TokenError::Expired)),
            Err(TokenError::Invalid) => {}
        }
        let key_id: AccessKeyId = username.parse().map_err(|_| fault(TokenError::Invalid))?;
        let key = snapshot.access_key(key_id.as_str()).ok_or_else(|| fault(TokenError::Invalid))?;
        match self.secrets.verify(key_id.as_str(), password, &key.hash).await {
            Ok(true) => {
                snapshot.principal_id(key.principal_uid).into_iter().for_each(trail::asked_by);
                Ok(Caller::Principal(Principal { uid: key.principal_uid, key_id: key_id.to_string() }))
            }
            Ok(false) => Err(fault(TokenError::Invalid)),
            Err(busy) => Err(PullError::TooManyLogins { retry_after: busy.retry_after }),
        }
    }

    /// A token is good for as long as the key that it was made with.
    fn still_good(&self, uid: Uuid, key_id: &str, snapshot: &Snapshot) -> Result<(), PullError> {
        let known = snapshot.access_key(key_id).is_some_and(|key| key.principal_uid == uid);
        let principal = snapshot.principal_id(uid).filter(|_| known);
        trail::asked_by(principal.ok_or(PullError::Unauthenticated(LoginFault::Wrong))?);
        Ok(())
    }
}

fn fault(error: TokenError) -> PullError {
    PullError::Unauthenticated(match error {
        TokenError::Expired => LoginFault::Expired,
        TokenError::Invalid => LoginFault::Wrong,
    })
}

fn basic(value: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}
