//! Rules.

use entrepot_domain::freshness::Policy;
use entrepot_domain::{NamespacePrefix, ResourceId};

use super::{Violations, freshness, names};
use crate::v1 as wire;

/// The part of a rule that operators decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The repositories that it covers.
    pub prefix: NamespacePrefix,
    /// The upstream that fills them.
    pub upstream_id: ResourceId,
    /// The prefix at the upstream, which goes in front of the rest of the name.
    pub upstream_prefix: NamespacePrefix,
    /// How long its tags are trusted, and what happens then.
    pub freshness: Policy,
}

impl Settings {
    /// Reads the settings of the rule `id` from a request's field `rule`.
    ///
    /// # Errors
    /// Names every invalid field.
    pub fn read(id: &ResourceId, rule: &wire::Rule) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let prefix = if rule.prefix.is_empty() { id.as_str() } else { &rule.prefix };
        let prefix = violations.take("rule.prefix", prefix.parse());
        let upstream_id = violations.take("rule.upstream", names::parse_upstream(&rule.upstream));
        let upstream_prefix = match rule.upstream_prefix.as_str() {
            "" => Some(NamespacePrefix::root()),
            text => violations.take("rule.upstream_prefix", text.parse()),
        };
        let freshness = violations.merge(freshness::read(rule));
        let settings = (|| {
            let (prefix, upstream_id, upstream_prefix) = (prefix?, upstream_id?, upstream_prefix?);
            Some(Self { prefix, upstream_id, upstream_prefix, freshness: freshness? })
        })();
        violations.finish(settings)
    }

    /// Writes the settings into a rule.
    pub fn write(&self, rule: &mut wire::Rule) {
        rule.prefix = self.prefix.to_string();
        rule.upstream = names::upstream(&self.upstream_id);
        rule.upstream_prefix =
            if self.upstream_prefix.is_root() { String::new() } else { self.upstream_prefix.to_string() };
        freshness::write(&self.freshness, rule);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_prefix_is_the_rules_id() {
        let rule = wire::Rule { upstream: "upstreams/hub".into(), ..Default::default() };
        let settings = Settings::read(&"mirror".parse().unwrap(), &rule).unwrap();
        assert_eq!(settings.prefix.to_string(), "mirror");
        let mut written = wire::Rule::default();
        settings.write(&mut written);
        assert_eq!((written.upstream, written.upstream_prefix), ("upstreams/hub".into(), String::new()));
    }

    #[test]
    fn every_wrong_field_is_named() {
        let rule = wire::Rule {
            prefix: "A".into(),
            upstream: "hub".into(),
            upstream_prefix: "/".into(),
            immutable_tags: vec![String::new()],
            ..Default::default()
        };
        let violations = Settings::read(&"r".parse().unwrap(), &rule).unwrap_err();
        let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["rule.prefix", "rule.upstream", "rule.upstream_prefix", "rule.immutable_tags[0]"]);
    }
}
