//! Nodes that ask each other who they are.

use std::sync::Arc;
use std::time::Duration;

use entrepot_runtime::tls::Alpn;
use entrepot_runtime::{Listener, Tls};
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{FakeUpstream, wait_until};

use crate::fixture::{Fixture, LIMIT, Node, Start};

fn listening(fixture: &Fixture, id: &str, tls: Option<Arc<Tls>>) -> Start {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "a test", tls).unwrap();
    let mut start = fixture.start(id);
    let address = format!("{scheme}://{}", listener.local_addr().unwrap());
    start.config.peer_address = Some(address.parse().unwrap());
    start.peer = Some(listener);
    start
}

fn reachable(node: &Node, reachable: bool) -> f64 {
    node.metric("entrepot_peers", &[&format!("reachable=\"{reachable}\"")])
}

#[tokio::test]
async fn nodes_that_live_are_asked_whether_they_can_be_reached() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream).await;
    let mut nowhere = fixture.made_up("nowhere", Duration::ZERO);
    nowhere.peer_address = Some("http://127.0.0.1:1".to_owned());
    fixture.put_record("nowhere", &nowhere, &fixture.cluster_key).await;
    let other = fixture.run(listening(&fixture, "node-2", None)).await;
    other.ready().await;
    // It claims to be at the other node's address.
    let mut impostor = fixture.made_up("impostor", Duration::ZERO);
    impostor.peer_address = fixture.record("node-2").await.unwrap().peer_address;
    fixture.put_record("impostor", &impostor, &fixture.cluster_key).await;

    let node = fixture.run(listening(&fixture, "node-1", None)).await;
    wait_until(LIMIT, "one is reached and two are not", async || {
        (reachable(&node, true), reachable(&node, false)) == (1.0, 2.0)
    })
    .await;
    assert_eq!(node.metric("entrepot_nodes", &[]), 4.0);
    other.tasks.drain(LIMIT).await;
    wait_until(LIMIT, "one that has ended is no peer", async || reachable(&node, true) == 0.0).await;
}

#[tokio::test]
async fn nodes_speak_tls_to_each_other_and_check_who_answers() {
    let (upstream, fixture, authority) = (FakeUpstream::start().await, Fixture::new(), Authority::new());
    fixture.publish(1, &upstream).await;
    let tls = || Some(crate::edge::tls(&fixture, &authority, Alpn::Http1));
    let _other = fixture.run(listening(&fixture, "node-2", tls())).await;
    wait_until(LIMIT, "the other one has its record", async || fixture.record("node-2").await.is_some()).await;
    let mut friend = listening(&fixture, "node-1", tls());
    friend.config.peer_ca = Some(authority.pem());
    let friend = fixture.run(friend).await;
    wait_until(LIMIT, "it is reached", async || reachable(&friend, true) == 1.0).await;
    let mut stranger = fixture.start("node-3");
    stranger.config.peer_ca = Some(Authority::new().pem());
    let stranger = fixture.run(stranger).await;
    wait_until(LIMIT, "it is not reached", async || reachable(&stranger, false) == 2.0).await;
}

#[tokio::test]
async fn nobody_but_nodes_is_answered_on_the_line_between_nodes() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(7, &upstream).await;
    let start = listening(&fixture, "node-1", None);
    let address = start.config.peer_address.clone().unwrap();
    let node = fixture.run(start).await;
    node.ready().await;
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let get = async |path: &str, token: Option<String>| {
        let request = client.get(address.join(path).unwrap());
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.unwrap()
    };
    let (now, tokens) = (fixture.clock.now(), fixture.cluster_key.tokens());
    let issue = |audience: &str, at| Some(tokens.issue_node("node-2", audience, at).expose().clone());
    let foreign = entrepot_trust::ClusterKey::generate().tokens().issue_node("node-2", "entrepot.peer.v1", now);
    for (why, token) in [
        ("no token", None),
        ("a token for the control plane", issue("entrepot.node.v1", now)),
        ("a token that has expired", issue("entrepot.peer.v1", now - Duration::from_secs(61))),
        ("a token of another cluster", Some(foreign.expose().clone())),
    ] {
        for path in ["/internal/v1/node", "/internal/v1/fills", "/internal/v1/answers/x", "/internal/v1/nothing"] {
            assert_eq!(get(path, token.clone()).await.status(), 401, "{why}: {path}");
        }
    }
    let token = || issue("entrepot.peer.v1", now);
    for path in ["/internal/v1/nothing", "/", "/v2/", "/internal/v1/node/", "/internal/v1/answers/x"] {
        assert_eq!(get(path, token()).await.status(), 404, "{path}");
    }
    let posted = client.post(address.join("/internal/v1/node").unwrap()).bearer_auth(token().unwrap());
    assert_eq!(posted.send().await.unwrap().status(), 404);
    let answer = get("/internal/v1/node", token()).await;
    assert_eq!(answer.status(), 200);
    let answer: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!((&answer["id"], &answer["running"]["revision"]), (&"node-1".into(), &7.into()));
    assert_eq!(answer["boot_id"], fixture.record("node-1").await.unwrap().boot_id.to_string());
    let fills: serde_json::Value =
        serde_json::from_slice(&get("/internal/v1/fills", token()).await.bytes().await.unwrap()).unwrap();
    assert_eq!(fills, serde_json::json!({ "fills": [] }));
    let refused = node.get("/v2/demo/app/manifests/v1?token=secret").await;
    let id = refused.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(id.starts_with("node-1-"), "{id}");
    let answer = get(&format!("/internal/v1/answers/{id}"), token()).await.text().await.unwrap();
    assert!(answer.contains(&id) && !answer.contains("secret"), "{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["status"], &answer["principal"]), (&404.into(), &"puller".into()), "{answer}");
    // The two listeners serve only their own paths.
    assert_eq!(node.get("/internal/v1/node").await.status(), 404);
}
