//! The freshness policy of a rule.

use std::time::Duration;

use entrepot_domain::freshness::{Mode, Policy, TagPattern, TagWindow, WhenDeleted, WhenDenied};

use super::{Violations, duration, length};
use crate::node::v1 as node;
use crate::v1 as wire;

/// Reads the policy of a rule from a request's field `rule`.
///
/// # Errors
/// Names every invalid field.
pub fn read(rule: &wire::Rule) -> Result<Policy, Violations> {
    let mut violations = Violations::default();
    let v = &mut violations;
    let default = Policy::default();
    let window = window(v, "rule.window", rule.window.as_ref(), Policy::MAX_WINDOW);
    let mode = mode(v, "rule.mode", rule.mode);
    let immutable_tags = patterns(v, "rule.immutable_tags", &rule.immutable_tags);
    let max_stale = self::window(v, "rule.max_stale", rule.max_stale.as_ref(), Policy::MAX_WINDOW);
    let when_deleted = when_deleted(v, rule.when_deleted);
    let when_denied = when_denied(v, rule.when_denied);
    let tag_windows = tag_windows(v, &rule.tag_windows);
    let tag_list_window =
        self::window(v, "rule.tag_list_window", rule.tag_list_window.as_ref(), Policy::MAX_LIST_WINDOW);
    let referrers_window =
        self::window(v, "rule.referrers_window", rule.referrers_window.as_ref(), Policy::MAX_LIST_WINDOW);
    let automatic_sync = v.merge(automatic_sync("rule.automatic_sync", rule.automatic_sync)).flatten();
    let policy = Policy {
        window: window.unwrap_or(default.window),
        mode: mode.unwrap_or_default(),
        immutable_tags,
        max_stale,
        when_deleted,
        when_denied,
        tag_windows,
        tag_list_window: tag_list_window.unwrap_or(default.tag_list_window),
        referrers_window: referrers_window.unwrap_or(default.referrers_window),
        automatic_sync: automatic_sync.unwrap_or(default.automatic_sync),
    };
    violations.finish(Some(policy))
}

/// Reads whether tags are synced automatically; `None` if unspecified.
///
/// # Errors
/// If the value is unknown.
pub fn automatic_sync(field: &str, wire: i32) -> Result<Option<bool>, Violations> {
    match wire::AutomaticSync::try_from(wire) {
        Ok(wire::AutomaticSync::Unspecified) => Ok(None),
        Ok(wire::AutomaticSync::On) => Ok(Some(true)),
        Ok(wire::AutomaticSync::Off) => Ok(Some(false)),
        Err(_) => Err(Violations::one(field, "must be AUTOMATIC_SYNC_ON or AUTOMATIC_SYNC_OFF, or unspecified")),
    }
}

/// Whether tags are synced automatically, in wire form.
pub fn automatic_sync_to_wire(is_on: Option<bool>) -> wire::AutomaticSync {
    match is_on {
        None => wire::AutomaticSync::Unspecified,
        Some(true) => wire::AutomaticSync::On,
        Some(false) => wire::AutomaticSync::Off,
    }
}

/// Writes the policy into a rule.
pub fn write(policy: &Policy, rule: &mut wire::Rule) {
    rule.window = Some(duration(policy.window));
    rule.mode = mode_to_wire(policy.mode).into();
    rule.immutable_tags = policy.immutable_tags.iter().map(ToString::to_string).collect();
    rule.max_stale = policy.max_stale.map(duration);
    rule.when_deleted = match policy.when_deleted {
        WhenDeleted::Keep => wire::rule::WhenDeleted::Keep,
        WhenDeleted::Drop => wire::rule::WhenDeleted::Drop,
    }
    .into();
    rule.when_denied = match policy.when_denied {
        WhenDenied::Keep => wire::rule::WhenDenied::Keep,
        WhenDenied::Fail => wire::rule::WhenDenied::Fail,
    }
    .into();
    rule.tag_windows = policy.tag_windows.iter().map(tag_window_to_wire).collect();
    rule.tag_list_window = Some(duration(policy.tag_list_window));
    rule.referrers_window = Some(duration(policy.referrers_window));
    rule.automatic_sync = automatic_sync_to_wire(Some(policy.automatic_sync)).into();
}

pub fn mode_to_wire(mode: Mode) -> wire::rule::Mode {
    match mode {
        Mode::Blocking => wire::rule::Mode::Blocking,
        Mode::Background => wire::rule::Mode::Background,
        Mode::Off => wire::rule::Mode::Off,
    }
}

/// Reads the policy in a snapshot. Absent fields get their defaults, since the control plane may be older.
///
/// # Errors
/// Names every invalid field.
pub fn from_snapshot(freshness: Option<&node::SnapshotFreshness>) -> Result<Policy, Violations> {
    let default = Policy::default();
    let Some(sent) = freshness else { return Ok(default) };
    let mut violations = Violations::default();
    let v = &mut violations;
    let named_mode = |text: &str| Mode::from_name(text).ok_or("is not known here");
    let window = window(v, "window", sent.window.as_ref(), Policy::MAX_WINDOW);
    let mode = unless_empty(&sent.mode, |text| v.take("mode", named_mode(text)));
    let immutable_tags = patterns(v, "immutable_tags", &sent.immutable_tags);
    let max_stale = self::window(v, "max_stale", sent.max_stale.as_ref(), Policy::MAX_WINDOW);
    let when_deleted = unless_empty(&sent.when_deleted, |text| {
        v.take("when_deleted", WhenDeleted::from_name(text).ok_or("is not known here"))
    });
    let when_denied = unless_empty(&sent.when_denied, |text| {
        v.take("when_denied", WhenDenied::from_name(text).ok_or("is not known here"))
    });
    let tag_list_window = self::window(v, "tag_list_window", sent.tag_list_window.as_ref(), Policy::MAX_LIST_WINDOW);
    let referrers_window = self::window(v, "referrers_window", sent.referrers_window.as_ref(), Policy::MAX_LIST_WINDOW);
    let mut tag_windows = Vec::new();
    for (i, own) in sent.tag_windows.iter().enumerate() {
        let pattern = v.take(&format!("tag_windows[{i}].pattern"), own.pattern.parse::<TagPattern>());
        let window = self::window(v, &format!("tag_windows[{i}].window"), own.window.as_ref(), Policy::MAX_WINDOW);
        let mode = unless_empty(&own.mode, |text| v.take(&format!("tag_windows[{i}].mode"), named_mode(text)));
        tag_windows.extend(pattern.map(|pattern| TagWindow { pattern, window, mode }));
    }
    let policy = Policy {
        window: window.unwrap_or(default.window),
        mode: mode.unwrap_or_default(),
        immutable_tags,
        max_stale,
        when_deleted: when_deleted.unwrap_or_default(),
        when_denied: when_denied.unwrap_or_default(),
        tag_windows,
        tag_list_window: tag_list_window.unwrap_or(default.tag_list_window),
        referrers_window: referrers_window.unwrap_or(default.referrers_window),
        // Nodes do not need this: the control plane tells them what to sync and when.
        automatic_sync: default.automatic_sync,
    };
    violations.finish(Some(policy))
}

/// The policy in the form of a snapshot, without what only the control plane needs.
pub fn to_snapshot(policy: &Policy) -> node::SnapshotFreshness {
    let tag_window = |own: &TagWindow| node::SnapshotTagWindow {
        pattern: own.pattern.to_string(),
        window: own.window.map(duration),
        mode: own.mode.map(Mode::as_str).unwrap_or_default().to_owned(),
    };
    node::SnapshotFreshness {
        window: Some(duration(policy.window)),
        mode: policy.mode.as_str().to_owned(),
        immutable_tags: policy.immutable_tags.iter().map(ToString::to_string).collect(),
        max_stale: policy.max_stale.map(duration),
        when_deleted: policy.when_deleted.as_str().to_owned(),
        when_denied: policy.when_denied.as_str().to_owned(),
        tag_windows: policy.tag_windows.iter().map(tag_window).collect(),
        tag_list_window: Some(duration(policy.tag_list_window)),
        referrers_window: Some(duration(policy.referrers_window)),
    }
}

fn tag_window_to_wire(own: &TagWindow) -> wire::TagWindow {
    wire::TagWindow {
        pattern: own.pattern.to_string(),
        window: own.window.map(duration),
        mode: own.mode.map_or(wire::rule::Mode::Unspecified, mode_to_wire).into(),
    }
}

fn tag_windows(violations: &mut Violations, sent: &[wire::TagWindow]) -> Vec<TagWindow> {
    few_enough(violations, "rule.tag_windows", sent.len());
    let mut read = Vec::new();
    for (i, own) in sent.iter().enumerate() {
        let field = format!("rule.tag_windows[{i}]");
        let pattern = violations.take(&format!("{field}.pattern"), own.pattern.parse::<TagPattern>());
        let window = window(violations, &format!("{field}.window"), own.window.as_ref(), Policy::MAX_WINDOW);
        let mode = mode(violations, &format!("{field}.mode"), own.mode);
        if own.window.is_none() && own.mode == 0 {
            violations.add(&field, "says nothing: set its `window`, its `mode`, or both, or leave it out");
        }
        read.extend(pattern.map(|pattern| TagWindow { pattern, window, mode }));
    }
    read
}

fn patterns(violations: &mut Violations, field: &str, texts: &[String]) -> Vec<TagPattern> {
    few_enough(violations, field, texts.len());
    let read = texts.iter().enumerate();
    read.filter_map(|(i, text)| violations.take(&format!("{field}[{i}]"), text.parse())).collect()
}

fn few_enough(violations: &mut Violations, field: &str, count: usize) {
    let most = Policy::MAX_PATTERNS;
    if count > most {
        violations.add(field, format!("holds {count} patterns, and {most} are the most: use `*` to say it with fewer"));
    }
}

/// A duration in whole seconds; `None` if it is absent, or if it is invalid and was noted.
fn window(
    violations: &mut Violations,
    field: &str,
    sent: Option<&prost_types::Duration>,
    most: Duration,
) -> Option<Duration> {
    let sent = sent?;
    let read = length(sent).filter(|length| length.subsec_nanos() == 0 && *length <= most);
    let hours = most.as_secs() / 3600;
    read.or_else(|| violations.take(field, Err(format!("must be whole seconds from 0 s to {hours} h"))))
}

/// A mode; `None` if it is unspecified, or if it is invalid and was noted.
fn mode(violations: &mut Violations, field: &str, sent: i32) -> Option<Mode> {
    match wire::rule::Mode::try_from(sent) {
        Ok(wire::rule::Mode::Unspecified) => None,
        Ok(wire::rule::Mode::Blocking) => Some(Mode::Blocking),
        Ok(wire::rule::Mode::Background) => Some(Mode::Background),
        Ok(wire::rule::Mode::Off) => Some(Mode::Off),
        Err(_) => violations.take(field, Err("must be MODE_BLOCKING, MODE_BACKGROUND or MODE_OFF")),
    }
}

fn when_deleted(violations: &mut Violations, sent: i32) -> WhenDeleted {
    use wire::rule::WhenDeleted as Wire;
    match Wire::try_from(sent) {
        Ok(Wire::Unspecified | Wire::Keep) => WhenDeleted::Keep,
        Ok(Wire::Drop) => WhenDeleted::Drop,
        Err(_) => {
            violations.add("rule.when_deleted", "must be WHEN_DELETED_KEEP or WHEN_DELETED_DROP");
            WhenDeleted::Keep
        }
    }
}

fn when_denied(violations: &mut Violations, sent: i32) -> WhenDenied {
    use wire::rule::WhenDenied as Wire;
    match Wire::try_from(sent) {
        Ok(Wire::Unspecified | Wire::Keep) => WhenDenied::Keep,
        Ok(Wire::Fail) => WhenDenied::Fail,
        Err(_) => {
            violations.add("rule.when_denied", "must be WHEN_DENIED_KEEP or WHEN_DENIED_FAIL");
            WhenDenied::Keep
        }
    }
}

fn unless_empty<T>(text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    if text.is_empty() { None } else { read(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> Policy {
        Policy {
            window: Duration::ZERO,
            mode: Mode::Background,
            immutable_tags: vec!["v*".parse().unwrap()],
            max_stale: Some(Duration::from_secs(604_800)),
            when_deleted: WhenDeleted::Drop,
            when_denied: WhenDenied::Fail,
            tag_windows: vec![
                TagWindow { pattern: "latest".parse().unwrap(), window: Some(Duration::from_secs(300)), mode: None },
                TagWindow { pattern: "*".parse().unwrap(), window: None, mode: Some(Mode::Off) },
            ],
            tag_list_window: Duration::from_secs(60),
            referrers_window: Duration::from_secs(120),
            automatic_sync: false,
        }
    }

    #[test]
    fn policies_survive_both_wires() {
        for policy in [Policy::default(), special()] {
            let mut rule = wire::Rule::default();
            write(&policy, &mut rule);
            assert_eq!(read(&rule), Ok(policy.clone()));
            let sent = from_snapshot(Some(&to_snapshot(&policy)));
            assert_eq!(sent, Ok(Policy { automatic_sync: true, ..policy }), "nodes need not know of automatic syncs");
        }
    }

    #[test]
    fn what_is_absent_is_the_default() {
        assert_eq!(read(&wire::Rule::default()), Ok(Policy::default()));
        assert_eq!(from_snapshot(None), Ok(Policy::default()));
        assert_eq!(from_snapshot(Some(&node::SnapshotFreshness::default())), Ok(Policy::default()));
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let seconds = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let own = |pattern: &str, window, mode| wire::TagWindow { pattern: pattern.to_owned(), window, mode };
        let rule = wire::Rule {
            window: seconds(-1, 0),
            mode: 9,
            immutable_tags: vec!["v*".to_owned(), "a/b".to_owned()],
            max_stale: seconds(0, 500_000_000),
            when_deleted: 9,
            when_denied: 9,
            tag_windows: vec![own("ok", seconds(1, 0), 0), own("", seconds(i64::MAX, 0), 9), own("x", None, 0)],
            tag_list_window: seconds(86_401, 0),
            referrers_window: seconds(0, -1),
            automatic_sync: 9,
            ..Default::default()
        };
        let violations = read(&rule).unwrap_err();
        let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "rule.window",
                "rule.mode",
                "rule.immutable_tags[1]",
                "rule.max_stale",
                "rule.when_deleted",
                "rule.when_denied",
                "rule.tag_windows[1].pattern",
                "rule.tag_windows[1].window",
                "rule.tag_windows[1].mode",
                "rule.tag_windows[2]",
                "rule.tag_list_window",
                "rule.referrers_window",
                "rule.automatic_sync",
            ]
        );
        let many = wire::Rule { immutable_tags: vec!["a".to_owned(); 51], ..Default::default() };
        assert!(read(&many).unwrap_err().to_string().contains("`rule.immutable_tags` holds 51 patterns"));
    }

    #[test]
    fn a_policy_that_this_node_does_not_know_is_refused() {
        let sent = node::SnapshotFreshness { mode: "SOMETIMES".to_owned(), ..Default::default() };
        assert!(from_snapshot(Some(&sent)).unwrap_err().to_string().contains("`mode` is not known here"));
    }
}
