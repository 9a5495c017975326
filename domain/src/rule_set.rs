//! The set of all rules. The rule with the longest prefix that covers a name applies to it.

use std::sync::Arc;

use crate::name::RepositoryName;
use crate::prefix_map::PrefixMap;
use crate::rule::Rule;

/// All rules, by prefix.
#[derive(Clone, Debug, Default)]
pub struct RuleSet(PrefixMap<Rule>);

impl RuleSet {
    /// The rule with the longest prefix that covers `name`.
    pub fn covering(&self, name: &RepositoryName) -> Option<&Arc<Rule>> {
        self.0.covering(name)
    }

    pub fn by_uid(&self, uid: uuid::Uuid) -> Option<&Arc<Rule>> {
        self.iter().find(|rule| rule.uid == uid)
    }

    /// All rules, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.0.iter()
    }
}

impl FromIterator<Rule> for RuleSet {
    /// Of two rules with one prefix the later one is kept; the control plane prevents such pairs.
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        Self(rules.into_iter().map(|rule| (rule.prefix.clone(), rule)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NamespacePrefix;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn rules(prefixes: &[&str]) -> RuleSet {
        let rule = |prefix: &&str| Rule {
            uid: Uuid::nil(),
            id: "r".parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            upstream_uid: Uuid::nil(),
            upstream_prefix: NamespacePrefix::root(),
            freshness: crate::freshness::Policy::default(),
        };
        prefixes.iter().map(rule).collect()
    }

    #[test]
    fn the_longest_prefix_wins_and_root_is_the_last_resort() {
        let set = rules(&["ROOT", "a", "a/b"]);
        for (name, prefix) in [("a/b/c", "a/b"), ("a/b", "a"), ("a/bc/d", "a"), ("ab/c", "ROOT"), ("a", "ROOT")] {
            assert_eq!(set.covering(&name.parse().unwrap()).unwrap().prefix.to_string(), prefix, "{name}");
        }
        assert!(rules(&["a"]).covering(&"b/c".parse().unwrap()).is_none());
    }

    proptest! {
        #[test]
        fn the_answer_is_that_of_a_search_through_all_rules(
            prefixes in proptest::collection::btree_set("[ab](/[ab]){0,2}", 0..6), name in "[ab](/[ab]){0,4}",
        ) {
            let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            let name: RepositoryName = name.parse().unwrap();
            let longest = prefixes.iter().filter(|p| name.as_str().starts_with(&format!("{p}/"))).max_by_key(|p| p.len());
            let set = rules(&prefixes);
            prop_assert_eq!(set.covering(&name).map(|rule| rule.prefix.path()), longest.copied());
        }
    }
}
