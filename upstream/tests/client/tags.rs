//! Lists of tags.

use entrepot_test_support::{FakeUpstream, Fault, images};

use super::*;

fn publish(upstream: &FakeUpstream, tags: &[&str]) {
    for tag in tags {
        upstream.publish_image("team/app", tag, &[images::random_bytes(1, 10)]);
    }
}

async fn tags(upstream: &FakeUpstream, limits: Limits) -> Result<Vec<String>, Error> {
    let client = Client::new(&upstream_at(&upstream.url()), REGISTRY, limits).expect("a client");
    let tags = client.tags(&"team/app".parse().expect("a name")).await?;
    Ok(tags.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn all_pages_are_followed_and_what_is_no_tag_is_left_out() {
    let upstream = FakeUpstream::start().await;
    publish(&upstream, &["v2", "latest", "v1", "V1", "dev"]);
    upstream.set_tags_page(2);
    assert_eq!(tags(&upstream, short()).await.unwrap(), ["V1", "dev", "latest", "v1", "v2"]);
    assert_eq!(upstream.request_count(), 3);

    for (body, expected) in [
        (r#"{"name":"x","tags":["b","a","b","no/tag",""]}"#, &["a", "b"][..]),
        (r#"{"name":"x","tags":null}"#, &[]),
        (r#"{"name":"x"}"#, &[]),
    ] {
        upstream.script_times("tags/list", Fault::Body(body.into()), 1);
        upstream.set_tags_page(0);
        assert_eq!(tags(&upstream, short()).await.unwrap(), expected, "{body}");
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_is_refused_and_has_an_end() {
    let upstream = FakeUpstream::start().await;
    assert!(matches!(tags(&upstream, short()).await, Err(Error::NotFound)));
    publish(&upstream, &["a", "b", "c"]);
    upstream.script_times("tags/list", Fault::Status(403, None), 1);
    assert!(matches!(tags(&upstream, short()).await, Err(Error::Denied { .. })));
    for (fault, why) in [
        (Fault::Html, "a list of tags that is none"),
        (Fault::Header("link".into(), "<http://127.0.0.2:1/>; rel=\"next\"".into()), "at another place"),
        (Fault::Header("link".into(), "</v2/team/app/tags/list>; rel=\"next\"".into()), "without saying which"),
        (Fault::Header("link".into(), "</v2/team/app/tags/list?n=1000>; rel=\"next\"".into()), "in a circle"),
        (Fault::Header("link".into(), "/v2/team/app/tags/list?last=b; rel=\"next\"".into()), "not understood"),
    ] {
        upstream.script("tags/list", fault);
        let error = tags(&upstream, Limits { list_pages: 3, ..short() }).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        upstream.heal();
    }
    let error = tags(&upstream, Limits { tags_count: 2, ..short() }).await.unwrap_err();
    assert!(error.to_string().contains("lists more than 2 tags"), "{error}");
    let error = tags(&upstream, Limits { tags_page_bytes: 20, ..short() }).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit_bytes: 20 }), "{error}");
}

#[tokio::test]
async fn the_next_page_is_found_however_its_link_is_written_and_asked_for_at_our_path() {
    for link in [
        "</v2/team/app/tags/list?last=b>; rel=\"next last\"",
        "</v2/team/app/tags/list?last=b>; title=\"a, b\"; rel=\"next\"",
        "</v2/team/app/tags/list>; rel=\"first\",</v2/team/app/tags/list?last=b>; rel=\"next\"",
        "</v2/app/tags/list?last=b>;rel=next",
        "<?last=b>; rel=NEXT; title=x",
    ] {
        let upstream = FakeUpstream::start().await;
        publish(&upstream, &["a", "b", "c", "d"]);
        upstream.script_times("tags/list", Fault::Body(br#"{"name":"x","tags":["a","b"]}"#.into()), 1);
        upstream.script_times("tags/list", Fault::Header("link".into(), link.into()), 1);
        assert_eq!(tags(&upstream, short()).await.unwrap(), ["a", "b", "c", "d"], "{link}");
        let asked: Vec<_> = upstream.log().into_iter().map(|entry| (entry.path, entry.query)).collect();
        let at = |query: &str| ("/v2/team/app/tags/list".to_owned(), query.to_owned());
        assert_eq!(asked, [at("n=1000"), at("last=b")], "{link}");
    }
}

#[tokio::test]
async fn a_next_page_that_cannot_be_had_fails_the_list_and_is_no_missing_repository() {
    let upstream = FakeUpstream::start().await;
    publish(&upstream, &["a", "b", "c"]);
    upstream.set_tags_page(2);
    for (status, why) in [(404, "does not have the next page"), (403, "refuses the next page"), (418, "status 418")] {
        let gate = upstream.hold("tags/list");
        let client = client_of(&upstream);
        let repository = name("team/app");
        let listing = client.tags(&repository);
        let playing = async {
            gate.until_waiting(1).await;
            // The fault is chosen when a request arrives, so this one is for the next request.
            upstream.script("tags/list", Fault::Status(status, None));
            gate.release();
        };
        let (listed, ()) = futures_util::future::join(listing, playing).await;
        upstream.heal();
        let error = listed.unwrap_err();
        assert!(matches!(&error, Error::BadAnswer { what } if what.contains(why)), "{status}: {error}");
    }
}
