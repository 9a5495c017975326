//! The token endpoint: it exchanges a password for a bearer token that is valid for a few minutes.
//!
//! Source: the distribution project's token authentication (GET), and its OAuth2 form (POST).

use std::time::Duration;

use entrepot_domain::{Action, RepositoryName};
use entrepot_trust::Access;
use serde::Serialize;

use super::{Auth, Caller, Principal};
use crate::control::Snapshot;
use crate::error::{LoginFault, PullError};

/// How long a bearer token is valid.
const LIFETIME: Duration = Duration::from_secs(300);
/// How many scopes one request may name; clients send one or two.
const MAX_SCOPES: usize = 64;

/// A request to the token endpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenRequest {
    /// Scopes such as `repository:hub/nginx:pull`.
    pub(crate) scopes: Vec<String>,
    /// User name and password, if the form contains them.
    pub(crate) password: Option<(String, String)>,
}

/// Its answer.
#[derive(Serialize)]
pub(crate) struct TokenAnswer {
    token: String,
    access_token: String,
    expires_in: u64,
    issued_at: String,
}

impl TokenRequest {
    /// Reads the query of a GET or the form of a POST. Unknown fields and scopes are ignored.
    pub(crate) fn parse(form: &str) -> Self {
        let (mut request, mut username, mut password) = (Self::default(), None, None);
        for (name, value) in url::form_urlencoded::parse(form.as_bytes()) {
            match &*name {
                "scope" => request.scopes.extend(value.split_ascii_whitespace().map(str::to_owned)),
                "username" => username = Some(value.into_owned()),
                // An identity token is a password that the client was told to keep.
                "password" | "refresh_token" => password = Some(value.into_owned()),
                _ => {}
            }
        }
        request.scopes.truncate(MAX_SCOPES);
        request.password = password.map(|password| (username.unwrap_or_default(), password));
        request
    }
}

impl Auth {
    /// Issues a token for the part of `request` that the caller may do. Unknown and refused scopes are left out.
    pub(crate) fn issue(
        &self,
        caller: &Caller,
        request: &TokenRequest,
        snapshot: &Snapshot,
    ) -> Result<TokenAnswer, PullError> {
        let Caller::Principal(principal) = caller else {
            // Anonymous callers may pull nothing, so a token would only delay the refusal.
            return Err(PullError::Unauthenticated(LoginFault::Missing));
        };
        let access: Vec<Access> = request.scopes.iter().filter_map(|scope| grant(scope, principal, snapshot)).collect();
        let now = self.clock.now();
        let (token, _) = self.tokens.issue_bearer(
            snapshot.registry_id,
            Some(principal.uid),
            Some(&principal.key_id),
            &access,
            now,
            LIFETIME,
        );
        Ok(TokenAnswer {
            token: token.expose().clone(),
            access_token: token.expose().clone(),
            expires_in: LIFETIME.as_secs(),
            issued_at: now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        })
    }
}

/// The part of a scope that is granted: pulling from a repository, in its canonical spelling.
fn grant(scope: &str, principal: &Principal, snapshot: &Snapshot) -> Option<Access> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    // Some clients add a class to the type: `repository(plugin)`.
    let is_repository = kind.split('(').next() == Some("repository");
    let wants_pull = actions.split(',').any(|action| action == "*" || action == Action::Pull.as_str());
    if !is_repository || !wants_pull || !principal.actions.contains(&Action::Pull) {
        return None;
    }
    let name: RepositoryName = name.parse().ok()?;
    let repository = snapshot.locate(&name).repository.to_string();
    Some(Access { repository, actions: vec![Action::Pull.as_str().to_owned()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_auths_04_and_05_scopes_come_repeated_or_joined_and_passwords_in_forms() {
        let request =
            TokenRequest::parse("service=x&scope=repository%3Aa%3Apull&scope=repository:b:pull%20registry:catalog:*");
        assert_eq!(request.scopes, ["repository:a:pull", "repository:b:pull", "registry:catalog:*"]);
        assert_eq!(request.password, None);
        let request = TokenRequest::parse("grant_type=password&username=AWS&password=p%2Bw&access_type=offline");
        assert_eq!(request.password, Some(("AWS".into(), "p+w".into())));
        assert_eq!(TokenRequest::parse(&"scope=a&".repeat(1000)).scopes.len(), MAX_SCOPES);
    }
}
