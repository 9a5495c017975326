//! The stored form of a policy: a JSON object, to which newer releases may have added fields.

use serde_json::{Map, Value};

use super::{Policy, WhenDenied};

/// The parts of a stored policy that this release cannot read: fields of newer releases, and new values of known
/// fields.
///
/// They are kept when this release rewrites the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    unread: Map<String, Value>,
    /// The policy that was read together with them.
    policy: Policy,
}

impl Policy {
    /// Reads a stored policy. Absent fields get their defaults. A value that cannot be read is replaced by one that
    /// permits nothing which the unknown value might forbid.
    pub fn from_stored(stored: Map<String, Value>) -> (Self, Rest) {
        let cautious = Self { when_denied: WhenDenied::Fail, ..Self::default() }.to_fields();
        let (mut fields, mut unread) = (Map::new(), Map::new());
        for (name, value) in stored {
            let Some(stand_in) = cautious.get(&name) else {
                unread.insert(name, value);
                continue;
            };
            let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            if serde_json::from_value::<Self>(alone).is_ok() {
                fields.insert(name, value);
            } else {
                fields.insert(name.clone(), stand_in.clone());
                unread.insert(name, value);
            }
        }
        let policy: Self = serde_json::from_value(Value::Object(fields)).expect("each field was read alone");
        (policy.clone(), Rest { unread, policy })
    }

    /// The policy in its stored form, including the parts that were kept in `rest`. A value that could not be read
    /// stays until its field is given another value.
    pub fn to_stored(&self, rest: &Rest) -> Map<String, Value> {
        let before = rest.policy.to_fields();
        let mut fields = self.to_fields();
        for (name, value) in &rest.unread {
            if fields.get(name) == before.get(name) {
                fields.insert(name.clone(), value.clone());
            }
        }
        fields
    }

    fn to_fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) | Err(_) => unreachable!("a policy is an object of plain values"),
        }
    }
}

/// A duration in whole seconds.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(length: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(length.as_secs())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

/// A duration in whole seconds, or `null`.
pub(super) mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(length: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        length.as_ref().map(Duration::as_secs).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::deserialize(from)?.map(Duration::from_secs))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::{Mode, TagWindow, WhenDeleted};
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_policy_is_stored_under_these_names() {
        let policy = Policy {
            window: Duration::ZERO,
            mode: Mode::Background,
            immutable_tags: vec!["v*".parse().unwrap()],
            max_stale: Some(Duration::from_secs(60)),
            when_deleted: WhenDeleted::Drop,
            when_denied: WhenDenied::Fail,
            tag_windows: vec![TagWindow { pattern: "latest".parse().unwrap(), window: None, mode: Some(Mode::Off) }],
            tag_list_window: Duration::from_secs(1),
            referrers_window: Duration::from_secs(2),
            automatic_sync: false,
        };
        let stored = object(json!({
            "window_seconds": 0,
            "mode": "BACKGROUND",
            "immutable_tags": ["v*"],
            "max_stale_seconds": 60,
            "when_deleted": "DROP",
            "when_denied": "FAIL",
            "tag_windows": [{ "pattern": "latest", "window_seconds": null, "mode": "OFF" }],
            "tag_list_window_seconds": 1,
            "referrers_window_seconds": 2,
            "automatic_sync": false,
        }));
        assert_eq!(policy.to_stored(&Rest::default()), stored);
        assert_eq!(Policy::from_stored(stored).0, policy);
        assert_eq!(Policy::from_stored(Map::new()).0, Policy::default());
    }

    #[test]
    fn names_of_values_are_those_of_the_wire_between_planes() {
        for mode in Mode::ALL {
            assert_eq!(json!(mode), json!(mode.as_str()));
        }
        assert_eq!(WhenDeleted::ALL.map(|when| json!(when)), WhenDeleted::ALL.map(|when| json!(when.as_str())));
        assert_eq!(WhenDenied::ALL.map(|when| json!(when)), WhenDenied::ALL.map(|when| json!(when.as_str())));
    }

    #[test]
    fn what_a_newer_release_has_stored_survives_a_rewrite_and_opens_nothing() {
        let stored = object(json!({
            "window_seconds": 7,
            "mode": "PREDICTIVE",
            "when_denied": "FAIL_AFTER_AN_HOUR",
            "colour": { "shade": "red" },
        }));
        let (mut policy, rest) = Policy::from_stored(stored);
        assert_eq!((policy.window, policy.mode), (Duration::from_secs(7), Mode::Blocking));
        assert_eq!(policy.when_denied, WhenDenied::Fail);

        policy.window = Duration::from_secs(8);
        let again = policy.to_stored(&rest);
        assert_eq!(again["window_seconds"], 8);
        assert_eq!((&again["mode"], &again["when_denied"]), (&json!("PREDICTIVE"), &json!("FAIL_AFTER_AN_HOUR")));
        assert_eq!(again["colour"]["shade"], "red");

        policy.mode = Mode::Off;
        assert_eq!(policy.to_stored(&rest)["mode"], "OFF", "somebody has chosen another value");
    }
}
