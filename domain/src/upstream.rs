//! Upstreams: the registries that rules pull from, and what we know about the well-known ones.

use std::fmt;

use url::Url;

use crate::budget::Budget;
use crate::future;
use crate::name::{NameError, RepositoryName, ResourceId};
use crate::secret::Secret;

/// A registry that rules pull from.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Identifies the upstream for ever.
    pub uid: uuid::Uuid,
    /// What operators call it.
    pub id: ResourceId,
    pub kind: UpstreamKind,
    /// Where its API is.
    pub endpoint: Endpoint,
    /// Whether the endpoint may have a private address.
    pub allow_private_addresses: bool,
    /// Further hosts that token realms and redirects may point to.
    pub allow_hosts: Vec<HostAndPort>,
    /// PEM certificates of authorities to trust in addition to the system's; may be empty.
    pub ca_certificates: String,
    /// The login; `None` is anonymous.
    pub credential: Option<Credential>,
    /// How many requests it may get; `None` means as many as the upstream allows.
    pub budget: Option<Budget>,
    /// Other places with the same content, in the order in which to ask them while the endpoint is away or limits us.
    pub fallback_endpoints: Vec<Endpoint>,
    /// Changes with every update.
    pub revision: i64,
}

impl Upstream {
    /// Whether the operator explicitly allows sending the credential to `url`. A host that is allowed without a port
    /// may get it at the default port of its scheme.
    pub fn allows(&self, url: &Url) -> bool {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return false };
        let usual = if url.scheme() == "https" { 443 } else { 80 };
        self.allow_hosts.iter().any(|allowed| allowed.covers(host, port) && allowed.port.unwrap_or(usual) == port)
    }

    /// Whether a token server at `url` may get the credential: if it has the scheme, host and port of the endpoint, or
    /// if the operator or the kind's profile allows it. Another port is another program, and perhaps somebody else's.
    pub fn may_know_credential(&self, url: &Url) -> bool {
        let is_own = url.origin() == self.endpoint.url().origin();
        is_own || self.allows(url) || self.kind.profile().has_realm_at(url, &self.endpoint)
    }
}

/// A user name with its password or token.
#[derive(Clone, Debug)]
pub struct Credential {
    pub username: String,
    pub password: Secret<String>,
}

/// The base URL of a registry's API: `http` or `https`, a host, perhaps a port, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Whether an endpoint may be reached without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainHttp {
    /// Yes, because the operator said so explicitly.
    Allowed,
    /// No.
    Refused,
}

/// Why a text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL with scheme and host.
    #[error("must be a URL such as `https://registry.example.com`")]
    NotAUrl,
    #[error("must begin with `https://` (or `http://`, where plain HTTP is allowed)")]
    Scheme,
    /// Plain HTTP without permission.
    #[error("is plain HTTP, which must be allowed in so many words: set `allow_plain_http`, or use `https://`")]
    PlainHttp,
    /// More than scheme, host and port.
    #[error("must be scheme, host and port only: no user, path, query or fragment")]
    TooMuch,
}

impl Endpoint {
    /// Reads an endpoint.
    ///
    /// # Errors
    /// If it is not just scheme, host and port, or if it is plain HTTP without permission.
    pub fn parse(text: &str, plain_http: PlainHttp) -> Result<Self, EndpointError> {
        let url: Url = text.parse().map_err(|_| EndpointError::NotAUrl)?;
        if !url.has_host() {
            return Err(EndpointError::NotAUrl);
        }
        match url.scheme() {
            "https" => {}
            "http" if plain_http == PlainHttp::Allowed => {}
            "http" => return Err(EndpointError::PlainHttp),
            _ => return Err(EndpointError::Scheme),
        }
        let bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if bare { Ok(Self(url)) } else { Err(EndpointError::TooMuch) }
    }

    /// The endpoint as a URL whose path is `/`.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// The host with its effective port.
    pub fn host_and_port(&self) -> HostAndPort {
        HostAndPort {
            host: self.0.host_str().unwrap_or_default().to_owned(),
            port: Some(self.0.port_or_known_default().unwrap_or_default()),
        }
    }

    pub fn is_plain_http(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// The URL of a manifest: `reference` is a tag or digest of `repository` there.
    pub fn manifest_url(&self, repository: &RepositoryName, reference: &crate::Reference) -> Url {
        self.join(&format!("v2/{repository}/manifests/{reference}"))
    }

    /// The URL of a blob.
    pub fn blob_url(&self, repository: &RepositoryName, digest: &crate::Digest) -> Url {
        self.join(&format!("v2/{repository}/blobs/{digest}"))
    }

    /// The URL of the first page of a repository's tags, with at most `count` of them.
    pub fn tags_url(&self, repository: &RepositoryName, count: usize) -> Url {
        let mut url = self.join(&format!("v2/{repository}/tags/list"));
        url.set_query(Some(&format!("n={count}")));
        url
    }

    /// The URL of the list of a manifest's referrers.
    pub fn referrers_url(&self, repository: &RepositoryName, digest: &crate::Digest) -> Url {
        self.join(&format!("v2/{repository}/referrers/{digest}"))
    }

    /// The URL of the API's base, which answers with a challenge if a login is needed.
    pub fn base_url(&self) -> Url {
        self.join("v2/")
    }

    fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(path);
        url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostAndPort {
    /// A name or address, lower case, IPv6 in brackets.
    pub host: String,
    pub port: Option<u16>,
}

impl HostAndPort {
    /// Whether this covers `host` and `port`.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        self.host.eq_ignore_ascii_case(host) && self.port.is_none_or(|own| own == port)
    }
}

/// Why a text is not `host` or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `host` or `host:port`")]
pub struct HostError;

impl std::str::FromStr for HostAndPort {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let url: Url = format!("proxy://{text}").parse().map_err(|_| HostError)?;
        let rest =
            url.path().is_empty() && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let host = url.host_str().filter(|host| !host.is_empty() && rest).ok_or(HostError)?;
        Ok(Self { host: host.to_ascii_lowercase(), port: url.port() })
    }
}

impl fmt::Display for HostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// The kinds of registries that we know, with their quirks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamKind {
    /// Any registry that speaks the OCI distribution protocol.
    Oci,
    /// Amazon ECR Public.
    EcrPublic,
    Quay,
    DockerHub,
    /// registry.k8s.io.
    Kubernetes,
    /// GitHub's container registry.
    Github,
    /// GitLab's container registry, at gitlab.com or anywhere else.
    Gitlab,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// A manifest with its bytes.
    Manifest,
    /// A manifest's headers only.
    ManifestHead,
    /// A blob, or a part of one.
    Blob,
    /// A page of a list, of tags or of referrers; or anything else.
    List,
}

/// Which requests an upstream counts towards its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// All of them.
    All,
    /// Only those that fetch a manifest, as with Docker Hub.
    Manifests,
}

impl Counting {
    pub fn counts(self, request: RequestKind) -> bool {
        match self {
            Self::All => true,
            Self::Manifests => request == RequestKind::Manifest,
        }
    }
}

/// What we know about a kind of upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its endpoint; `None` for any OCI host.
    pub endpoint: Option<&'static str>,
    /// The namespace prefix that is usually given to it.
    pub suggested_prefix: &'static str,
    /// Other hosts, with TLS at the default port, where its token realm may be and which may get the credential.
    pub realm_hosts: &'static [&'static str],
    /// Whether its token realm may be on another port of its own host, with TLS at the default port.
    pub has_realm_beside: bool,
    /// A small public image at this upstream, as repository and tag.
    pub sample: Option<(&'static str, &'static str)>,
    pub counting: Counting,
}

impl Profile {
    /// Whether registries of this kind may have their token server at `url`, given their endpoint.
    fn has_realm_at(&self, url: &Url, endpoint: &Endpoint) -> bool {
        let Some(host) = url.host_str() else { return false };
        let is_beside = self.has_realm_beside && endpoint.url().host_str() == Some(host);
        url.scheme() == "https"
            && url.port_or_known_default() == Some(443)
            && (is_beside || self.realm_hosts.iter().any(|known| known.eq_ignore_ascii_case(host)))
    }
}

impl UpstreamKind {
    pub const ALL: [Self; 7] =
        [Self::Oci, Self::EcrPublic, Self::Quay, Self::DockerHub, Self::Kubernetes, Self::Github, Self::Gitlab];

    pub fn profile(self) -> Profile {
        let known = |endpoint, suggested_prefix, realm_hosts, sample| Profile {
            endpoint: Some(endpoint),
            suggested_prefix,
            realm_hosts,
            has_realm_beside: false,
            sample: Some(sample),
            counting: Counting::All,
        };
        match self {
            Self::Oci => Profile {
                endpoint: None,
                suggested_prefix: "",
                realm_hosts: &[],
                has_realm_beside: false,
                sample: None,
                counting: Counting::All,
            },
            Self::EcrPublic => known("https://public.ecr.aws", "ecr-public", &[], ("docker/library/busybox", "latest")),
            Self::Quay => known("https://quay.io", "quay", &[], ("prometheus/busybox", "latest")),
            Self::DockerHub => Profile {
                counting: Counting::Manifests,
                ..known("https://registry-1.docker.io", "hub", &["auth.docker.io"], ("library/busybox", "latest"))
            },
            Self::Kubernetes => known("https://registry.k8s.io", "kubernetes", &[], ("pause", "3.9")),
            Self::Github => known("https://ghcr.io", "github", &[], ("distroless/static", "latest")),
            Self::Gitlab => Profile {
                endpoint: Some("https://registry.gitlab.com"),
                suggested_prefix: "gitlab",
                realm_hosts: &["gitlab.com"],
                has_realm_beside: true,
                sample: None,
                counting: Counting::All,
            },
        }
    }

    /// The canonical name of the repository that clients call `rest` below a rule's prefix.
    ///
    /// On Docker Hub, official images live under `library/`: `nginx` and `library/nginx` are one repository.
    ///
    /// # Errors
    /// If the canonical name is too long.
    pub fn canonical(self, rest: &str) -> Result<RepositoryName, NameError> {
        if self == Self::DockerHub && !rest.contains('/') { format!("library/{rest}").parse() } else { rest.parse() }
    }

    /// The name on the wire, as in `entrepot.v1.UpstreamKind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oci => "OCI",
            Self::EcrPublic => "ECR_PUBLIC",
            Self::Quay => "QUAY",
            Self::DockerHub => "DOCKER_HUB",
            Self::Kubernetes => "KUBERNETES",
            Self::Github => "GITHUB",
            Self::Gitlab => "GITLAB",
        }
    }

    /// The kind with this name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).or_else(|| future::upstream_kind(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_scheme_host_and_port_only() {
        let read = |text| Endpoint::parse(text, PlainHttp::Refused);
        assert_eq!(read("https://quay.io").unwrap().to_string(), "https://quay.io");
        assert_eq!(read("https://r.example:8443/").unwrap().host_and_port().to_string(), "r.example:8443");
        assert_eq!(read("http://r.example"), Err(EndpointError::PlainHttp));
        assert_eq!(read("ftp://r.example"), Err(EndpointError::Scheme));
        assert_eq!(read("r.example"), Err(EndpointError::NotAUrl));
        for text in ["https://u@r.example", "https://r.example/v2", "https://r.example?x", "https://r.example#x"] {
            assert_eq!(read(text), Err(EndpointError::TooMuch), "{text}");
        }
        assert!(Endpoint::parse("http://127.0.0.1:5100", PlainHttp::Allowed).unwrap().is_plain_http());
    }

    #[test]
    fn every_well_known_endpoint_is_legal_and_every_name_leads_back() {
        for kind in UpstreamKind::ALL {
            assert_eq!(UpstreamKind::from_name(kind.as_str()), Some(kind));
            if let Some(endpoint) = kind.profile().endpoint {
                assert!(Endpoint::parse(endpoint, PlainHttp::Refused).is_ok(), "{endpoint}");
            }
        }
    }

    #[test]
    fn the_credential_may_be_known_at_the_endpoint_and_where_it_was_said_and_at_no_other_port() {
        let upstream = |kind, endpoint: &str, allowed: &[&str]| Upstream {
            uid: uuid::Uuid::nil(),
            id: "corp".parse().unwrap(),
            kind,
            endpoint: Endpoint::parse(endpoint, PlainHttp::Allowed).unwrap(),
            allow_private_addresses: false,
            allow_hosts: allowed.iter().map(|host| host.parse().unwrap()).collect(),
            ca_certificates: String::new(),
            credential: None,
            budget: None,
            fallback_endpoints: Vec::new(),
            revision: 1,
        };
        let corp = upstream(UpstreamKind::Oci, "https://r.example:5050", &["auth.example:8443", "sso.example"]);
        let gitlab = upstream(UpstreamKind::Gitlab, "https://r.example:5050", &[]);
        let hub = upstream(UpstreamKind::DockerHub, "https://registry-1.docker.io", &[]);
        let plain = upstream(UpstreamKind::Oci, "http://r.example", &[]);
        for (upstream, url, may) in [
            (&corp, "https://r.example:5050/token", true),
            (&corp, "https://r.example/token", false),
            (&corp, "https://r.example:5051/token", false),
            (&corp, "http://r.example:5050/token", false),
            (&corp, "https://auth.example:8443/token", true),
            (&corp, "https://auth.example/token", false),
            (&corp, "https://sso.example/token", true),
            (&corp, "https://sso.example:8443/token", false),
            (&corp, "https://sub.sso.example/token", false),
            (&gitlab, "https://r.example/jwt/auth", true),
            (&gitlab, "https://r.example:8443/jwt/auth", false),
            (&gitlab, "http://r.example/jwt/auth", false),
            (&gitlab, "https://gitlab.com/jwt/auth", true),
            (&hub, "https://auth.docker.io/token", true),
            (&hub, "https://auth.docker.io:8443/token", false),
            (&hub, "https://registry-1.docker.io:8443/token", false),
            (&plain, "http://r.example/token", true),
            (&plain, "https://r.example/token", false),
        ] {
            assert_eq!(upstream.may_know_credential(&url.parse().unwrap()), may, "{url} of {}", upstream.endpoint);
        }
    }

    #[test]
    fn r_upq_hub_2_official_images_are_under_library() {
        assert_eq!(UpstreamKind::DockerHub.canonical("nginx").unwrap().as_str(), "library/nginx");
        assert_eq!(UpstreamKind::DockerHub.canonical("library/nginx").unwrap().as_str(), "library/nginx");
        assert_eq!(UpstreamKind::DockerHub.canonical("grafana/loki").unwrap().as_str(), "grafana/loki");
        assert_eq!(UpstreamKind::Quay.canonical("nginx").unwrap().as_str(), "nginx");
    }

    #[test]
    fn hosts_are_read_with_and_without_port() {
        let host: HostAndPort = "CDN.example:8443".parse().unwrap();
        assert!(host.covers("cdn.example", 8443) && !host.covers("cdn.example", 443));
        let host: HostAndPort = "cdn.example".parse().unwrap();
        assert!(host.covers("cdn.example", 1) && !host.covers("x.cdn.example", 1));
        for text in ["", "a/b", "a:b", "u@a", "https://a", ":80"] {
            assert!(text.parse::<HostAndPort>().is_err(), "{text}");
        }
    }
}
