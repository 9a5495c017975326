//! Lists of tags.

use entrepot_test_support::{FakeUpstream, Fault, images};

use super::*;

fn publish(upstream: &FakeUpstream, tags: &[&str]) {
    for tag in tags {
        upstream.publish_image("team/app", tag, &[images::random_bytes(1, 10)]);
    }
}

async fn tags(upstream: &FakeUpstream, limits: Limits) -> Result<Vec<String>, Error> {
    let client = Client::new(&upstream_at(&upstream.url()), limits).expect("a client");
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
        (Fault::Header("link".into(), "</v2/team/app/tags/list>; rel=\"next\"".into()), "on more than 3 pages"),
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
