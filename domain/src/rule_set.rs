//! Which rule covers a name? The one with the longest prefix.

use std::collections::HashMap;
use std::sync::Arc;

use crate::name::{NamespacePrefix, RepositoryName};
use crate::rule::Rule;

/// All rules, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    by_prefix: HashMap<Box<str>, Arc<Rule>>,
}

impl RuleSet {
    /// The rule with the longest prefix that covers `name`.
    ///
    /// Costs one look-up per segment of the name, however many rules there are.
    pub fn covering(&self, name: &RepositoryName) -> Option<&Arc<Rule>> {
        let name = name.as_str();
        let prefixes = name.rmatch_indices('/').map(|(end, _)| &name[..end]);
        prefixes.chain([NamespacePrefix::root().path()]).find_map(|prefix| self.by_prefix.get(prefix))
    }

    /// The rule with this uid.
    pub fn by_uid(&self, uid: uuid::Uuid) -> Option<&Arc<Rule>> {
        self.by_prefix.values().find(|rule| rule.uid == uid)
    }

    /// All rules, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.by_prefix.values()
    }
}

impl FromIterator<Rule> for RuleSet {
    /// Of two rules with one prefix the later stays; the control plane lets no such pair exist.
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        Self { by_prefix: rules.into_iter().map(|rule| (rule.prefix.path().into(), Arc::new(rule))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
