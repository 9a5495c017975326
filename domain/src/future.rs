//! Things that a later release may know and this one does not. This module matters only with the feature
//! `future-release`: the programs then play that later release beside the programs of this one, in a test of a fleet
//! with both (`scripts/suite releases`). The event and the rule field of that release are in the wire contract, under
//! the same feature.

#[cfg(all(feature = "future-release", not(debug_assertions)))]
compile_error!("the feature `future-release` is for tests; no optimized build, and so no release, may have it");

use crate::{Action, UpstreamKind};

/// The name of a kind of upstream, which behaves like any other registry.
pub const UPSTREAM_KIND: &str = "HARBOR";
/// The name of a permission set.
pub const PERMISSION_SET: &str = "AUDITOR";
/// The only action of that permission set: reading what is cached.
pub const ACTION: &str = "inspect";
/// A field that all new records have.
pub const RECORD_FIELD: &str = "inspected";
/// The value of a field that each rule in a snapshot has.
pub const RULE_LABEL: &str = "of a later release";

const IS_PLAYED: bool = cfg!(feature = "future-release");

pub(crate) fn upstream_kind(name: &str) -> Option<UpstreamKind> {
    (IS_PLAYED && name == UPSTREAM_KIND).then_some(UpstreamKind::Oci)
}

pub(crate) fn action(name: &str) -> Option<Action> {
    (IS_PLAYED && name == ACTION).then_some(Action::Pull)
}

/// The actions of a permission set of the later release, if `name` is one.
pub fn actions(name: &str) -> Option<&'static [&'static str]> {
    (IS_PLAYED && name == PERMISSION_SET).then_some(&[ACTION])
}

/// The field that new records have.
pub fn record_field() -> Option<&'static str> {
    IS_PLAYED.then_some(RECORD_FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_turns_the_later_release_on() {
        assert_eq!((Action::from_name(ACTION), UpstreamKind::from_name(UPSTREAM_KIND)), (None, None));
        assert_eq!((actions(PERMISSION_SET), record_field()), (None, None));
    }
}
