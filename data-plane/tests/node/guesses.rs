//! Somebody who guesses at a key locks out nobody else, and learns nothing from the answers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use entrepot_domain::Secret;
use entrepot_proto::node::v1 as pb;
use entrepot_test_support::{FakeUpstream, wait_until};
use entrepot_trust::access_key;
use futures_util::future::join_all;
use reqwest::Client;

use crate::fixture::{Fixture, Node};

/// How many addresses guess, and how often each: a thousand guesses.
const GUESSERS: (u8, usize) = (50, 20);
const OWNER: (&str, &str) = ("admin", "correct horse");

/// A node that knows a key whose secret was chosen.
async fn node(fixture: &Fixture, upstream: &FakeUpstream) -> Node {
    let hash = access_key::hash_chosen(&Secret::new(OWNER.1.to_owned())).await;
    let sealed_hash = fixture.cluster_key.seal(&format!("access-key/{}", OWNER.0), &hash.encode());
    let mut snapshot = fixture.snapshot(1, upstream);
    let key = pb::SnapshotAccessKey { key_id: OWNER.0.to_owned(), sealed_hash, minimum_reader: 0 };
    snapshot.principals[0].access_keys.push(key);
    fixture.publish_bytes(1, prost::Message::encode_to_vec(&snapshot)).await;
    let mut start = fixture.start("node-1");
    start.config.trusted_proxies = vec!["127.9.9.9/32".parse().unwrap()];
    let node = fixture.run(start).await;
    node.ready().await;
    node
}

/// A client at another address of this machine.
fn at(address: [u8; 4]) -> Client {
    let address = IpAddr::V4(Ipv4Addr::from(address));
    Client::builder().no_proxy().timeout(Duration::from_secs(60)).local_address(address).build().unwrap()
}

/// The status and the body of the answer to a login.
async fn log_in(client: &Client, url: &str, (id, secret): (&str, &str)) -> (u16, String) {
    let answer = client.get(url).basic_auth(id, Some(secret)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_guesses_from_fifty_addresses_keep_the_owner_from_nothing() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let node = node(&fixture, &upstream).await;
    let (base, token) = (format!("{}/v2/", node.url), format!("{}/token?scope=repository:demo/app:pull", node.url));
    let began = Instant::now();
    let (made, seen) = (AtomicUsize::new(0), [const { AtomicUsize::new(0) }; 3]);
    let guess = async |guesser: u8| {
        let client = at([127, 100 + guesser, 0, 1]);
        for number in 0..GUESSERS.1 {
            let (status, _) = log_in(&client, &base, (OWNER.0, &format!("guess {guesser} {number}"))).await;
            let which = [401, 429, 503].iter().position(|known| *known == status).unwrap();
            seen[which].fetch_add(1, Ordering::Relaxed);
            made.fetch_add(1, Ordering::Relaxed);
        }
    };
    let owner = async {
        let midway = usize::from(GUESSERS.0) * 3;
        wait_until(Duration::from_secs(60), "many have guessed", async || made.load(Ordering::Relaxed) > midway).await;
        let by_token = log_in(&at([127, 1, 2, 3]), &token, OWNER).await;
        (by_token, log_in(&at([127, 4, 5, 6]), &base, OWNER).await)
    };
    let ((by_token, by_password), _) = tokio::join!(owner, join_all((0..GUESSERS.0).map(guess)));
    assert_eq!((by_token.0, by_password.0), (200, 200), "{by_token:?} {by_password:?}");
    let seen = seen.map(AtomicUsize::into_inner);
    assert_eq!(seen.iter().sum::<usize>(), 1000);
    // However long it takes on this machine: ten attempts from each network are checked in each minute that has begun.
    let minutes = usize::try_from(began.elapsed().as_secs() / 60).unwrap() + 1;
    assert!(seen[0] <= usize::from(GUESSERS.0) * 10 * minutes, "401, 429, 503: {seen:?} in {minutes} minutes");
}

#[tokio::test]
async fn after_ten_guesses_a_network_waits_whether_somebody_has_the_key_or_not() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let node = node(&fixture, &upstream).await;
    let url = format!("{}/v2/", node.url);
    let guesses = async |id: &'static str, third: u8| {
        let mut answers = Vec::new();
        for number in 0..13 {
            let client = at([127, 50, third, number + 1]);
            answers.push(log_in(&client, &url, (id, &format!("guess {number}"))).await);
        }
        answers
    };
    let (known, unknown) = (guesses(OWNER.0, 1).await, guesses("nobody", 2).await);
    assert_eq!(known, unknown);
    let statuses: Vec<u16> = known.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [vec![401; 10], vec![429; 3]].concat());

    // A trusted proxy tells who the client is; others are ignored.
    let behind = async |from: [u8; 4], client: &str| {
        let request = at(from).get(&url).header("x-forwarded-for", client).basic_auth(OWNER.0, Some("guess"));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(behind([127, 9, 9, 9], "127.50.1.77").await, 429);
    assert_eq!(behind([127, 9, 9, 9], "203.0.113.7").await, 401);
    assert_eq!(behind([127, 50, 1, 77], "203.0.113.7").await, 429);
    assert_eq!(log_in(&at([127, 50, 3, 1]), &url, OWNER).await.0, 200);
    // Once it has logged in, its network no longer matters.
    assert_eq!(log_in(&at([127, 50, 1, 1]), &url, OWNER).await.0, 200);
}
