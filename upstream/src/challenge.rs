//! Reads `WWW-Authenticate`, which says how a host wants its callers to log in. The parser is tolerant. Source: RFC
//! 9110, §11.6.1.

use http::header::{HeaderMap, WWW_AUTHENTICATE};
use url::Url;

use crate::scan::Scan;

/// How a host wants its callers to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With a token from a token server.
    Bearer {
        /// The URL of the token server.
        realm: Url,
        /// The host's name at the token server; some token servers need none.
        service: Option<String>,
        /// The access that the token must grant; `None` leaves it to the caller.
        scope: Option<String>,
    },
    /// With user name and password in every request.
    Basic,
}

/// A challenge as written: its scheme and parameters.
struct Written<'v> {
    scheme: &'v [u8],
    parameters: Vec<(&'v [u8], Vec<u8>)>,
}

impl Challenge {
    /// The challenge to answer, out of all in `headers`. A token is preferred, since it does not reveal the credential.
    ///
    /// Unreadable challenges are skipped, but only those; `None` means that none can be answered.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for written in headers.get_all(WWW_AUTHENTICATE).iter().flat_map(|header| read(header.as_bytes())) {
            if written.scheme.eq_ignore_ascii_case(b"bearer") {
                if let Some(bearer) = bearer(&written) {
                    return Some(bearer);
                }
            } else if written.scheme.eq_ignore_ascii_case(b"basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

/// All challenges of one header. Commas separate both challenges and their parameters: a name followed by an equals
/// sign is a parameter of the challenge before it, and anything else begins another challenge.
fn read(header: &[u8]) -> Vec<Written<'_>> {
    let mut scan = Scan::new(header);
    let mut all: Vec<Written<'_>> = Vec::new();
    loop {
        scan.take_while(|byte| b" \t,".contains(&byte));
        if scan.peek().is_none() {
            return all;
        }
        let name = scan.token();
        if name.is_empty() {
            scan.skip_to(b",");
            continue;
        }
        match (scan.value(), all.last_mut()) {
            (Ok(Some(value)), Some(challenge)) => challenge.parameters.push((name, value)),
            (Ok(None), _) => {
                all.push(Written { scheme: name, parameters: Vec::new() });
                pass_token68(&mut scan);
            }
            // It belongs to no challenge, or has no end.
            (Ok(Some(_)), None) | (Err(_), _) => {}
        }
    }
}

/// Skips what some schemes have in place of parameters, such as `Negotiate YWJj==`.
fn pass_token68(scan: &mut Scan<'_>) {
    let mut ahead = scan.clone();
    ahead.take_while(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
    ahead.take_while(|byte| byte == b'=');
    ahead.blanks();
    if matches!(ahead.peek(), None | Some(b',')) {
        *scan = ahead;
    }
}

fn bearer(challenge: &Written<'_>) -> Option<Challenge> {
    let parameter = |name: &[u8]| {
        let mut named = challenge.parameters.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| text(value)).filter(|value| !value.is_empty())
    };
    let realm = parameter(b"realm")?.parse().ok()?;
    Some(Challenge::Bearer { realm, service: parameter(b"service"), scope: parameter(b"scope") })
}

/// A value as text. If it is not UTF-8, it is read as Latin-1, the former character set of HTTP.
fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|byte| char::from(*byte)).collect(),
    }
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

    fn read_bytes(header: &[u8]) -> Option<Challenge> {
        Challenge::of(&[(WWW_AUTHENTICATE, HeaderValue::from_bytes(header).unwrap())].into_iter().collect())
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

    #[test]
    fn what_cannot_be_read_takes_nothing_else_along() {
        let bearer = r#"Bearer realm="https://auth.example/token",service="s""#;
        for before in [
            "Negotiate YWJj==,",
            "Negotiate YWJj==, ",
            "Negotiate oYG2==  ,",
            "NTLM, Negotiate,",
            "Digest qop=\"auth, Bearer realm=x\", nonce=\"a\\\"b\",",
            "\"quoted, Basic\", ",
            "= ,",
            ", ,",
            "Hawk @,",
            "Basic realm=,",
        ] {
            assert_eq!(read(&[&format!("{before}{bearer}")]), token(Some("s"), None), "{before}");
        }
        for behind in [", scope=", ",scope", ", Negotiate YWJj==", ", @", ", x=\"", "  , Basic realm=x", ";"] {
            assert_eq!(read(&[&format!("{bearer}{behind}")]), token(Some("s"), None), "{behind}");
        }
        assert_eq!(read(&[r#"Bearer realm="https://auth.example/token" service="s""#]), token(Some("s"), None));
        assert_eq!(read(&["Bearer realm=https://auth.example/token, service=s"]), token(Some("s"), None));
        assert_eq!(
            read_bytes(b"Bearer realm=\"https://auth.example/token\",service=\"R\xe9g\""),
            token(Some("R\u{e9}g"), None)
        );
        assert_eq!(
            read_bytes("Bearer realm=\"https://auth.example/token\",service=\"Rég\"".as_bytes()),
            token(Some("R\u{e9}g"), None)
        );
        assert_eq!(read_bytes(b"Basic realm=\"\xff\""), Some(Challenge::Basic));
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
