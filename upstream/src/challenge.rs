//! What a host wants before it answers: `WWW-Authenticate`, read tolerantly.

use http::header::{HeaderMap, WWW_AUTHENTICATE};
use http_auth::{ChallengeRef, parser::ChallengeParser};
use url::Url;

/// How a host wants its callers to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With a token from a token server.
    Bearer {
        /// Where the token server is.
        realm: Url,
        /// What to call the host there; some token servers need no name.
        service: Option<String>,
        /// What the token must be good for; `None` leaves it to the caller.
        scope: Option<String>,
    },
    /// With user name and password in every request.
    Basic,
}

impl Challenge {
    /// The challenge to answer among all that `headers` hold: a token is preferred, since it is not the credential.
    ///
    /// What cannot be read is passed over; `None` means that nothing can be answered.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for header in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = header.to_str() else { continue };
            for challenge in ChallengeParser::new(text).map_while(Result::ok) {
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(bearer) = bearer(&challenge) {
                        return Some(bearer);
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

fn bearer(challenge: &ChallengeRef<'_>) -> Option<Challenge> {
    let param = |name: &str| {
        let mut named = challenge.params.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
    };
    Some(Challenge::Bearer { realm: param("realm")?.parse().ok()?, service: param("service"), scope: param("scope") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;
    use proptest::prelude::*;

    fn read(headers: &[&str]) -> Option<Challenge> {
        let all = headers.iter().map(|text| (WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap()));
        Challenge::of(&all.collect())
    }

    fn token(service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let realm = "https://auth.example/token".parse().unwrap();
        Some(Challenge::Bearer { realm, service: service.map(Into::into), scope: scope.map(Into::into) })
    }

    #[test]
    fn r_authu_02_challenges_are_read_tolerantly() {
        let full = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull""#;
        assert_eq!(read(&[full]), token(Some("r.example"), Some("repository:a/b:pull")));
        assert_eq!(
            read(&[r#"bearer REALM="https://auth.example/token", Service=r.example"#]),
            token(Some("r.example"), None)
        );
        assert_eq!(read(&[r#"Bearer realm="https://auth.example/token",scope="""#]), token(None, None));
        let both = r#"Basic realm="r", Bearer realm="https://auth.example/token""#;
        assert_eq!(read(&[both]), token(None, None));
        assert_eq!(read(&[r#"Basic realm="r""#, r#"Bearer realm="https://auth.example/token""#]), token(None, None));
        assert_eq!(read(&[r#"Negotiate, Basic realm="r""#]), Some(Challenge::Basic));
        assert_eq!(read(&["Basic"]), Some(Challenge::Basic));
    }

    #[test]
    fn what_cannot_be_answered_is_passed_over() {
        let table: &[&[&str]] =
            &[&[], &[""], &["Negotiate"], &[r#"Bearer realm="/token""#], &[r#"Bearer service="x""#]];
        for headers in table {
            assert_eq!(read(headers), None, "{headers:?}");
        }
        assert_eq!(read(&["Bearer realm=\"\"", "Basic realm=\"x\""]), Some(Challenge::Basic));
    }

    proptest! {
        #[test]
        fn any_header_is_a_challenge_or_none(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..4)) {
            let headers = values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok());
            let _ = Challenge::of(&headers.map(|value| (WWW_AUTHENTICATE, value)).collect());
        }

        #[test]
        fn any_text_that_looks_like_one_is_a_challenge_or_none(text in r#"(Bearer|Basic|[a-z]{0,6})( ?(realm|service|scope|x)=?"?[ -~\\]{0,20}"?,?){0,4}"#) {
            if let Ok(value) = HeaderValue::from_str(&text) {
                let _ = Challenge::of(&[(WWW_AUTHENTICATE, value)].into_iter().collect());
            }
        }
    }
}
