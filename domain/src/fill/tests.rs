use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SETTINGS: FillSettings = FillSettings { whole_bytes: 10, held_back_bytes: 5 };

fn leading() -> Fill {
    [Event::Absent, Event::Granted, Event::Absent].into_iter().fold(Fill::start(SETTINGS).0, |fill, e| fill.step(e).0)
}

/// The last effects of these events.
fn after(fill: Fill, events: &[Event]) -> (Fill, Vec<Effect>) {
    events.iter().fold((fill, Vec::new()), |(fill, _), event| fill.step(*event))
}

#[test]
fn a_leader_verifies_before_it_commits_and_lets_the_tail_go_after_that() {
    let (fill, effects) = after(leading(), &[Event::Sized(100), Event::Landed(98), Event::CommitLate]);
    assert_eq!((effects, fill.reach().until(0)), (vec![], 95));
    let (fill, effects) = fill.step(Event::Landed(2));
    assert_eq!(effects, [Effect::HangUp, Effect::StopAhead, Effect::Verify]);
    let (fill, effects) = fill.step(Event::Right);
    assert_eq!((effects, fill.reach().until(0)), (vec![Effect::Commit], 95));
    assert_eq!(fill.clone().step(Event::CommitLate).0.reach().until(0), 100);
    let (fill, effects) = fill.step(Event::Committed);
    assert_eq!((effects, fill.reach().until(0)), (vec![Effect::ReleaseLease], 100));
}

#[test]
fn small_content_is_let_go_whole_and_tried_twice() {
    let (fill, _) = after(leading(), &[Event::Sized(10), Event::Landed(10)]);
    assert_eq!(fill.reach().until(0), 0);
    let of_unknown_size = |bytes| after(leading(), &[Event::Landed(bytes)]).0.reach().until(0);
    assert_eq!((of_unknown_size(10), of_unknown_size(11)), (0, 6));
    let (fill, effects) = fill.step(Event::Wrong);
    assert_eq!(effects, [Effect::AbortUpload, Effect::ReleaseLease, Effect::Discard, Effect::Look]);
    let again = [Event::Absent, Event::Granted, Event::Absent, Event::Sized(10), Event::Landed(10), Event::Wrong];
    assert_eq!(after(fill, &again).0.phase(), Phase::Finished(Outcome::Failed));
    let seen = after(leading(), &[Event::Sized(100), Event::Landed(100), Event::Wrong]).0;
    assert_eq!(seen.phase(), Phase::Finished(Outcome::Failed));
}

#[test]
fn what_lands_ahead_is_hashed_in_its_turn_and_never_fetched_again() {
    let (fill, effects) = after(leading(), &[Event::Sized(100), Event::Landed(10), Event::Wanted(50)]);
    assert_eq!(effects, [Effect::FetchAhead(50..100)]);
    let (fill, effects) = after(fill, &[Event::AheadLanded(20), Event::Wanted(30), Event::Unwanted]);
    assert_eq!((effects, fill.reach().until(50), fill.room_bytes()), (vec![Effect::StopAhead], 70, 40));
    let (fill, effects) = after(fill, &[Event::Wanted(30)]);
    assert_eq!(effects, [Effect::FetchAhead(30..50)]);
    let (fill, effects) = after(fill, &[Event::AheadLanded(5), Event::Landed(20)]);
    assert_eq!(effects, [Effect::HangUp, Effect::Hash(30..35)]);
    let (fill, effects) = fill.step(Event::Hashed(5));
    assert_eq!(effects, [Effect::AdoptAhead]);
    let (fill, effects) = fill.step(Event::Landed(15));
    assert_eq!(effects, [Effect::HangUp, Effect::Hash(50..70)]);
    let (fill, effects) = fill.step(Event::Hashed(20));
    assert_eq!((effects, fill.landed_bytes()), (vec![Effect::Fetch(70)], 70));
}

#[test]
fn the_tail_is_not_fetched_ahead_nor_anything_of_unknown_size_or_of_an_upstream_without_parts() {
    for events in [
        vec![Event::Sized(100), Event::Wanted(95)],
        vec![Event::Landed(1), Event::Wanted(50)],
        vec![Event::Sized(10), Event::Wanted(5)],
        vec![Event::Sized(100), Event::Wanted(50), Event::AheadRefused, Event::Wanted(50)],
        vec![Event::Sized(100), Event::Wanted(50), Event::Wanted(70)],
    ] {
        assert_eq!(after(leading(), &events).1, [], "{events:?}");
    }
}

#[test]
fn a_leader_that_is_lost_is_followed_from_the_byte_that_has_landed() {
    let (fill, effects) = after(Fill::start(SETTINGS).0, &[Event::Absent, Event::Busy]);
    assert_eq!(effects, [Effect::Follow(0)]);
    let (fill, effects) = after(fill, &[Event::Sized(100), Event::Landed(40), Event::LeaderLost, Event::Absent]);
    assert_eq!(effects, [Effect::TakeOver]);
    let (fill, effects) = after(fill, &[Event::Granted, Event::Absent]);
    assert_eq!((effects, fill.reach().until(0)), (vec![Effect::BeginUpload, Effect::Fetch(40)], 40));
}

#[test]
fn a_follower_that_has_it_all_waits_until_it_is_stored_or_stores_it() {
    let following = after(Fill::start(SETTINGS).0, &[Event::Absent, Event::Busy]).0;
    let (fill, effects) = after(following, &[Event::Sized(100), Event::Landed(100)]);
    assert_eq!(effects, [Effect::Verify]);
    let (fill, effects) = fill.step(Event::Right);
    assert_eq!((fill.phase(), effects, fill.reach().until(0)), (Phase::Following, vec![], 95));
    let (stored, effects) = after(fill.clone(), &[Event::LeaderEnded, Event::Found]);
    assert_eq!((effects, stored.reach().until(0)), (vec![Effect::Link], 95));
    assert_eq!(stored.step(Event::Committed).0.outcome(), Some(Outcome::Stored));
    assert_eq!(fill.clone().step(Event::CommitLate).0.reach().until(0), 100);
    let lost = [Event::LeaderLost, Event::Absent, Event::Granted, Event::Absent];
    assert_eq!(after(fill, &lost).1, [Effect::BeginUpload, Effect::Commit]);
}

#[test]
fn what_the_store_has_of_a_fill_that_was_begun_elsewhere_is_linked_and_not_stored_again() {
    let lost = [Event::Absent, Event::Busy, Event::Sized(100), Event::Landed(40), Event::LeaderLost, Event::Found];
    let (fill, effects) = after(Fill::start(SETTINGS).0, &lost);
    assert_eq!(effects, [Effect::ReadStore(40)]);
    let (_, effects) = after(fill, &[Event::Sized(100), Event::Landed(60), Event::Right]);
    assert_eq!(effects, [Effect::Link]);
}

#[test]
fn what_was_found_in_the_store_and_gives_nothing_is_read_twice_and_not_for_ever() {
    let lost = [Event::Absent, Event::Busy, Event::Sized(100), Event::Landed(40), Event::LeaderLost, Event::Found];
    let fill = after(Fill::start(SETTINGS).0, &lost).0;
    let (fill, effects) = after(fill, &[Event::Sized(100), Event::Landed(10), Event::Ended]);
    assert_eq!(effects, [Effect::HangUp, Effect::Look]);
    let (fill, effects) = after(fill, &[Event::Found, Event::Sized(100), Event::Landed(10), Event::Broken]);
    assert_eq!(effects, [Effect::HangUp, Effect::Look]);
    let fill = after(fill, &[Event::Found, Event::Sized(100), Event::Ended]).0;
    assert_eq!(fill.phase(), Phase::Finished(Outcome::Failed));
}

/// Event sequences that lead to a request for bytes.
fn beginnings() -> impl Strategy<Value = Vec<Event>> {
    let following = vec![Event::Absent, Event::Busy, Event::Sized(50), Event::LeaderLost];
    prop_oneof![
        Just(Vec::new()),
        Just(vec![Event::Absent, Event::Granted, Event::Absent]),
        Just([following.clone(), vec![Event::Found]].concat()),
        Just([following, vec![Event::Absent, Event::Granted, Event::Absent]].concat()),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Found),
        Just(Event::Absent),
        Just(Event::Granted),
        Just(Event::Busy),
        Just(Event::LeaderLost),
        Just(Event::LeaderEnded),
        Just(Event::LeaderRejected),
        (0..60_u64).prop_map(Event::Sized),
        (0..30_u64).prop_map(Event::Landed),
        Just(Event::Ended),
        Just(Event::Broken),
        (0..60_u64).prop_map(Event::Wanted),
        (0..30_u64).prop_map(Event::AheadLanded),
        Just(Event::AheadEnded),
        (0..30_u64).prop_map(Event::Hashed),
        Just(Event::Right),
        Just(Event::Wrong),
        Just(Event::CommitLate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// A request whose end the driver never hears of would be polled for ever.
    #[test]
    fn no_request_for_bytes_is_left_behind(first in beginnings(), events in vec(events(), 1..20)) {
        let (mut fill, effects) = Fill::start(SETTINGS);
        let mut has_body = false;
        let mut follow = |effects: &[Effect]| {
            for effect in effects {
                if matches!(effect, Effect::Fetch(_) | Effect::ReadStore(_) | Effect::AdoptAhead) {
                    has_body = true;
                } else if matches!(effect, Effect::HangUp | Effect::Discard) {
                    has_body = false;
                }
            }
            has_body
        };
        follow(&effects);
        for event in first.into_iter().chain(events) {
            let (next, effects) = fill.step(event);
            fill = next;
            let is_heard = matches!(fill.phase(), Phase::Leading | Phase::Reading);
            prop_assert!(!follow(&effects) || is_heard, "{:?} in {:?}", event, fill.phase());
        }
    }
}

#[test]
fn a_node_that_stops_hands_over_or_goes_on_for_its_readers() {
    let sized = || after(leading(), &[Event::Sized(1 << 30), Event::Landed(1)]).0;
    let draining = |readers, followers| sized().step(Event::Draining { readers, followers }).0.phase();
    assert_eq!(draining(true, true), Phase::Leading);
    assert_eq!(draining(false, true), Phase::Finished(Outcome::HandedOver));
    assert_eq!(draining(false, false), Phase::Finished(Outcome::Abandoned));
}

#[test]
fn a_quarter_landed_or_little_left_is_worth_finishing() {
    const MIB: u64 = 1024 * 1024;
    for (landed, size, expected) in [
        (0, Some(64 * MIB), true),
        (0, Some(64 * MIB + 1), false),
        (1, Some(64 * MIB + 1), true),
        (249 * MIB, Some(1000 * MIB), false),
        (250 * MIB, Some(1000 * MIB), true),
        (0, Some(0), true),
        (u64::MAX, Some(1), true),
        (1000 * MIB, None, false),
    ] {
        assert_eq!(is_worth_finishing(landed, size), expected, "{landed} of {size:?}");
    }
}

#[test]
fn a_fill_may_take_as_long_as_its_size_warrants() {
    const GIB: u64 = 1024 * 1024 * 1024;
    let minutes = |size| longest(size).as_secs() / 60;
    assert_eq!([Some(0), Some(GIB), Some(100 * GIB), None].map(minutes), [15, 68, 360, 360]);
}

#[test]
fn parallel_chunks_wait_and_a_reader_far_ahead_does_not() {
    const MIB: u64 = 1024 * 1024;
    assert!(!is_worth_fetching_ahead(64 * MIB, Duration::ZERO));
    assert!(is_worth_fetching_ahead(97 * MIB, Duration::ZERO));
    assert!(is_worth_fetching_ahead(9 * MIB, AHEAD_WAIT));
    assert!(!is_worth_fetching_ahead(8 * MIB, Duration::from_secs(60)));
}
