//! Others may write into Redis. What stands there is a hint, and may be anything.

use entrepot_test_support::images;

use crate::fixture::Fixture;
use crate::ok;

/// What somebody puts in the place of a lease: a command, with `KEY` for what the lease is called.
const FOREIGN: [&[&str]; 10] = [
    &["SET", "KEY", "hello world\r\n$-1\r\n"],
    &["SET", "KEY", ""],
    &["SET", "KEY", "node-9.of.none"],
    &["SET", "KEY", "node-1.of-an-earlier.life"],
    &["SET", "KEY", "node-2.of-an-earlier.life"],
    &["SET", "KEY", "../../etc.passwd.1"],
    &["SETRANGE", "KEY", "50000000", "x"],
    &["RPUSH", "KEY", "a", "list"],
    &["HSET", "KEY", "a", "hash"],
    &["XADD", "KEY", "*", "a", "stream"],
];

#[tokio::test]
async fn whatever_others_put_in_the_place_of_leases_pulls_are_right() {
    let fixture = Fixture::new().await;
    let (one, two) = fixture.two().await;
    let known = fixture.upstream.publish_blob("app", images::random_bytes(0, 1000));
    let gate = fixture.upstream.hold(format!("GET /v2/app/blobs/{known}"));
    let pull = one.get(&format!("app/blobs/{known}"));
    gate.until_waiting(1).await;
    let leases = fixture.redis.dump().await;
    gate.release();
    assert_eq!(pull.await.unwrap(), ok(&known));
    let (origin, _) = leases.split_once('{').expect("a lease is called after its origin and its digest");

    for (seed, foreign) in (1..).zip(FOREIGN) {
        let digest = fixture.upstream.publish_blob("app", images::random_bytes(seed, 2 << 20));
        let key = format!("{origin}{{{digest}}}");
        let command: Vec<&str> = foreign.iter().map(|word| if *word == "KEY" { key.as_str() } else { word }).collect();
        fixture.redis.command(&command).await;
        for node in [&one, &two] {
            assert_eq!(node.get(&format!("app/blobs/{digest}")).await.unwrap(), ok(&digest), "{foreign:?}");
        }
        assert_eq!(fixture.upstream.fetches_of(&digest), 1, "what one has stored the other one finds: {foreign:?}");
    }
}
