//! For how long a node believes what it has read.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_node_holds_once_others_know_it_and_stops_when_its_record_is_old() {
    let world = World::new(Hold::announced_for(|| HOLD));
    let time = || {
        let now = world.memory.now();
        world.memory.0.hold.lock().time_at(now)
    };
    let announce = || world.memory.announced(world.memory.now(), HOLD);
    for _ in 0..3 {
        assert_eq!(time(), Duration::ZERO);
        announce();
        world.pass(Duration::from_secs(10)).await;
    }
    assert_eq!(time(), HOLD, "30 s after the first record");
    world.pass(Duration::from_secs(9)).await;
    assert_eq!(time(), HOLD);
    world.pass(Duration::from_secs(1)).await;
    assert_eq!(time(), Duration::ZERO, "the last record was begun 20 s ago");
    announce();
    assert_eq!(time(), Duration::ZERO, "others may have taken it for dead");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_finds_another_under_its_id_holds_nothing_until_it_has_been_alone_for_so_long() {
    let world = World::new(Hold::announced_for(|| HOLD));
    let time = || {
        let now = world.memory.now();
        world.memory.0.hold.lock().time_at(now)
    };
    let pass_alone = async || {
        for _ in 0..3 {
            assert_eq!(time(), Duration::ZERO);
            world.memory.announced(world.memory.now(), HOLD);
            world.pass(Duration::from_secs(10)).await;
        }
        assert_eq!(time(), HOLD);
    };
    pass_alone().await;
    world.memory.doubled();
    pass_alone().await;
}

#[tokio::test(start_paused = true)]
async fn a_longer_hold_time_is_used_once_others_know_it_and_a_shorter_one_at_once() {
    let wanted = Arc::new(Mutex::new(HOLD));
    let own = wanted.clone();
    let world = World::new(Hold::announced_for(move || *own.lock()));
    let time = || {
        let now = world.memory.now();
        world.memory.0.hold.lock().time_at(now)
    };
    let announce = || world.memory.announced(world.memory.now(), world.memory.hold_to_announce());
    for _ in 0..4 {
        announce();
        world.pass(Duration::from_secs(10)).await;
    }
    assert_eq!(time(), HOLD);
    *wanted.lock() = Duration::from_secs(20);
    assert_eq!(time(), HOLD);
    for _ in 0..3 {
        announce();
        assert_eq!(time(), HOLD, "not all may know of it yet");
        world.pass(Duration::from_secs(10)).await;
    }
    announce();
    assert_eq!(time(), Duration::from_secs(20));
    *wanted.lock() = Duration::from_secs(1);
    assert_eq!(time(), Duration::from_secs(1));
}

#[test]
fn a_node_that_others_do_not_reach_never_holds() {
    let mut hold = Hold::never();
    let now = Moment::now(&Clock::system());
    hold.announced(now, now, HOLD);
    assert_eq!((hold.wanted(), hold.time_at(now)), (Duration::ZERO, Duration::ZERO));
}
