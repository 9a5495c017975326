#![expect(clippy::wildcard_enum_match_arm, reason = "a table names what is special")]

use super::*;

const NOW: Duration = Duration::ZERO;
const RENEWAL: Duration = Duration::from_mins(15);
const ALL: [Claimer; 6] =
    [Claimer::Fill, Claimer::Push, Claimer::Mount, Claimer::Head, Claimer::Manifest, Claimer::Named];

fn live(claimed_ago: Duration) -> Pointer<u8> {
    Pointer::Live { object: 1, claimed_ago }
}

fn own(begun_ago: Duration) -> Option<Own<u8>> {
    Some(Own { object: 2, begun_ago, named: Named::No })
}

#[test]
fn a_live_pointer_is_used_and_its_claim_renewed_after_a_quarter_of_the_push_time() {
    let late = RENEWAL + Duration::from_millis(1);
    for claimer in ALL {
        assert_eq!(look(&live(RENEWAL), claimer, None, PUSH_TIME), Look::Use(1));
        assert_eq!(look_again(&live(RENEWAL), 1, claimer, PUSH_TIME), Second::Done);
        let (first, second) = match claimer {
            Claimer::Named => (Look::Use(1), Second::Done),
            _ => (Look::Write(Change::Live(1)), Second::Write(Change::Live(1))),
        };
        assert_eq!(look(&live(late), claimer, None, PUSH_TIME), first, "{claimer:?}");
        assert_eq!(look_again(&live(late), 1, claimer, PUSH_TIME), second, "{claimer:?}");
    }
}

#[test]
fn whoever_claims_what_is_condemned_makes_it_live_again() {
    for claimer in ALL {
        let condemned = Pointer::Condemned { object: 1 };
        assert_eq!(look(&condemned, claimer, own(NOW), PUSH_TIME), Look::Write(Change::Live(1)));
        assert_eq!(look_again(&condemned, 1, claimer, PUSH_TIME), Second::Write(Change::Live(1)));
    }
}

#[test]
fn what_is_gone_is_stored_anew_by_who_has_the_bytes() {
    for gone in [Pointer::Absent, Pointer::Erased { object: Some(1) }, Pointer::Erased { object: None }] {
        for claimer in ALL {
            let without = match claimer {
                Claimer::Push | Claimer::Manifest => Look::Store,
                _ => Look::Missing,
            };
            assert_eq!(look(&gone, claimer, None, PUSH_TIME), without, "{claimer:?}");
            assert_eq!(look(&gone, claimer, own(NOW), PUSH_TIME), Look::Write(Change::Live(2)));
            assert_eq!(look_again(&gone, 1, claimer, PUSH_TIME), Second::Again);
        }
    }
}

#[test]
fn content_older_than_a_day_gets_no_pointer() {
    let young = POINTABLE_TIME - Duration::from_millis(1);
    assert_eq!(look(&Pointer::Absent, Claimer::Push, own(young), PUSH_TIME), Look::Write(Change::Live(2)));
    assert_eq!(look(&Pointer::Absent, Claimer::Push, own(POINTABLE_TIME), PUSH_TIME), Look::Store);
    assert_eq!(look(&Pointer::Absent, Claimer::Fill, own(POINTABLE_TIME), PUSH_TIME), Look::Store);
}

#[test]
fn a_damaged_pointer_is_mended_by_bytes_only() {
    assert_eq!(look(&Pointer::Unreadable, Claimer::Push, own(NOW), PUSH_TIME), Look::Write(Change::Live(2)));
    assert_eq!(look::<u8>(&Pointer::Unreadable, Claimer::Push, None, PUSH_TIME), Look::Store);
    for claimer in [Claimer::Mount, Claimer::Head, Claimer::Named] {
        assert_eq!(look::<u8>(&Pointer::Unreadable, claimer, None, PUSH_TIME), Look::Refuse);
    }
    assert_eq!(look_again(&Pointer::Unreadable, 1, Claimer::Push, PUSH_TIME), Second::Again);
}

#[test]
fn another_object_at_the_second_look_begins_again() {
    for pointer in [live(NOW), Pointer::Condemned { object: 1 }] {
        assert_eq!(look_again(&pointer, 2, Claimer::Push, PUSH_TIME), Second::Again);
    }
}

#[test]
fn what_the_store_has_lost_is_erased_and_never_condemned() {
    assert_eq!(mend(&live(NOW), 1), Some(Change::Erased(Some(1))));
    assert_eq!(mend(&live(NOW), 2), None, "another object has come in its place");
    assert_eq!(mend(&Pointer::Absent, 2), None);
}

#[test]
fn content_that_a_pointer_may_have_named_is_never_named_again() {
    let own = |named| Some(Own { object: 2, begun_ago: NOW, named });
    for gone in [Pointer::Absent, Pointer::Erased { object: Some(2) }, Pointer::Unreadable] {
        for claimer in [Claimer::Fill, Claimer::Push] {
            for named in [Named::No, Named::NotYet] {
                assert_eq!(look(&gone, claimer, own(named), PUSH_TIME), Look::Write(Change::Live(2)));
            }
            assert_eq!(look(&gone, claimer, own(Named::Perhaps), PUSH_TIME), Look::Store);
        }
    }
}

#[test]
fn own_content_is_dropped_only_when_the_pointer_shows_another_and_no_write_is_in_doubt() {
    let own = |object, named| Own { object, begun_ago: NOW, named };
    let ours = own(2, Named::No);
    assert!(may_drop(&ours, &live(NOW)));
    assert!(may_drop(&ours, &Pointer::Condemned { object: 1 }));
    assert!(!may_drop(&own(2, Named::NotYet), &live(NOW)));
    assert!(!may_drop(&own(2, Named::Perhaps), &live(NOW)));
    assert!(!may_drop(&own(1, Named::No), &live(NOW)));
    for pointer in [Pointer::Absent, Pointer::Erased { object: Some(1) }, Pointer::Unreadable] {
        assert!(!may_drop(&ours, &pointer));
    }
}

#[test]
fn a_commit_takes_back_its_own_link_alone_and_fences_what_may_still_arrive() {
    for stood in [false, true] {
        assert_eq!(look_again_at_link(OwnLink::Ours, stood), SecondLink::Done);
        assert_eq!(look_again_at_link(OwnLink::Gone, stood), SecondLink::Again);
    }
    assert_eq!(look_again_at_link(OwnLink::Others, false), SecondLink::LookOnceMore);
    assert_eq!(look_again_at_link(OwnLink::Others, true), SecondLink::Done);
    for any_unknown in [false, true] {
        assert_eq!(give_up(OwnLink::Ours, any_unknown), GiveUp::Tombstone);
    }
    for link in [OwnLink::Others, OwnLink::Gone] {
        assert_eq!(give_up(link, false), GiveUp::Answer);
        assert_eq!(give_up(link, true), GiveUp::Fence);
    }
}
