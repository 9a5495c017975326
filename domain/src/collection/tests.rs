use super::*;
use crate::claim::PUSH_TIME;

const UNCLAIMED: Duration = Duration::from_mins(75);
const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn only_what_was_not_claimed_for_the_push_time_and_a_quarter_is_condemned_and_only_unnamed() {
    let live = |claimed_ago| Pointer::Live { object: 1, claimed_ago };
    assert_eq!(examine(&live(UNCLAIMED - MOMENT), PUSH_TIME), Candidate::Leave);
    assert_eq!(examine(&live(UNCLAIMED), PUSH_TIME), Candidate::Condemn(1));
    assert_eq!(condemn(1, Naming::Named), None);
    assert_eq!(condemn(1, Naming::Unnamed), Some(Change::Condemned(1)));
}

#[test]
fn a_promise_outlasts_the_wait_of_a_collector() {
    // A claim that is not renewed was made at most a quarter of the push time ago.
    assert!(unclaimed_time(PUSH_TIME) >= PUSH_TIME + renewal_time(PUSH_TIME));
    assert_eq!(unclaimed_time(Duration::MAX), Duration::MAX);
}

#[test]
fn collectors_go_on_where_another_has_stopped_and_leave_damage_alone() {
    assert_eq!(examine(&Pointer::Condemned { object: 1 }, PUSH_TIME), Candidate::Compare(1));
    assert_eq!(examine(&Pointer::Erased { object: Some(1) }, PUSH_TIME), Candidate::Delete(1));
    for pointer in [Pointer::Absent, Pointer::Erased { object: None }, Pointer::<u8>::Unreadable] {
        assert_eq!(examine(&pointer, PUSH_TIME), Candidate::Leave);
    }
}

#[test]
fn nothing_is_erased_without_a_whole_comparison_and_all_events() {
    let evidence = Evidence { comparison: Comparison::Ended, events_applied: true, naming: Naming::Unnamed };
    assert_eq!(judge(1, &evidence), Verdict::Write(Change::Erased(Some(1))));
    assert_eq!(judge(1, &Evidence { naming: Naming::Named, ..evidence }), Verdict::Write(Change::Live(1)));
    assert_eq!(judge(1, &Evidence { events_applied: false, ..evidence }), Verdict::Stop);
    assert_eq!(judge(1, &Evidence { comparison: Comparison::NotEnded, ..evidence }), Verdict::StartAgain);
}

#[test]
fn only_old_erased_pointers_without_content_are_removed() {
    let erased = Pointer::Erased { object: Some(1) };
    assert!(may_remove(&erased, false, REMOVAL_AGE));
    assert!(!may_remove(&erased, true, REMOVAL_AGE));
    assert!(!may_remove(&erased, false, REMOVAL_AGE - MOMENT));
    assert!(!may_remove(&Pointer::Condemned { object: 1 }, false, REMOVAL_AGE));
}

#[test]
fn the_sweep_spares_what_is_young_named_in_a_session_or_in_doubt() {
    let live = Pointer::Live { object: 1, claimed_ago: Duration::ZERO };
    assert_eq!(sweep(2, SWEEP_AGE, &live, false), Sweep::Fence(Change::Rewritten));
    assert_eq!(sweep(2, SWEEP_AGE, &Pointer::Absent, false), Sweep::Fence(Change::Erased(None)));
    assert_eq!(sweep(2, SWEEP_AGE - MOMENT, &live, false), Sweep::Spare);
    assert_eq!(sweep(2, SWEEP_AGE, &live, true), Sweep::Spare);
    for pointer in [live, Pointer::Condemned { object: 1 }, Pointer::Erased { object: Some(1) }, Pointer::Unreadable] {
        assert_eq!(sweep(1, SWEEP_AGE, &pointer, false), Sweep::Spare);
        assert!(!may_delete(1, &pointer));
    }
    assert!(may_delete(2, &live));
}
