//! Upstreams: the registries that rules pull from, and what is known about the well-known ones.

use std::fmt;

use url::Url;

use crate::budget::Budget;
use crate::name::{NameError, RepositoryName, ResourceId};
use crate::secret::Secret;

/// A registry that rules pull from.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Identifies it for ever.
    pub uid: uuid::Uuid,
    /// What operators call it.
    pub id: ResourceId,
    /// What kind of registry it is.
    pub kind: UpstreamKind,
    /// Where its API is.
    pub endpoint: Endpoint,
    /// Whether the endpoint may be at a private address.
    pub allow_private_addresses: bool,
    /// Further hosts that realms and redirects may lead to.
    pub allow_hosts: Vec<HostAndPort>,
    /// PEM certificates of authorities to trust besides the system's; empty for none.
    pub ca_certificates: String,
    /// Whom to log in as; `None` is anonymous.
    pub credential: Option<Credential>,
    /// How many requests it may get; `None` is as many as it lets us have.
    pub budget: Option<Budget>,
    /// Where the same content is, in the order in which to ask while the endpoint is away or limits our requests.
    pub fallback_endpoints: Vec<Endpoint>,
    /// Changes with every update.
    pub revision: i64,
}

/// A user name with its password or token.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Whom to log in as.
    pub username: String,
    /// The password or token.
    pub password: Secret<String>,
}

/// The base URL of a registry's API: `http` or `https`, a host, perhaps a port, nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Whether an endpoint may be reached without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainHttp {
    /// It may; the operator said so in so many words.
    Allowed,
    /// It may not.
    Refused,
}

/// Why a text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL with scheme and host.
    #[error("must be a URL such as `https://registry.example.com`")]
    NotAUrl,
    /// A scheme other than HTTP's.
    #[error("must begin with `https://` (or `http://`, where plain HTTP is allowed)")]
    Scheme,
    /// Plain HTTP without leave.
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
    /// If it is not scheme, host and port, or plain HTTP without leave.
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

    /// The host with the port that is used.
    pub fn host_and_port(&self) -> HostAndPort {
        HostAndPort {
            host: self.0.host_str().unwrap_or_default().to_owned(),
            port: Some(self.0.port_or_known_default().unwrap_or_default()),
        }
    }

    /// Whether it is reached without TLS.
    pub fn is_plain_http(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Where a manifest is: `reference` is a tag or digest of `repository` there.
    pub fn manifest_url(&self, repository: &RepositoryName, reference: &crate::Reference) -> Url {
        self.join(&format!("v2/{repository}/manifests/{reference}"))
    }

    /// Where a blob is.
    pub fn blob_url(&self, repository: &RepositoryName, digest: &crate::Digest) -> Url {
        self.join(&format!("v2/{repository}/blobs/{digest}"))
    }

    /// Where the first page of a repository's tags is, of at most `count` of them.
    pub fn tags_url(&self, repository: &RepositoryName, count: usize) -> Url {
        let mut url = self.join(&format!("v2/{repository}/tags/list"));
        url.set_query(Some(&format!("n={count}")));
        url
    }

    /// Where the list of what refers to a manifest is.
    pub fn referrers_url(&self, repository: &RepositoryName, digest: &crate::Digest) -> Url {
        self.join(&format!("v2/{repository}/referrers/{digest}"))
    }

    /// Where the API's base is, which answers with a challenge if it wants a login.
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

/// A host, or one port of a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostAndPort {
    /// A name or address, lower case, IPv6 in brackets.
    pub host: String,
    /// The port; `None` means any.
    pub port: Option<u16>,
}

impl HostAndPort {
    /// Whether `host` and `port` are meant.
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

/// The registries that are known here, with their quirks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamKind {
    /// Any registry that speaks the OCI distribution protocol.
    Oci,
    /// Amazon ECR Public.
    EcrPublic,
    /// Quay.
    Quay,
    /// Docker Hub.
    DockerHub,
    /// registry.k8s.io.
    Kubernetes,
    /// GitHub's container registry.
    Github,
}

/// What a request asks an upstream for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// A manifest, to have it.
    Manifest,
    /// A manifest, to know which one it is.
    ManifestHead,
    /// A blob, or something of it.
    Blob,
    /// A page of a list, of tags or of referrers; or anything else.
    List,
}

/// Which requests an upstream counts towards the limit that it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// All of them.
    All,
    /// Those that fetch a manifest, as Docker Hub does.
    Manifests,
}

impl Counting {
    /// Whether a request counts.
    pub fn counts(self, request: RequestKind) -> bool {
        match self {
            Self::All => true,
            Self::Manifests => request == RequestKind::Manifest,
        }
    }
}

/// What is known about a kind of upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Where it is; `None` for any OCI host.
    pub endpoint: Option<&'static str>,
    /// The namespace prefix that it is usually given.
    pub suggested_prefix: &'static str,
    /// Hosts besides its own that its token realm is at, and that may be given its credential.
    pub realm_hosts: &'static [&'static str],
    /// A small public image that it has, as repository and tag.
    pub sample: Option<(&'static str, &'static str)>,
    /// Which requests it counts.
    pub counting: Counting,
}

impl UpstreamKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Oci, Self::EcrPublic, Self::Quay, Self::DockerHub, Self::Kubernetes, Self::Github];

    /// What is known about this kind.
    pub fn profile(self) -> Profile {
        let known = |endpoint, suggested_prefix, realm_hosts, sample| Profile {
            endpoint: Some(endpoint),
            suggested_prefix,
            realm_hosts,
            sample: Some(sample),
            counting: Counting::All,
        };
        match self {
            Self::Oci => Profile {
                endpoint: None,
                suggested_prefix: "",
                realm_hosts: &[],
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
        }
    }

    /// The name that this kind gives to a repository that clients call `rest` below a rule's prefix.
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
        }
    }

    /// The kind that `name` means on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
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
