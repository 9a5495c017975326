//! Headers of proxies that forward a request. They are used only if they come from a proxy that the operator trusts,
//! since anybody could claim anything in them.

use std::net::IpAddr;

use entrepot_runtime::forwarded;
use http::HeaderMap;
use http::header::{HOST, HeaderName};
use http::request::Parts;
use ipnet::IpNet;

use crate::connection::Remote;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How a client reached this registry, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The client: the last address on the way that is not a trusted proxy's.
    pub(crate) client: IpAddr,
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// Host and port as the client sent them.
    host: Option<String>,
}

impl Arrival {
    /// Reads this from a request over a connection from `remote`.
    pub(crate) fn new(parts: &Parts, remote: Remote, trusted: &[IpNet]) -> Self {
        let headers = &parts.headers;
        // Over HTTP/2, the host is part of the URI.
        let own_host = || parts.uri.authority().map(|authority| authority.as_str()).or_else(|| last(headers, &HOST));
        let own_scheme = if remote.is_tls { "https" } else { "http" };
        if !forwarded::trusts(trusted, remote.address) {
            let host = own_host().filter(|host| is_host(host)).map(str::to_owned);
            return Self { client: remote.address, scheme: own_scheme, host };
        }
        let host = last(headers, &FORWARDED_HOST).filter(|host| is_host(host)).or_else(own_host);
        Self {
            client: forwarded::client(headers, remote.address, trusted),
            scheme: match last(headers, &FORWARDED_PROTO) {
                Some(proto) if proto.eq_ignore_ascii_case("https") => "https",
                Some(proto) if proto.eq_ignore_ascii_case("http") => "http",
                Some(_) | None => own_scheme,
            },
            host: host.filter(|host| is_host(host)).map(str::to_owned),
        }
    }

    /// The URL at which the client reached this registry, without a trailing slash.
    pub(crate) fn base_url(&self) -> String {
        format!("{}://{}", self.scheme, self.host.as_deref().unwrap_or("localhost"))
    }
}

/// What the nearest proxy says: each appends to what it was told.
fn last<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    line.rsplit(',').next().map(str::trim)
}

/// Whether a host is nothing else, because it goes back to the client in a challenge.
fn is_host(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "198.51.100.7";
    const PROXY: &str = "10.0.0.2";

    fn arrival(remote: &str, is_tls: bool, headers: &[(&'static str, &str)]) -> (String, String) {
        let mut builder = http::Request::get("/v2/");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let parts = builder.body(()).unwrap().into_parts().0;
        let remote = Remote { address: remote.parse().unwrap(), is_tls };
        let arrival = Arrival::new(&parts, remote, &["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        (arrival.base_url(), arrival.client.to_string())
    }

    #[test]
    fn a_client_is_believed_about_its_host_alone() {
        let claims = [
            ("host", "registry.example:5000"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-for", "127.0.0.1"),
        ];
        assert_eq!(arrival(CLIENT, false, &claims), ("http://registry.example:5000".into(), CLIENT.into()));
        assert_eq!(arrival(CLIENT, true, &claims), ("https://registry.example:5000".into(), CLIENT.into()));
        assert_eq!(arrival(CLIENT, false, &[("host", "a\"b")]).0, "http://localhost");
        assert_eq!(arrival(CLIENT, false, &[]).0, "http://localhost");
    }

    #[test]
    fn a_trusted_proxy_is_believed() {
        let told = [
            ("host", "node-1:5000"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "registry.example"),
            ("x-forwarded-for", CLIENT),
        ];
        assert_eq!(arrival(PROXY, false, &told), ("https://registry.example".into(), CLIENT.into()));
        assert_eq!(arrival(PROXY, true, &[("host", "h"), ("x-forwarded-proto", "http")]).0, "http://h");
        assert_eq!(arrival(PROXY, true, &[("host", "h"), ("x-forwarded-proto", "ftp")]).0, "https://h");
        assert_eq!(arrival(PROXY, false, &[("host", "h")]), ("http://h".into(), PROXY.into()));
    }

    #[test]
    fn the_client_is_the_last_that_no_trusted_proxy_is() {
        let client = |way: &str| arrival(PROXY, false, &[("x-forwarded-for", way)]).1;
        assert_eq!(client("127.0.0.1, 198.51.100.7, 10.0.0.9"), CLIENT);
        assert_eq!(client("198.51.100.7:4711"), CLIENT);
        assert_eq!(client("[2001:db8::1]:4711"), "2001:db8::1");
        assert_eq!(client("[2001:db8::1]"), "2001:db8::1");
        assert_eq!(client("nonsense, 10.0.0.9"), "10.0.0.9");
        assert_eq!(client(""), PROXY);
        let lines = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", CLIENT)];
        assert_eq!(arrival(PROXY, false, &lines).1, CLIENT);
    }
}
