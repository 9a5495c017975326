//! Authentication and permissions, answered from the snapshot alone.

pub(crate) mod challenge;
pub(crate) mod token;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use entrepot_domain::{AccessKeyId, Action, Network, RepositoryName};
use entrepot_runtime::Clock;
use entrepot_trust::{Access, Login, NotChecked, SecretVerifier, TokenError, Tokens};
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

/// The caller of a request.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Not logged in.
    Anonymous,
    /// A principal that has sent a password.
    Principal(Principal),
    /// A principal with a bearer token, limited to what the token grants.
    Bearer(Principal, Vec<Access>),
}

/// On whose behalf missing content is fetched.
pub(crate) struct Asker {
    /// The principal, unless the node acts for itself.
    pub(crate) principal: Option<Uuid>,
    /// Why nothing may be fetched on its behalf.
    refusal: Option<PullError>,
}

impl Asker {
    /// The node itself, doing what the control plane asks for.
    pub(crate) const NODE: Self = Self { principal: None, refusal: None };

    /// Whether missing content may be fetched.
    pub(crate) fn may_fill(&self) -> Result<(), PullError> {
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

/// A principal whose identity is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) uid: Uuid,
    pub(crate) key_id: String,
    /// Its permitted actions.
    pub(crate) actions: Arc<[Action]>,
}

impl Caller {
    /// Whether the caller may do this at `place`. A token for pulling includes the actions that a pull needs, as far as
    /// its principal has them.
    pub(crate) fn require(&self, action: Action, place: &Place) -> Result<(), PullError> {
        let principal = self.require_login()?;
        if let Self::Bearer(_, access) = self
            && !access.iter().any(|access| grants_pull(access, &place.repository))
        {
            return Err(PullError::InsufficientScope);
        }
        if principal.actions.contains(&action) { Ok(()) } else { Err(PullError::Denied { action }) }
    }

    /// Whether the caller may have missing content fetched to `place`, and the repository created if it is missing.
    fn require_fill(&self, place: &Place) -> Result<(), PullError> {
        self.require(Action::Fill, place)?;
        if place.live.is_some() { Ok(()) } else { self.require(Action::Create, place) }
    }

    /// The caller, as somebody on whose behalf content may have to be fetched to `place`.
    pub(crate) fn asker(&self, place: &Place) -> Asker {
        Asker { principal: self.principal(), refusal: self.require_fill(place).err() }
    }

    /// The caller's principal, if there is one.
    pub(crate) fn principal(&self) -> Option<Uuid> {
        self.require_login().ok().map(|principal| principal.uid)
    }

    /// The caller's principal; an error if there is none.
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
    /// Identifies the sender of a request with these headers, from this network.
    pub(crate) async fn identify(
        &self,
        headers: &HeaderMap,
        from: Network,
        snapshot: &Snapshot,
    ) -> Result<Caller, PullError> {
        let wrong = PullError::Unauthenticated(LoginFault::Wrong);
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(Caller::Anonymous) };
        let (scheme, value) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(wrong.clone())?;
        if scheme.eq_ignore_ascii_case("basic") {
            let (username, password) = basic(value.trim()).ok_or(wrong)?;
            return self.password((&username, &password), from, snapshot).await;
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(wrong);
        }
        let claims = self.tokens.verify_bearer(snapshot.registry_id, value.trim(), self.clock.now()).map_err(fault)?;
        let (Some(uid), Some(key_id)) = (claims.principal_uid, claims.key_id) else { return Ok(Caller::Anonymous) };
        Ok(Caller::Bearer(current_principal(uid, key_id, snapshot)?, claims.access))
    }

    /// The principal for a user name and password: a login token with any user name, or an access key's secret with its
    /// id.
    pub(crate) async fn password(
        &self,
        (username, password): (&str, &str),
        from: Network,
        snapshot: &Snapshot,
    ) -> Result<Caller, PullError> {
        if username.is_empty() && password.is_empty() {
            return Ok(Caller::Anonymous);
        }
        // Tokens are checked first: a token with a key's id as user name must not count as a failed attempt at that
        // key.
        match self.tokens.verify_login(snapshot.registry_id, password, self.clock.now()) {
            Ok(claims) => {
                return current_principal(claims.principal_uid, claims.key_id, snapshot).map(Caller::Principal);
            }
            Err(TokenError::Expired) => return Err(fault(TokenError::Expired)),
            Err(TokenError::Invalid) => {}
        }
        let key_id: AccessKeyId = username.parse().map_err(|_| fault(TokenError::Invalid))?;
        let key = snapshot.access_key(key_id.as_str());
        let login = Login { key_id: &key_id, secret: password, from };
        match (self.secrets.verify(login, key.map(|key| &key.hash)).await, key) {
            (Ok(true), Some(key)) => {
                current_principal(key.principal_uid, key_id.to_string(), snapshot).map(Caller::Principal)
            }
            (Ok(_), _) => Err(fault(TokenError::Invalid)),
            (Err(NotChecked::TooMany { retry_after }), _) => Err(PullError::TooManyLogins { retry_after }),
            (Err(NotChecked::Busy), _) => Err(PullError::Busy),
        }
    }
}

/// The principal of this key. A token is valid only as long as the key with which it was made.
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
