//! Upstreams.

use std::num::NonZeroU32;

use entrepot_domain::budget::{LONGEST_WINDOW, SHORTEST_WINDOW};
use entrepot_domain::upstream::{Endpoint, HostAndPort, PlainHttp};
use entrepot_domain::{Budget, Secret, UpstreamKind};

use super::{Violations, duration, length, word};
use crate::v1 as wire;

/// How many further hosts an upstream may list.
const MAX_ALLOW_HOSTS: usize = 32;
/// How many fallback endpoints an upstream may have.
const MAX_FALLBACKS: usize = 4;
/// The longest bundle of certificates for an upstream.
const MAX_CA_BYTES: usize = 256 * 1024;
/// The longest user name.
const MAX_USERNAME_BYTES: usize = 1024;
/// The longest password. Tokens of cloud vendors have some kilobytes.
const MAX_PASSWORD_BYTES: usize = 16 * 1024;

/// The part of an upstream that operators decide.
#[derive(Clone, Debug)]
pub struct Settings {
    pub kind: UpstreamKind,
    pub endpoint: Endpoint,
    /// Whether the endpoint may be plain HTTP.
    pub plain_http: PlainHttp,
    /// Whether the endpoint may have a private address.
    pub allow_private_addresses: bool,
    /// Further hosts to which token realms and redirects may lead.
    pub allow_hosts: Vec<HostAndPort>,
    /// PEM certificates of authorities to trust in addition to the system's; may be empty.
    pub ca_certificates: String,
    /// The user name of the login; empty is anonymous.
    pub username: String,
    /// What happens to the password.
    pub password: Password,
    /// How many requests it may get; `None` means as many as the upstream allows.
    pub budget: Option<Budget>,
    /// Other places with the same content, in the order in which to ask them.
    pub fallback_endpoints: Vec<Endpoint>,
}

/// What happens to an upstream's password.
#[derive(Clone, Debug)]
pub enum Password {
    /// There is none.
    None,
    /// The stored one stays.
    Keep,
    /// A new one replaces it.
    New(Secret<String>),
}

impl Settings {
    /// Reads the settings from a request's field `upstream`. `has_password` says whether a password is stored, which
    /// stays if `password` is empty.
    ///
    /// # Errors
    /// Names every invalid field.
    pub fn read(upstream: &wire::Upstream) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let kind = violations.take("upstream.kind", kind(upstream.kind));
        let plain_http = if upstream.allow_plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
        let endpoint = violations.take("upstream.endpoint", endpoint(kind, &upstream.endpoint, plain_http)).flatten();
        let allow_hosts = allow_hosts(&mut violations, &upstream.allow_hosts);
        if upstream.ca_certificates.len() > MAX_CA_BYTES {
            violations.add("upstream.ca_certificates", format!("must be at most {MAX_CA_BYTES} bytes"));
        }
        let password = password(&mut violations, upstream);
        let budget = upstream.budget.as_ref().and_then(|sent| violations.merge(budget("upstream.budget", sent)));
        let fallback_endpoints =
            fallbacks(&mut violations, endpoint.as_ref(), &upstream.fallback_endpoints, plain_http);
        let settings = (|| {
            Some(Self {
                kind: kind?,
                endpoint: endpoint?,
                plain_http,
                allow_private_addresses: upstream.allow_private_addresses,
                allow_hosts,
                ca_certificates: upstream.ca_certificates.clone(),
                username: upstream.username.clone(),
                password,
                budget,
                fallback_endpoints,
            })
        })();
        violations.finish(settings)
    }

    /// Writes the settings, but never the password, into an upstream.
    pub fn write(&self, upstream: &mut wire::Upstream) {
        upstream.kind = kind_to_wire(self.kind).into();
        upstream.endpoint = self.endpoint.to_string();
        upstream.allow_plain_http = self.plain_http == PlainHttp::Allowed;
        upstream.allow_private_addresses = self.allow_private_addresses;
        upstream.allow_hosts = self.allow_hosts.iter().map(ToString::to_string).collect();
        upstream.ca_certificates = self.ca_certificates.clone();
        upstream.username = self.username.clone();
        upstream.has_password = !matches!(self.password, Password::None);
        upstream.suggested_prefix = self.kind.profile().suggested_prefix.to_owned();
        upstream.budget = self.budget.map(budget_to_wire);
        upstream.fallback_endpoints = self.fallback_endpoints.iter().map(ToString::to_string).collect();
    }
}

/// Reads a budget from a request's field `field`.
///
/// # Errors
/// Names every invalid field.
pub fn budget(field: &str, sent: &wire::Budget) -> Result<Budget, Violations> {
    let mut violations = Violations::default();
    let requests = u32::try_from(sent.requests).ok().and_then(NonZeroU32::new);
    let requests = violations.take(&format!("{field}.requests"), requests.ok_or("must be from 1 to 4294967295"));
    let window = sent.window.as_ref().and_then(length);
    let window = window.filter(|w| w.subsec_nanos() == 0 && (SHORTEST_WINDOW..=LONGEST_WINDOW).contains(w));
    let window =
        violations.take(&format!("{field}.window"), window.ok_or("must be whole seconds from 1 s to 366 days"));
    violations.finish(requests.zip(window).map(|(requests, window)| Budget { requests, window }))
}

/// Writes a budget.
pub fn budget_to_wire(budget: Budget) -> wire::Budget {
    wire::Budget { requests: budget.requests.get().into(), window: Some(duration(budget.window)) }
}

fn fallbacks(
    violations: &mut Violations,
    own: Option<&Endpoint>,
    wire: &[String],
    plain_http: PlainHttp,
) -> Vec<Endpoint> {
    if wire.len() > MAX_FALLBACKS {
        violations.add("upstream.fallback_endpoints", format!("must be at most {MAX_FALLBACKS} endpoints"));
        return Vec::new();
    }
    let mut all: Vec<Endpoint> = Vec::with_capacity(wire.len());
    for (i, text) in wire.iter().enumerate() {
        let field = format!("upstream.fallback_endpoints[{i}]");
        let Some(endpoint) = violations.take(&field, Endpoint::parse(text, plain_http)) else { continue };
        if own == Some(&endpoint) || all.contains(&endpoint) {
            violations.add(&field, "is asked already: name another endpoint, or leave it out");
        } else {
            all.push(endpoint);
        }
    }
    all
}

fn kind(wire: i32) -> Result<UpstreamKind, String> {
    let known = wire::UpstreamKind::try_from(wire).ok();
    known.and_then(|kind| UpstreamKind::from_name(word("UPSTREAM_KIND_", kind.as_str_name()))).ok_or_else(|| {
        let names: Vec<&str> = UpstreamKind::ALL.iter().map(|kind| kind_to_wire(*kind).as_str_name()).collect();
        format!("must be one of {}", names.join(", "))
    })
}

fn kind_to_wire(kind: UpstreamKind) -> wire::UpstreamKind {
    match kind {
        UpstreamKind::Oci => wire::UpstreamKind::Oci,
        UpstreamKind::EcrPublic => wire::UpstreamKind::EcrPublic,
        UpstreamKind::Quay => wire::UpstreamKind::Quay,
        UpstreamKind::DockerHub => wire::UpstreamKind::DockerHub,
        UpstreamKind::Kubernetes => wire::UpstreamKind::Kubernetes,
        UpstreamKind::Github => wire::UpstreamKind::Github,
        UpstreamKind::Gitlab => wire::UpstreamKind::Gitlab,
    }
}

/// The given endpoint, or the default of the kind; `None` if the kind is invalid and decides it.
fn endpoint(kind: Option<UpstreamKind>, text: &str, plain_http: PlainHttp) -> Result<Option<Endpoint>, String> {
    let own = kind.and_then(|kind| kind.profile().endpoint);
    let text = match (text, own, kind) {
        ("", Some(own), _) => own,
        ("", None, Some(_)) => return Err("must be set for this kind, such as `https://registry.example.com`".into()),
        ("", None, None) => return Ok(None),
        (text, _, _) => text,
    };
    Endpoint::parse(text, plain_http).map(Some).map_err(|error| error.to_string())
}

fn allow_hosts(violations: &mut Violations, wire: &[String]) -> Vec<HostAndPort> {
    if wire.len() > MAX_ALLOW_HOSTS {
        violations.add("upstream.allow_hosts", format!("must be at most {MAX_ALLOW_HOSTS} hosts"));
        return Vec::new();
    }
    let read = |(i, host): (usize, &String)| violations.take(&format!("upstream.allow_hosts[{i}]"), host.parse());
    wire.iter().enumerate().filter_map(read).collect()
}

fn password(violations: &mut Violations, upstream: &wire::Upstream) -> Password {
    let is_line = |text: &str, limit| text.len() <= limit && !text.chars().any(char::is_control);
    if !is_line(&upstream.username, MAX_USERNAME_BYTES) || upstream.username.contains(':') {
        violations.add("upstream.username", "must be one line of at most 1024 bytes without a colon");
    }
    if !is_line(&upstream.password, MAX_PASSWORD_BYTES) {
        violations.add("upstream.password", "must be one line of at most 16384 bytes");
    }
    match (upstream.username.is_empty(), upstream.password.is_empty(), upstream.has_password) {
        (false, false, _) => Password::New(Secret::new(upstream.password.clone())),
        (false, true, true) => Password::Keep,
        (false, true, false) => {
            violations.add("upstream.password", "must be set where `username` is; leave both empty for anonymous");
            Password::None
        }
        (true, false, _) => {
            violations.add("upstream.username", "must be set where `password` is; leave both empty for anonymous");
            Password::None
        }
        // A password is useless without a user, so clearing the user clears it.
        (true, true, _) => Password::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(change: impl FnOnce(&mut wire::Upstream)) -> wire::Upstream {
        let mut upstream = wire::Upstream { kind: wire::UpstreamKind::DockerHub.into(), ..Default::default() };
        change(&mut upstream);
        upstream
    }

    fn fields(upstream: &wire::Upstream) -> Vec<String> {
        Settings::read(upstream).unwrap_err().iter().map(|violation| violation.field.clone()).collect()
    }

    #[test]
    fn a_known_kind_fills_in_its_endpoint() {
        let settings = Settings::read(&wire(|_| {})).unwrap();
        let mut written = wire::Upstream::default();
        settings.write(&mut written);
        assert_eq!(written.endpoint, "https://registry-1.docker.io");
        assert_eq!((written.suggested_prefix.as_str(), written.has_password), ("hub", false));
    }

    #[test]
    fn every_wrong_field_is_named() {
        let all = wire(|upstream| {
            upstream.kind = 99;
            upstream.endpoint = "http://a".into();
            upstream.allow_hosts = vec!["ok".into(), "a/b".into()];
            upstream.username = "me".into();
        });
        let expected = ["upstream.kind", "upstream.endpoint", "upstream.allow_hosts[1]", "upstream.password"];
        assert_eq!(fields(&all), expected);
        assert_eq!(fields(&wire(|upstream| upstream.kind = wire::UpstreamKind::Oci.into())), ["upstream.endpoint"]);
        assert_eq!(fields(&wire(|upstream| upstream.password = "p".into())), ["upstream.username"]);
        assert_eq!(
            fields(&wire(|upstream| upstream.ca_certificates = "x".repeat(300_000))),
            ["upstream.ca_certificates"]
        );
    }

    #[test]
    fn a_stored_password_stays_until_it_or_its_user_changes() {
        let read = |change: fn(&mut wire::Upstream)| Settings::read(&wire(change)).unwrap().password;
        let stored = |upstream: &mut wire::Upstream| (upstream.has_password, upstream.username) = (true, "me".into());
        assert!(matches!(read(stored), Password::Keep));
        assert!(matches!(
            read(|upstream| (upstream.username, upstream.password) = ("a".into(), "b".into())),
            Password::New(_)
        ));
        assert!(matches!(read(|upstream| upstream.has_password = true), Password::None));
    }
}
