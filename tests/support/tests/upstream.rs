//! Tests of the scripted upstream, with a plain client.

use std::time::Duration;

use entrepot_test_support::images::{random_bytes, sha256};
use entrepot_test_support::{Auth, FakeUpstream, Fault, wait_until};
use reqwest::{Client, Method, Response};

async fn get(upstream: &FakeUpstream, path: &str) -> Response {
    client().get(format!("{}{path}", upstream.url())).send().await.expect("the upstream answers")
}

fn client() -> Client {
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("a client can be made")
}

#[tokio::test]
async fn an_image_is_served_by_tag_and_digest_whole_and_in_ranges() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("demo/app", "v1", &[random_bytes(1, 100_000)]);
    let by_tag = get(&upstream, "/v2/demo/app/manifests/v1").await;
    assert_eq!(by_tag.headers()["docker-content-digest"], image.manifest.as_str());
    let bytes = by_tag.bytes().await.unwrap();
    assert_eq!(sha256(&bytes), image.manifest);
    let path = format!("/v2/demo/app/blobs/{}", image.layers[0]);
    assert_eq!(get(&upstream, &path).await.bytes().await.unwrap(), random_bytes(1, 100_000));

    let url = format!("{}{path}", upstream.url());
    let range = client().get(&url).header("range", "bytes=10-19").send().await.unwrap();
    assert_eq!(
        (range.status().as_u16(), range.headers()["content-range"].to_str().unwrap()),
        (206, "bytes 10-19/100000")
    );
    assert_eq!(range.bytes().await.unwrap(), random_bytes(1, 100_000)[10..20]);
    let outside = client().get(&url).header("range", "bytes=100000-").send().await.unwrap();
    assert_eq!(outside.status(), 416);
    let head = client().request(Method::HEAD, &url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "100000");
    assert_eq!(get(&upstream, "/v2/demo/app/manifests/v2").await.status(), 404);

    assert_eq!(upstream.fetches_of(&image.layers[0]), 2);
    assert_eq!(upstream.log()[1].sent_bytes, 100_000);
}

#[tokio::test]
async fn the_script_spoils_answers_while_it_lasts() {
    let upstream = FakeUpstream::start().await;
    let blob = upstream.publish_blob("demo", random_bytes(2, 200_000));
    let path = format!("/v2/demo/blobs/{blob}");

    upstream.script_times(&blob, Fault::CutAfter(70_000), 1);
    assert!(get(&upstream, &path).await.bytes().await.is_err());
    upstream.script_times(&blob, Fault::FlipBit, 1);
    assert_ne!(sha256(&get(&upstream, &path).await.bytes().await.unwrap()), blob);
    upstream.script_times("GET ", Fault::Status(429, Some("7".into())), 1);
    assert_eq!(get(&upstream, &path).await.headers()["retry-after"], "7");
    upstream.script_times(&blob, Fault::NoLength, 1);
    assert_eq!(get(&upstream, &path).await.content_length(), None);
    upstream.script_times(&blob, Fault::HangUp, 1);
    assert!(client().get(format!("{}{path}", upstream.url())).send().await.is_err());
    assert_eq!(sha256(&get(&upstream, &path).await.bytes().await.unwrap()), blob);
}

#[tokio::test]
async fn the_script_breaks_connections_lies_about_lengths_and_spoils_any_byte() {
    let upstream = FakeUpstream::start().await;
    let bytes = random_bytes(2, 200_000);
    let blob = upstream.publish_blob("demo", &bytes);
    let path = format!("/v2/demo/blobs/{blob}");
    let spoilt = async |fault| {
        upstream.script_times(&blob, fault, 1);
        get(&upstream, &path).await.bytes().await
    };
    let reset = spoilt(Fault::ResetAfter(150_000)).await.unwrap_err();
    assert!(format!("{reset:?}").contains("ConnectionReset"), "{reset:?}");
    let cut = spoilt(Fault::CutAfter(150_000)).await.unwrap_err();
    assert!(!format!("{cut:?}").contains("ConnectionReset"), "{cut:?}");
    assert_eq!(spoilt(Fault::EndAfter(150_000)).await.unwrap(), bytes[..150_000]);
    assert_eq!(spoilt(Fault::WrongLength(-1000)).await.unwrap(), bytes[..199_000]);
    assert!(spoilt(Fault::WrongLength(1000)).await.is_err());
    let flipped = spoilt(Fault::FlipBitAt(7)).await.unwrap();
    assert_eq!((&flipped[..7], flipped[7] ^ 1, &flipped[8..]), (&bytes[..7], bytes[7], &bytes[8..]));
    assert_eq!(spoilt(Fault::Delay(Duration::from_millis(1))).await.unwrap(), bytes);
}

#[tokio::test]
async fn redirects_to_another_origin_keep_the_path_and_storage_wants_no_login() {
    let (upstream, storage) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let blob = upstream.publish_blob("demo", random_bytes(3, 10));
    storage.publish_all_of(&upstream);
    storage.set_auth(Auth::Unwanted);
    upstream.script(&blob, Fault::RedirectToOrigin(storage.url()));
    let path = format!("/v2/demo/blobs/{blob}?x=1");
    let location = get(&upstream, &path).await.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(location, format!("{}{path}", storage.url()));
    assert_eq!(sha256(&get(&storage, &path).await.bytes().await.unwrap()), blob);
    let with_login = client().get(location).bearer_auth("secret").send().await.unwrap();
    assert_eq!(with_login.status(), 400);
    assert!(storage.log()[1].authorization().is_some());
}

#[tokio::test]
async fn tokens_expire_with_the_answer_that_says_so() {
    let upstream = FakeUpstream::start().await;
    upstream.set_auth(Auth::AnonymousToken);
    let blob = upstream.publish_blob("demo", random_bytes(3, 10));
    upstream.script_times(&blob, Fault::ExpireTokens, 1);
    let answer = get(&upstream, "/token?scope=repository:demo:pull").await.bytes().await.unwrap();
    let token: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let url = format!("{}/v2/demo/blobs/{blob}", upstream.url());
    let ask = || client().get(&url).bearer_auth(token["token"].as_str().unwrap()).send();
    assert_eq!(ask().await.unwrap().status(), 200);
    assert_eq!(ask().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_gate_holds_the_first_byte_until_it_is_released() {
    let upstream = FakeUpstream::start().await;
    let blob = upstream.publish_blob("demo", random_bytes(3, 10));
    let gate = upstream.hold(&blob);
    let path = format!("/v2/demo/blobs/{blob}");
    let release = async {
        gate.until_waiting(2).await;
        assert_eq!(upstream.log()[0].status, 0);
        gate.release();
    };
    let (one, other, ()) = tokio::join!(get(&upstream, &path), get(&upstream, &path), release);
    assert_eq!((one.status(), other.status()), (200.try_into().unwrap(), 200.try_into().unwrap()));
    assert_eq!(get(&upstream, &path).await.status(), 200);
}

#[tokio::test]
async fn it_goes_away_and_comes_back_at_the_same_address() {
    let upstream = FakeUpstream::start().await;
    let client = client();
    let ask = async || client.get(format!("{}/v2/", upstream.url())).send().await.is_ok();
    assert!(ask().await);
    upstream.stop().await;
    assert!(!ask().await);
    upstream.resume().await;
    wait_until(Duration::from_secs(5), "the upstream is back", ask).await;
}

#[tokio::test]
async fn tokens_are_for_one_repository_until_they_are_revoked() {
    let upstream = FakeUpstream::start().await;
    upstream.set_auth(Auth::AnonymousToken);
    upstream.publish_image("demo", "v1", &[]);
    let challenged = get(&upstream, "/v2/demo/manifests/v1").await;
    assert_eq!(challenged.status(), 401);
    let challenge = challenged.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("scope=\"repository:demo:pull\""), "{challenge}");
    let answer = get(&upstream, "/token?scope=repository:demo:pull").await.text().await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let pull = async |repository: &str| {
        let url = format!("{}/v2/{repository}/manifests/v1", upstream.url());
        let token = answer["token"].as_str().unwrap();
        client().get(url).bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!((pull("demo").await, pull("other").await), (200, 401));
    upstream.revoke_tokens();
    assert_eq!(pull("demo").await, 401);
    assert_eq!(upstream.token_requests(), 1);
}

#[tokio::test]
async fn a_limit_counts_fetches_of_manifests_and_nothing_else() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("library/app", "v1", &[random_bytes(1, 100)]);
    upstream.set_limit(2, Duration::from_secs(3600));
    let manifest = format!("{}/v2/library/app/manifests/v1", upstream.url());
    let left = |response: &Response| response.headers()["ratelimit-remaining"].to_str().unwrap().to_owned();
    let head = client().head(&manifest).send().await.unwrap();
    assert_eq!((head.headers()["ratelimit-limit"].to_str().unwrap(), left(&head)), ("2;w=3600", "2;w=3600".to_owned()));
    for rest in ["1;w=3600", "0;w=3600"] {
        assert_eq!(left(&get(&upstream, "/v2/library/app/manifests/v1").await), rest);
    }
    let refused = get(&upstream, "/v2/library/app/manifests/v1").await;
    assert_eq!((refused.status().as_u16(), refused.headers().get("retry-after")), (429, None));
    assert_eq!(client().head(&manifest).send().await.unwrap().status(), 200);
    assert_eq!(get(&upstream, &format!("/v2/library/app/blobs/{}", image.layers[0])).await.status(), 200);
    assert_eq!(upstream.counted_requests(), 3);
}
