//! The content of a snapshot.

use entrepot_domain::upstream::{Credential, Endpoint, PlainHttp};
use entrepot_domain::{NamespacePrefix, Rule, Secret, Upstream, UpstreamKind};

use super::upstream::budget;
use super::{Violations, freshness};
use crate::node::v1 as wire;

/// Reads a rule.
///
/// # Errors
/// Names every invalid field.
pub fn rule(rule: &wire::SnapshotRule) -> Result<Rule, Violations> {
    let mut violations = Violations::default();
    let uid = violations.take("uid", rule.uid.parse());
    let id = violations.take("rule_id", rule.rule_id.parse());
    let prefix = violations.take("prefix", rule.prefix.parse());
    let upstream_uid = violations.take("upstream_uid", rule.upstream_uid.parse());
    let upstream_prefix = violations.take("upstream_prefix", upstream_prefix(&rule.upstream_prefix));
    let freshness = violations.merge(freshness::from_snapshot(rule.freshness.as_ref()));
    let rule = (|| {
        Some(Rule {
            uid: uid?,
            id: id?,
            prefix: prefix?,
            upstream_uid: upstream_uid?,
            upstream_prefix: upstream_prefix?,
            freshness: freshness?,
        })
    })();
    violations.finish(rule)
}

/// Writes a rule.
pub fn rule_to_wire(rule: &Rule) -> wire::SnapshotRule {
    wire::SnapshotRule {
        uid: rule.uid.to_string(),
        rule_id: rule.id.to_string(),
        prefix: rule.prefix.to_string(),
        upstream_uid: rule.upstream_uid.to_string(),
        upstream_prefix: rule.upstream_prefix.path().to_owned(),
        freshness: Some(freshness::to_snapshot(&rule.freshness)),
        minimum_reader: 0,
        #[cfg(feature = "future-release")]
        label: entrepot_domain::future::RULE_LABEL.to_owned(),
    }
}

/// Reads an upstream, whose password the caller has unsealed.
///
/// # Errors
/// Names every invalid field.
pub fn upstream(upstream: &wire::SnapshotUpstream, password: Option<Secret<String>>) -> Result<Upstream, Violations> {
    let mut violations = Violations::default();
    let plain_http = if upstream.allow_plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
    let uid = violations.take("uid", upstream.uid.parse());
    let id = violations.take("upstream_id", upstream.upstream_id.parse());
    let kind = violations.take("kind", UpstreamKind::from_name(&upstream.kind).ok_or("is not known here"));
    let endpoint = violations.take("endpoint", Endpoint::parse(&upstream.endpoint, plain_http));
    let hosts: Result<Vec<_>, _> = upstream.allow_hosts.iter().map(|host| host.parse()).collect();
    let allow_hosts = violations.take("allow_hosts", hosts);
    let budget = upstream.budget.as_ref().map(|sent| violations.merge(budget("budget", sent)));
    let fallbacks: Result<Vec<_>, _> =
        upstream.fallback_endpoints.iter().map(|endpoint| Endpoint::parse(endpoint, plain_http)).collect();
    let fallback_endpoints = violations.take("fallback_endpoints", fallbacks);
    let credential = password.map(|password| Credential { username: upstream.username.clone(), password });
    let upstream = (|| {
        Some(Upstream {
            uid: uid?,
            id: id?,
            kind: kind?,
            endpoint: endpoint?,
            allow_private_addresses: upstream.allow_private_addresses,
            allow_hosts: allow_hosts?,
            ca_certificates: upstream.ca_certificates.clone(),
            credential,
            budget: match budget {
                Some(read) => Some(read?),
                None => None,
            },
            fallback_endpoints: fallback_endpoints?,
            revision: upstream.revision,
        })
    })();
    violations.finish(upstream)
}

/// The purpose under which the password of the upstream `uid` is sealed.
pub fn password_purpose(uid: uuid::Uuid) -> String {
    format!("upstream-password/{uid}")
}

/// The purpose under which the hash of an access key's secret is sealed.
pub fn access_key_purpose(key_id: &str) -> String {
    format!("access-key/{key_id}")
}

fn upstream_prefix(text: &str) -> Result<NamespacePrefix, entrepot_domain::name::NameError> {
    if text.is_empty() { Ok(NamespacePrefix::root()) } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_domain::freshness::{Mode, Policy};

    #[test]
    fn rules_survive_the_wire() {
        for (prefix, upstream_prefix) in [("hub", "ROOT"), ("ROOT", "a/b")] {
            let rule_value = Rule {
                uid: uuid::Uuid::nil(),
                id: "hub".parse().unwrap(),
                prefix: prefix.parse().unwrap(),
                upstream_uid: uuid::Uuid::nil(),
                upstream_prefix: upstream_prefix.parse().unwrap(),
                freshness: Policy { mode: Mode::Off, ..Policy::default() },
            };
            assert_eq!(rule(&rule_to_wire(&rule_value)), Ok(rule_value));
        }
        assert!(rule(&wire::SnapshotRule::default()).unwrap_err().to_string().contains("`prefix`"));
    }

    #[test]
    fn an_upstream_without_leave_for_plain_http_is_refused() {
        let mut wire = wire::SnapshotUpstream {
            uid: uuid::Uuid::nil().to_string(),
            upstream_id: "u".into(),
            kind: "OCI".into(),
            endpoint: "http://a".into(),
            allow_plain_http: true,
            username: "me".into(),
            ..Default::default()
        };
        let read = upstream(&wire, Some(Secret::new("p".into()))).unwrap();
        assert_eq!(read.credential.unwrap().username, "me");
        wire.allow_plain_http = false;
        assert!(upstream(&wire, None).is_err());
    }
}
