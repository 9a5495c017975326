//! Who asks, and may they? Answered from the snapshot alone.

pub(crate) mod challenge;
pub(crate) mod token;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use entrepot_domain::{AccessKeyId, Action, RepositoryName};
use entrepot_runtime::Clock;
use entrepot_trust::{Access, SecretVerifier, TokenError, Tokens};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use uuid::Uuid;

use crate::control::Snapshot;
use crate::error::{LoginFault, PullError};
use crate::place::Place;
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
    Bearer(Principal, Vec<Access>),
}

/// For whom missing content is fetched.
pub(crate) struct Asker {
    /// The principal, unless the node asks for itself.
    pub(crate) principal: Option<Uuid>,
    /// Why nothing may be fetched for it.
    refusal: Option<PullError>,
}

impl Asker {
    /// The node itself, which does what the control plane asks for.
    pub(crate) const NODE: Self = Self { principal: None, refusal: None };

    /// Whether what is missing may be fetched.
    pub(crate) fn may_fill(&self) -> Result<(), PullError> {
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

/// A principal that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) uid: Uuid,
    pub(crate) key_id: String,
    /// What it may do.
    pub(crate) actions: Arc<[Action]>,
}

impl Caller {
    /// Whether the caller may do this at `place`. A token for pulling covers what a pull entails, as far as its principal
    /// may do that.
    pub(crate) fn require(&self, action: Action, place: &Place) -> Result<(), PullError> {
        let principal = self.require_login()?;
        if let Self::Bearer(_, access) = self
            && !access.iter().any(|access| grants_pull(access, &place.repository))
        {
            return Err(PullError::InsufficientScope);
        }
        if principal.actions.contains(&action) { Ok(()) } else { Err(PullError::Denied { action }) }
    }

    /// Whether the caller may have missing content fetched to `place`, and the repository created if there is none.
    fn require_fill(&self, place: &Place) -> Result<(), PullError> {
        self.require(Action::Fill, place)?;
        if place.live.is_some() { Ok(()) } else { self.require(Action::Create, place) }
    }

    /// The caller as one for whom something may have to be fetched to `place`.
    pub(crate) fn asker(&self, place: &Place) -> Asker {
        Asker { principal: self.principal(), refusal: self.require_fill(place).err() }
    }

    /// The principal behind the caller, if there is one.
    pub(crate) fn principal(&self) -> Option<Uuid> {
        self.require_login().ok().map(|principal| principal.uid)
    }

    /// The principal behind the caller.
    pub(crate) fn require_login(&self) -> Result<&Principal, PullError> {
        match self {
            Self::Anonymous => Err(PullError::Unauthenticated(LoginFault::Missing)),
            Self::Principal(principal) | Self::Bearer(principal, _) => Ok(principal),
        }
    }
}

fn grants_pull(access: &Access, repository: &RepositoryName) -> bool {
    access.repository == repository.as_str() && access.actions.iter().any(|action| action == Action::Pull.as_str())
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
        Ok(Caller::Bearer(current_principal(uid, key_id, snapshot)?, claims.access))
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
                return current_principal(claims.principal_uid, claims.key_id, snapshot).map(Caller::Principal);
            }
            Err(TokenError::Expired) => return Err(fault(TokenError::Expired)),
            Err(TokenError::Invalid) => {}
        }
        let key_id: AccessKeyId = username.parse().map_err(|_| fault(TokenError::Invalid))?;
        let key = snapshot.access_key(key_id.as_str()).ok_or_else(|| fault(TokenError::Invalid))?;
        match self.secrets.verify(key_id.as_str(), password, &key.hash).await {
            Ok(true) => current_principal(key.principal_uid, key_id.to_string(), snapshot).map(Caller::Principal),
            Ok(false) => Err(fault(TokenError::Invalid)),
            Err(busy) => Err(PullError::TooManyLogins { retry_after: busy.retry_after }),
        }
    }
}

/// The principal that has this key. A token is good for as long as the key that it was made with.
fn current_principal(uid: Uuid, key_id: String, snapshot: &Snapshot) -> Result<Principal, PullError> {
    let known = snapshot.access_key(&key_id).is_some_and(|key| key.principal_uid == uid);
    let principal = snapshot.principal(uid).filter(|_| known);
    let principal = principal.ok_or(PullError::Unauthenticated(LoginFault::Wrong))?;
    trail::asked_by(&principal.id);
    Ok(Principal { uid, key_id, actions: principal.actions.clone() })
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
