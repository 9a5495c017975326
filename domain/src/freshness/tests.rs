use super::*;
use chrono::TimeDelta;
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(10_000)
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn patterns(texts: &[&str]) -> Vec<TagPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn of_age(policy: &Policy, age: TimeDelta) -> Decision {
    decide(policy, &tag("v1"), Some(now() - age), now())
}

#[test]
fn a_tag_is_trusted_for_the_window_and_not_a_moment_longer() {
    let policy = Policy::default();
    assert_eq!(of_age(&policy, TimeDelta::zero()), Decision::Serve);
    assert_eq!(of_age(&policy, TimeDelta::hours(24) - TimeDelta::milliseconds(1)), Decision::Serve);
    assert_eq!(of_age(&policy, TimeDelta::hours(24)), Decision::AskThenServe);
    assert_eq!(of_age(&policy, TimeDelta::seconds(-1)), Decision::AskThenServe, "a clock was wrong");
    assert_eq!(decide(&policy, &tag("v1"), None, now()), Decision::AskThenServe);
}

#[test]
fn a_window_of_zero_asks_every_time() {
    for (mode, decision) in [(Mode::Blocking, Decision::AskThenServe), (Mode::Background, Decision::ServeThenAsk)] {
        let policy = Policy { window: Duration::ZERO, mode, ..Policy::default() };
        assert_eq!(of_age(&policy, TimeDelta::zero()), decision);
    }
}

#[test]
fn each_mode_does_with_a_stale_tag_what_it_says() {
    for (mode, decision) in [
        (Mode::Blocking, Decision::AskThenServe),
        (Mode::Background, Decision::ServeThenAsk),
        (Mode::Off, Decision::Serve),
    ] {
        let policy = Policy { mode, ..Policy::default() };
        assert_eq!(of_age(&policy, TimeDelta::days(100)), decision);
        assert_eq!(decide(&policy, &tag("v1"), None, now()), decision, "never validated is stale");
        assert_eq!(of_age(&policy, TimeDelta::hours(1)), Decision::Serve, "fresh is fresh in any mode");
    }
}

#[test]
fn what_is_too_stale_to_be_served_is_not_asked_for_behind() {
    let policy = Policy { mode: Mode::Background, max_stale: Some(48 * HOUR), ..Policy::default() };
    assert_eq!(of_age(&policy, TimeDelta::hours(48)), Decision::ServeThenAsk);
    assert_eq!(of_age(&policy, TimeDelta::hours(48) + TimeDelta::milliseconds(1)), Decision::AskThenServe);
    assert_eq!(decide(&policy, &tag("v1"), None, now()), Decision::AskThenServe);
    let off = Policy { mode: Mode::Off, ..policy };
    assert_eq!(of_age(&off, TimeDelta::days(100)), Decision::Serve, "nobody is asked who could fail to confirm it");
}

#[test]
fn a_tag_that_never_moves_is_never_asked_for() {
    let policy = Policy { immutable_tags: patterns(&["v*", "*-release"]), window: Duration::ZERO, ..Policy::default() };
    for text in ["v1", "a-release"] {
        assert_eq!(decide(&policy, &tag(text), None, now()), Decision::Serve, "{text}");
    }
    assert_eq!(decide(&policy, &tag("latest"), Some(now()), now()), Decision::AskThenServe);
}

#[test]
fn the_first_pattern_that_matches_counts_and_leaves_what_it_does_not_say() {
    let of = |pattern: &str, window: Option<Duration>, mode: Option<Mode>| TagWindow {
        pattern: pattern.parse().unwrap(),
        window,
        mode,
    };
    let policy = Policy {
        immutable_tags: patterns(&["v1.0"]),
        tag_windows: vec![
            of("latest", Some(Duration::from_secs(300)), Some(Mode::Background)),
            of("v1*", Some(HOUR), None),
            of("v*", None, Some(Mode::Off)),
        ],
        ..Policy::default()
    };
    let movable = |window, mode, pattern| TagPolicy::Movable { window, mode, pattern: Some(pattern) };
    let own: Vec<&TagPattern> = policy.tag_windows.iter().map(|own| &own.pattern).collect();
    assert_eq!(policy.for_tag(&tag("latest")), movable(Duration::from_secs(300), Mode::Background, own[0]));
    assert_eq!(policy.for_tag(&tag("v1.2")), movable(HOUR, Mode::Blocking, own[1]));
    assert_eq!(policy.for_tag(&tag("v2")), movable(24 * HOUR, Mode::Off, own[2]));
    assert_eq!(policy.for_tag(&tag("v1.0")), TagPolicy::Immutable(&policy.immutable_tags[0]));
    let rules_own = TagPolicy::Movable { window: 24 * HOUR, mode: Mode::Blocking, pattern: None };
    assert_eq!(policy.for_tag(&tag("edge")), rules_own);
}

#[test]
fn what_the_upstream_does_not_confirm_is_kept_dropped_or_refused_as_the_rule_says() {
    use {Remedy as R, Unconfirmed as U};
    let yesterday = Some(now() - TimeDelta::hours(24));
    let remedies = |policy: &Policy, at| [U::Deleted, U::Denied, U::Away].map(|why| policy.remedy(why, at, now()));
    let keeping = Policy::default();
    assert_eq!(remedies(&keeping, yesterday), [R::ServeStale; 3]);
    assert_eq!(remedies(&keeping, None), [R::ServeStale; 3]);

    let strict = Policy { when_deleted: WhenDeleted::Drop, when_denied: WhenDenied::Fail, ..Policy::default() };
    assert_eq!(remedies(&strict, yesterday), [R::Drop, R::Fail, R::ServeStale]);

    let max_stale = Duration::from_secs(24 * 3600);
    let limited = Policy { max_stale: Some(max_stale), ..Policy::default() };
    assert_eq!(remedies(&limited, yesterday), [R::ServeStale; 3], "just in time");
    let before = Some(now() - TimeDelta::hours(24) - TimeDelta::milliseconds(1));
    assert_eq!(remedies(&limited, before), [R::TooStale { max_stale }; 3]);
    assert_eq!(remedies(&limited, None), [R::TooStale { max_stale }; 3]);
    assert_eq!(remedies(&limited, Some(now() + TimeDelta::seconds(2))), [R::ServeStale; 3], "clocks differ a little");
    let both = Policy { max_stale: Some(max_stale), ..strict };
    assert_eq!(remedies(&both, before), [R::Drop, R::Fail, R::TooStale { max_stale }]);
}

#[test]
fn lengths_are_said_exactly() {
    for (seconds, text) in
        [(0, "0s"), (90, "90s"), (300, "5m"), (43_200, "12h"), (86_400, "24h"), (90_000, "25h"), (604_800, "7d")]
    {
        assert_eq!(exact(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn names_lead_back_to_what_they_name() {
    for mode in Mode::ALL {
        assert_eq!(Mode::from_name(mode.as_str()), Some(mode));
    }
    for when in WhenDeleted::ALL {
        assert_eq!(WhenDeleted::from_name(when.as_str()), Some(when));
    }
    for when in WhenDenied::ALL {
        assert_eq!(WhenDenied::from_name(when.as_str()), Some(when));
    }
    assert_eq!((Mode::from_name("off"), WhenDeleted::from_name(""), WhenDenied::from_name("DROP")), (None, None, None));
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![Just(Mode::Blocking), Just(Mode::Background), Just(Mode::Off)];
    let own = ("[ab*]{1,3}", proptest::option::of(0..100_u64), proptest::option::of(mode.clone()));
    let own = own.prop_map(|(pattern, window, mode)| TagWindow {
        pattern: pattern.parse().unwrap(),
        window: window.map(Duration::from_secs),
        mode,
    });
    let immutable = proptest::collection::vec("[ab*]{1,3}", 0..3);
    let parts = (0..100_u64, mode, immutable, proptest::option::of(0..200_u64), proptest::collection::vec(own, 0..4));
    parts.prop_map(|(window, mode, immutable, max_stale, tag_windows)| Policy {
        window: Duration::from_secs(window),
        mode,
        immutable_tags: immutable.iter().map(|text| text.parse().unwrap()).collect(),
        max_stale: max_stale.map(Duration::from_secs),
        tag_windows,
        ..Policy::default()
    })
}

proptest! {
    #[test]
    fn a_tag_only_gets_staler(policy in any_policy(), text in "[ab]{1,3}", age in 0..300_i64, more in 0..300_i64) {
        let rank = |age| match decide(&policy, &tag(&text), Some(now() - TimeDelta::seconds(age)), now()) {
            Decision::Serve => 0,
            Decision::ServeThenAsk => 1,
            Decision::AskThenServe => 2,
        };
        prop_assert!(rank(age) <= rank(age + more));
    }

    #[test]
    fn nothing_is_served_unconfirmed_beyond_the_limit(
        policy in any_policy(), text in "[ab]{1,3}", age in -300..300_i64,
    ) {
        let validated = Some(now() - TimeDelta::seconds(age));
        let decision = decide(&policy, &tag(&text), validated, now());
        let is_behind_limit = policy.max_stale.is_some_and(|limit| age.unsigned_abs() > limit.as_secs());
        if decision == Decision::ServeThenAsk {
            prop_assert!(!is_behind_limit);
        }
        let stale = policy.remedy(Unconfirmed::Away, validated, now()) == Remedy::ServeStale;
        prop_assert_eq!(stale, !is_behind_limit);
    }

    #[test]
    fn the_upstream_is_asked_exactly_when_a_movable_tag_is_older_than_its_window(
        policy in any_policy(), text in "[ab]{1,3}", age in 0..300_u64,
    ) {
        let validated = now() - Duration::from_secs(age);
        let asked = decide(&policy, &tag(&text), Some(validated), now()) != Decision::Serve;
        let expected = match policy.for_tag(&tag(&text)) {
            TagPolicy::Immutable(_) | TagPolicy::Movable { mode: Mode::Off, .. } => false,
            TagPolicy::Movable { window, .. } => age >= window.as_secs(),
        };
        prop_assert_eq!(asked, expected);
    }
}
