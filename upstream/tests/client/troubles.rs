//! Upstreams that are slow, away, or throttling.

use std::time::{Duration, Instant};

use entrepot_test_support::images::random_bytes;
use entrepot_test_support::{Auth, FakeUpstream, Fault, wait_until};
use entrepot_upstream::{Client, Error, Limits, State, Trouble};
use futures_util::StreamExt as _;

use crate::{REGISTRY, client_of, digest, name, read_blob, reference, short, upstream_at};

fn hasty(fake: &FakeUpstream) -> Client {
    Client::new(&upstream_at(&fake.url()), REGISTRY, short()).expect("a client")
}

async fn pull(client: &Client) -> Result<(), Error> {
    client.manifest(&name("demo"), &reference("v1")).await.map(|_| ())
}

#[tokio::test]
async fn r_up_11_passing_troubles_are_tried_again_twice() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    for status in [408, 500, 502, 503, 504] {
        fake.script_times("GET ", Fault::Status(status, None), 2);
        pull(&client).await.unwrap();
    }
    fake.script_times("GET ", Fault::HangUp, 2);
    pull(&client).await.unwrap();
    fake.script_times("GET ", Fault::CutAfter(10), 2);
    pull(&client).await.unwrap();
    let asked = fake.request_count();
    fake.script("GET ", Fault::Status(503, None));
    let away = pull(&client).await.unwrap_err();
    assert!(matches!(away, Error::Away { status: Some(503), trouble: Trouble::Status, .. }), "{away:?}");
    assert!(away.may_retry());
    assert_eq!(fake.request_count() - asked, 3);
}

#[tokio::test]
async fn r_up_11_what_will_not_pass_is_not_tried_again() {
    let fake = FakeUpstream::start().await;
    let client = client_of(&fake);
    for status in [400, 403, 404, 418, 429] {
        fake.script_times("GET ", Fault::Status(status, None), 1);
        let asked = fake.request_count();
        let error = pull(&client).await.unwrap_err();
        assert_eq!(fake.request_count() - asked, 1, "{status}");
        match status {
            403 => assert!(matches!(error, Error::Denied { status: 403, .. }), "{error:?}"),
            404 => assert!(matches!(error, Error::NotFound), "{error:?}"),
            429 => assert!(matches!(error, Error::Throttled { retry_after: None }), "{error:?}"),
            _ => assert!(matches!(error, Error::BadAnswer { .. }), "{error:?}"),
        }
    }
    for (said, meant) in [("7", 7), ("86400", 3600)] {
        fake.script_times("GET ", Fault::Status(429, Some(said.into())), 1);
        let Err(Error::Throttled { retry_after }) = pull(&client_of(&fake)).await else { panic!("not throttled") };
        assert_eq!(retry_after, Some(Duration::from_secs(meant)));
    }
}

#[tokio::test]
async fn an_upstream_that_wants_no_requests_for_a_while_gets_none() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let limits = Limits { pause: Duration::from_secs(2), ..Limits::default() };
    let client = Client::new(&upstream_at(&fake.url()), REGISTRY, limits).expect("a client");
    fake.script_times("GET ", Fault::Status(429, Some("60".into())), 1);
    pull(&client).await.unwrap_err();
    let asked = fake.request_count();
    let Err(Error::Throttled { retry_after: Some(left) }) = pull(&client).await else { panic!("not throttled") };
    assert!(left <= limits.pause, "{left:?}");
    assert_eq!(fake.request_count(), asked);
    // Another login is not affected.
    pull(&client_of(&fake)).await.unwrap();
    wait_until(Duration::from_secs(10), "it is asked again", async || pull(&client).await.is_ok()).await;
}

#[tokio::test]
async fn one_request_finds_out_whether_an_upstream_is_back_however_many_wait() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    for trouble in [Fault::Status(429, Some("60".into())), Fault::Status(429, None), Fault::Status(503, None)] {
        let pause = Duration::from_secs(2);
        let limits = Limits { pause, probe: pause, retry_wait: Duration::from_millis(1), ..Limits::default() };
        let client = Client::new(&upstream_at(&fake.url()), REGISTRY, limits).expect("a client");
        fake.script("GET ", trouble.clone());
        while client.health().state == State::Healthy {
            pull(&client).await.unwrap_err();
        }
        let asked = fake.request_count();
        pull(&client).await.unwrap_err();
        assert_eq!(fake.request_count(), asked, "{trouble:?}: nobody asks before the time");
        let gate = fake.hold("GET ");
        let probing = async {
            // All requests before that time are refused at once; the first one after it probes.
            while fake.request_count() == asked {
                if let Err(Error::NotFound) = pull(&client).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let others = async {
            gate.until_waiting(1).await;
            for _ in 0..20 {
                pull(&client).await.unwrap_err();
            }
            assert_eq!(fake.request_count() - asked, 1, "{trouble:?}: one finds out");
            assert!(!matches!(client.health().state, State::Healthy));
            gate.release();
        };
        Box::pin(futures_util::future::join(probing, others)).await;
        assert_eq!(fake.request_count() - asked, 1, "{trouble:?}: and asks once");
        fake.heal();
        wait_until(Duration::from_secs(10), "it is asked again", async || pull(&client).await.is_ok()).await;
        assert_eq!(client.health().state, State::Healthy);
    }
}

#[tokio::test]
async fn every_wait_ends() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    fake.publish_image("demo", "v1", &[]);
    let blob = fake.publish_blob("demo", random_bytes(1, 500_000));
    let client = hasty(&fake);
    let slow = Fault::Rate(20);
    let faults = [
        ("/token", Fault::Silence),
        ("/token", Fault::StallAfter(10)),
        ("/manifests/", Fault::Silence),
        ("/manifests/", Fault::StallAfter(10)),
        ("/manifests/", slow),
    ];
    for (place, fault) in faults {
        fake.script(place, fault.clone());
        let since = Instant::now();
        let away = pull(&client).await.unwrap_err();
        fake.heal();
        assert!(matches!(away, Error::Away { trouble: Trouble::TimedOut, .. }), "{fault:?}: {away:?}");
        assert!(since.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", since.elapsed());
    }
    fake.script("/blobs/", Fault::StallAfter(0));
    let stalled = read_blob(&client, "demo", &blob).await.unwrap_err();
    assert!(matches!(stalled, Error::Away { trouble: Trouble::TimedOut, .. }), "{stalled:?}");
}

#[tokio::test]
async fn a_slow_body_that_moves_is_waited_for() {
    let fake = FakeUpstream::start().await;
    let blob = fake.publish_blob("demo", random_bytes(2, 30_000));
    fake.script("/blobs/", Fault::Rate(40_000));
    let since = Instant::now();
    assert_eq!(read_blob(&hasty(&fake), "demo", &blob).await.unwrap(), random_bytes(2, 30_000));
    assert!(since.elapsed() > short().stall, "it took longer than any one wait may");
}

#[tokio::test]
async fn a_blob_that_breaks_off_or_stalls_is_gone_on_with() {
    let fake = FakeUpstream::start().await;
    let bytes = random_bytes(3, 500_000);
    let blob = fake.publish_blob("demo", bytes.clone());
    for (fault, client) in [(Fault::CutAfter(150_000), client_of(&fake)), (Fault::StallAfter(150_000), hasty(&fake))] {
        let asked = fake.request_count();
        // Five times, including the first one; the rest is less than that.
        fake.script_times("/blobs/", fault, 5);
        assert_eq!(read_blob(&client, "demo", &blob).await.unwrap(), bytes);
        fake.heal();
        assert_eq!(fake.request_count() - asked, 4, "each asks for what is missing and no more");
    }
    // A body without a length that breaks off at its very end.
    fake.script_times("/blobs/", Fault::NoLength, 1);
    fake.script_times("/blobs/", Fault::CutAfter(500_000), 1);
    assert_eq!(read_blob(&client_of(&fake), "demo", &blob).await.unwrap(), bytes);
    // A host that does not support ranges sends everything again, and the part that was read is skipped.
    fake.script_times("/blobs/", Fault::CutAfter(400_000), 3);
    fake.script("/blobs/", Fault::NoRanges);
    assert_eq!(read_blob(&client_of(&fake), "demo", &blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_blob_is_gone_on_with_under_another_token() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    let bytes = random_bytes(4, 500_000);
    let blob = fake.publish_blob("demo", bytes.clone());
    // The first request learns where tokens come from.
    fake.script_times("/blobs/", Fault::CutAfter(150_000), 2);
    let mut body = client_of(&fake).blob(&name("demo"), &blob.parse().expect("a digest")).await.unwrap();
    let mut read = body.stream.next().await.expect("it has begun").unwrap().to_vec();
    fake.revoke_tokens();
    while let Some(chunk) = body.stream.next().await {
        read.extend_from_slice(&chunk.unwrap());
    }
    assert!(read == bytes, "{} bytes", read.len());
    assert_eq!(fake.token_requests(), 2);
}

#[tokio::test]
async fn a_blob_that_does_not_get_on_ends_with_an_error() {
    let fake = FakeUpstream::start().await;
    let blob = fake.publish_blob("demo", random_bytes(3, 500_000));
    for chunked in [false, true] {
        fake.script("/blobs/", Fault::CutAfter(0));
        if chunked {
            fake.script("/blobs/", Fault::NoLength);
        }
        let asked = fake.request_count();
        let broken = read_blob(&client_of(&fake), "demo", &blob).await.unwrap_err();
        assert!(matches!(broken, Error::Away { trouble: Trouble::BrokenOff, .. }), "{broken:?}");
        assert_eq!(fake.request_count() - asked, 9);
        fake.heal();
    }
}

#[tokio::test]
async fn a_range_that_is_not_served_as_asked_has_the_blob_begun_anew() {
    let fake = FakeUpstream::start().await;
    let bytes = random_bytes(3, 500_000);
    let blob = fake.publish_blob("demo", bytes.clone());
    let header = |name: &str, value: &str| Fault::Header(name.to_owned(), value.to_owned());
    let odd = [
        vec![Fault::Status(416, None)],
        vec![Fault::Status(400, None)],
        vec![Fault::Status(403, None)],
        vec![header("content-range", "bytes 0-499999/500000")],
        vec![header("content-range", "bytes 100001-499999/500000")],
        vec![header("content-range", "bytes 100000-499999/500001")],
        vec![header("content-range", "nonsense")],
        vec![header("content-encoding", "gzip")],
        vec![Fault::NoRanges],
    ];
    for faults in odd {
        for length in [None, Some(Fault::NoLength)] {
            if length.is_some() && matches!(&faults[..], [Fault::Header(_, range)] if range.ends_with("/500001")) {
                // The size is not known, so nobody can tell.
                continue;
            }
            let asked = fake.request_count();
            fake.script_times("/blobs/", Fault::CutAfter(100_000), 1);
            if let Some(fault) = &length {
                fake.script_times("/blobs/", fault.clone(), 1);
            }
            let gate = fake.hold("/blobs/");
            let client = client_of(&fake);
            let playing = async {
                gate.until_waiting(1).await;
                for fault in &faults {
                    fake.script_times("/blobs/", fault.clone(), 1);
                }
                gate.release();
            };
            let (read, ()) = futures_util::future::join(read_blob(&client, "demo", &blob), playing).await;
            fake.heal();
            assert!(read.is_ok_and(|read| read == bytes), "{faults:?}");
            let ranges: Vec<_> = fake.log()[asked..].iter().map(|entry| entry.headers.get("range").cloned()).collect();
            let is_whole = matches!(faults[..], [Fault::NoRanges]);
            assert_eq!(ranges.len(), if is_whole { 2 } else { 3 }, "{faults:?}");
            assert_eq!(ranges.iter().filter(|range| range.is_some()).count(), 1, "{faults:?}: once, and not again");
            let range = ranges[1].as_ref().unwrap().to_str().unwrap();
            assert_eq!(
                range.ends_with("-499999"),
                length.is_none(),
                "{range}: it ends where the blob does, if that is known"
            );
        }
    }
}

#[tokio::test]
async fn a_blob_that_is_another_by_now_has_broken_off_and_is_no_bad_one() {
    let fake = FakeUpstream::start().await;
    let blob = fake.publish_blob("demo", random_bytes(3, 500_000));
    for odd in [Fault::Body(vec![1; 400_000]), Fault::Status(206, None), Fault::Status(418, None)] {
        fake.script_times("/blobs/", Fault::CutAfter(100_000), 1);
        let gate = fake.hold("/blobs/");
        let client = client_of(&fake);
        let playing = async {
            gate.until_waiting(1).await;
            fake.script("/blobs/", Fault::NoRanges);
            fake.script("/blobs/", odd.clone());
            gate.release();
        };
        let (read, ()) = futures_util::future::join(read_blob(&client, "demo", &blob), playing).await;
        fake.heal();
        let error = read.unwrap_err();
        assert!(matches!(error, Error::Away { trouble: Trouble::BrokenOff, .. }), "{odd:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_part_that_is_not_served_as_asked_is_none() {
    let fake = FakeUpstream::start().await;
    let blob = fake.publish_blob("demo", random_bytes(3, 500_000));
    for odd in [
        Fault::Status(416, None),
        Fault::Status(400, None),
        Fault::NoRanges,
        Fault::Header("content-range".into(), "bytes 0-499999/500000".into()),
    ] {
        fake.script_times("/blobs/", odd.clone(), 1);
        let part = client_of(&fake).blob_part(&name("demo"), &digest(&blob), 100_000..200_000).await;
        assert!(matches!(part, Ok(None)), "{odd:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_was_away_is_used_again_when_it_is_back() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    pull(&client).await.unwrap();
    fake.stop().await;
    let away = pull(&client).await.unwrap_err();
    assert!(matches!(away, Error::Away { status: None, .. }), "{away:?}");
    fake.resume().await;
    pull(&client).await.unwrap();
}

#[tokio::test]
async fn a_hundred_pulls_in_a_row_share_one_connection() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    let image = fake.publish_image("demo", "v1", &[random_bytes(4, 200_000)]);
    let client = client_of(&fake);
    for _ in 0..50 {
        pull(&client).await.unwrap();
        read_blob(&client, "demo", &image.layers[0]).await.unwrap();
    }
    assert_eq!(fake.connections(), 1);
}
