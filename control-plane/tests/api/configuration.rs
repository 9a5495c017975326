//! Upstreams and rules: create, get, list, update, delete, and everything that is refused.

use std::time::Duration;

use entrepot_proto::v1 as pb;
use entrepot_proto::v1::validation_step::State;
use entrepot_test_support::{Auth, FakeUpstream};
use prost_types::FieldMask;
use tonic::Code;
use uuid::Uuid;

use crate::fixture::{Fixture, create_rule, details, fields, kind};

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() })
}

fn oci(endpoint: &str) -> pb::Upstream {
    pb::Upstream { kind: pb::UpstreamKind::Oci.into(), endpoint: endpoint.into(), ..Default::default() }
}

/// A field, and a change of it.
type Move<'a> = (&'a str, &'a dyn Fn(&mut pb::Upstream));

#[tokio::test]
async fn an_upstream_lives_from_create_to_delete() {
    let fixture = Fixture::start().await;
    let mut client = fixture.upstreams();
    let upstream = pb::Upstream {
        username: "me".into(),
        password: "hunter22".into(),
        allow_hosts: vec!["auth.example.com".into()],
        budget: Some(pb::Budget { requests: 5000, window: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }) }),
        fallback_endpoints: vec!["https://mirror.example.com".into(), "https://m2.example.com:8443".into()],
        ..oci("https://registry.example.com")
    };
    let request =
        pb::CreateUpstreamRequest { upstream_id: "mine".into(), upstream: Some(upstream), ..Default::default() };
    let created = client.create_upstream(request).await.unwrap().into_inner();
    assert_eq!(created.name, "upstreams/mine");
    assert!(created.has_password && created.password.is_empty());
    assert_eq!((created.budget.map(|budget| budget.requests), created.fallback_endpoints.len()), (Some(5000), 2));

    let get = pb::GetUpstreamRequest { name: created.name.clone() };
    assert_eq!(client.get_upstream(get.clone()).await.unwrap().into_inner(), created);

    fixture.world.clock.advance(Duration::from_secs(1));
    let moved = pb::Upstream { endpoint: "https://other.example.com".into(), ..created.clone() };
    let sent = pb::Upstream { password: "hunter22".into(), ..moved };
    let update = pb::UpdateUpstreamRequest { upstream: Some(sent), update_mask: mask(&["endpoint", "password"]) };
    let updated = client.update_upstream(update.clone()).await.unwrap().into_inner();
    assert_eq!(updated.endpoint, "https://other.example.com");
    assert!(updated.has_password && updated.etag != created.etag && updated.update_time != created.update_time);

    let stale = client.update_upstream(update).await.unwrap_err();
    assert_eq!(kind(&stale), (Code::Aborted, "ETAG_STALE".into()));
    let clear = pb::Upstream { name: created.name.clone(), ..Default::default() };
    let update = pb::UpdateUpstreamRequest { upstream: Some(clear), update_mask: mask(&["username", "password"]) };
    assert!(!client.update_upstream(update).await.unwrap().into_inner().has_password);

    let delete = pb::DeleteUpstreamRequest { name: created.name.clone(), etag: created.etag };
    assert_eq!(client.delete_upstream(delete.clone()).await.unwrap_err().code(), Code::Aborted);
    client.delete_upstream(pb::DeleteUpstreamRequest { etag: String::new(), ..delete }).await.unwrap();
    let gone = client.get_upstream(get).await.unwrap_err();
    assert_eq!(kind(&gone), (Code::NotFound, "NOT_FOUND".into()));
    assert_eq!(details(&gone).resource_info().unwrap().resource_name, "upstreams/mine");
}

#[tokio::test]
async fn who_changes_where_a_password_goes_must_know_it() {
    let fixture = Fixture::start().await;
    let mut client = fixture.upstreams();
    let upstream = pb::Upstream {
        username: "me".into(),
        password: "hunter22".into(),
        allow_hosts: vec!["auth.example.com".into(), "cdn.example.com".into()],
        fallback_endpoints: vec!["https://mirror.example.com".into()],
        ..oci("https://registry.example.com")
    };
    let request =
        pb::CreateUpstreamRequest { upstream_id: "mine".into(), upstream: Some(upstream), ..Default::default() };
    let created = client.create_upstream(request).await.unwrap().into_inner();
    let ca = rcgen::generate_simple_self_signed(["registry.example.com".to_owned()]).unwrap().cert.pem();
    let send = |change: &dyn Fn(&mut pb::Upstream), paths: &[&str]| {
        let mut upstream = pb::Upstream { etag: String::new(), ..created.clone() };
        change(&mut upstream);
        pb::UpdateUpstreamRequest { upstream: Some(upstream), update_mask: mask(paths) }
    };
    let moves: [Move<'_>; 9] = [
        ("endpoint", &|upstream| upstream.endpoint = "https://evil.example.com".into()),
        ("endpoint", &|upstream| upstream.endpoint = "https://registry.example.com:8443".into()),
        ("fallback_endpoints", &|upstream| upstream.fallback_endpoints.push("https://evil.example.com".into())),
        ("fallback_endpoints", &|upstream| upstream.fallback_endpoints[0] = "https://mirror.example.com:1".into()),
        ("allow_hosts", &|upstream| upstream.allow_hosts.push("evil.example.com".into())),
        ("allow_hosts", &|upstream| upstream.allow_hosts.clear()),
        ("ca_certificates", &|upstream| upstream.ca_certificates = ca.clone()),
        ("allow_plain_http", &|upstream| upstream.allow_plain_http = true),
        ("endpoint", &|upstream| upstream.endpoint = "https://registry.example.org".into()),
    ];
    for (field, change) in moves {
        let error = client.update_upstream(send(change, &[field])).await.unwrap_err();
        assert_eq!(kind(&error), (Code::FailedPrecondition, "PASSWORD_NEEDED".into()), "{field}");
        let message = error.message();
        assert!(message.contains(&format!("`upstream.{field}`")) && message.contains("--password-stdin"), "{message}");
        // The caller's claim about a stored password does not matter.
        assert!(client.update_upstream(send(change, &[field, "username"])).await.is_err(), "{field}");
    }
    let both = |upstream: &mut pb::Upstream| {
        (upstream.endpoint, upstream.allow_plain_http) = ("http://registry.example.com".into(), true);
    };
    let error = client.update_upstream(send(&both, &["endpoint", "allow_plain_http"])).await.unwrap_err();
    assert!(error.message().contains("`upstream.endpoint`, `upstream.allow_plain_http`"), "{}", error.message());

    // A change that leaves the destination the same keeps the password.
    let same = |upstream: &mut pb::Upstream| {
        upstream.endpoint = "https://registry.example.com:443/".into();
        upstream.allow_hosts.reverse();
        upstream.allow_private_addresses = true;
    };
    let paths = ["endpoint", "allow_hosts", "allow_private_addresses"];
    assert!(client.update_upstream(send(&same, &paths)).await.unwrap().into_inner().has_password);
    // If the caller sends the password, or none is stored, the destination may change.
    let known = |upstream: &mut pb::Upstream| {
        (upstream.endpoint, upstream.password) = ("https://evil.example.com".into(), "hunter22".into());
    };
    client.update_upstream(send(&known, &["endpoint", "password"])).await.unwrap();
    let none = |upstream: &mut pb::Upstream| {
        (upstream.endpoint, upstream.username) = ("https://registry.example.org".into(), String::new());
    };
    let updated = client.update_upstream(send(&none, &["endpoint", "username"])).await.unwrap().into_inner();
    assert!(!updated.has_password);
    client.update_upstream(send(&known, &["endpoint"])).await.unwrap();
}

#[tokio::test]
async fn every_wrong_field_of_an_upstream_is_named_at_once() {
    let fixture = Fixture::start().await;
    let mut client = fixture.upstreams();
    let upstream = pb::Upstream { allow_hosts: vec!["a/b".into()], username: "me".into(), ..oci("http://plain") };
    let request = pb::CreateUpstreamRequest {
        upstream_id: "Bad_Id".into(),
        upstream: Some(upstream),
        request_id: "not-a-uuid".into(),
    };
    let error = client.create_upstream(request).await.unwrap_err();
    let expected = ["request_id", "upstream_id", "upstream.endpoint", "upstream.allow_hosts[0]", "upstream.password"];
    assert_eq!(fields(&error), expected);
    assert!(error.message().contains("set `allow_plain_http`"), "{}", error.message());

    let missing = client.create_upstream(pb::CreateUpstreamRequest::default()).await.unwrap_err();
    assert_eq!(fields(&missing), ["upstream_id", "upstream"]);
    let upstream = pb::Upstream { ca_certificates: "no PEM".into(), ..oci("https://a.example") };
    let request =
        pb::CreateUpstreamRequest { upstream_id: "ca".into(), upstream: Some(upstream), ..Default::default() };
    assert_eq!(fields(&client.create_upstream(request).await.unwrap_err()), ["upstream.ca_certificates"]);
}

#[tokio::test]
async fn masks_name_known_fields_that_can_change() {
    let fixture = Fixture::start().await;
    let upstream = fixture.create_upstream("quay").await;
    let mut client = fixture.upstreams();
    let update = |upstream: pb::Upstream, paths: Option<FieldMask>| pb::UpdateUpstreamRequest {
        upstream: Some(upstream),
        update_mask: paths,
    };
    let other_kind = pb::Upstream { kind: pb::UpstreamKind::Github.into(), ..upstream.clone() };
    let error = client.update_upstream(update(other_kind.clone(), mask(&["kind", "colour"]))).await.unwrap_err();
    assert_eq!(fields(&error), ["update_mask", "upstream.kind"]);
    assert_eq!(fields(&client.update_upstream(update(other_kind, None)).await.unwrap_err()), ["upstream.kind"]);

    // A resource that was read may be sent back as a whole.
    let back = pb::Upstream { allow_private_addresses: true, ..upstream };
    let updated = client.update_upstream(update(back, None)).await.unwrap().into_inner();
    assert!(updated.allow_private_addresses);
    let off = pb::Upstream { name: updated.name, ..Default::default() };
    let updated = client.update_upstream(update(off, mask(&["allow_private_addresses"]))).await.unwrap().into_inner();
    assert!(!updated.allow_private_addresses);
}

#[tokio::test]
async fn a_rule_lives_from_create_to_delete() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let mut client = fixture.rules();
    let created = client.create_rule(create_rule("hub", "", "quay")).await.unwrap().into_inner();
    assert_eq!((created.name.as_str(), created.prefix.as_str()), ("rules/hub", "hub"));
    assert!(created.uid.parse::<Uuid>().is_ok());

    let sent = pb::Rule { name: created.name.clone(), prefix: "mirrors/quay".into(), ..Default::default() };
    let update = pb::UpdateRuleRequest { rule: Some(sent), update_mask: None };
    let updated = client.update_rule(update).await.unwrap().into_inner();
    assert_eq!((updated.prefix.as_str(), &updated.uid), ("mirrors/quay", &created.uid));
    let delete = pb::DeleteRuleRequest { name: created.name.clone(), etag: updated.etag.clone() };
    assert_eq!(client.delete_rule(delete.clone()).await.unwrap().into_inner(), updated);
    assert_eq!(client.delete_rule(delete).await.unwrap_err().code(), Code::NotFound);

    // The name is free again, but an etag of the old rule does not fit the new one.
    let again = client.create_rule(create_rule("hub", "", "quay")).await.unwrap().into_inner();
    assert!(again.uid != created.uid && again.etag != created.etag);
}

#[tokio::test]
async fn rules_that_cannot_be_are_refused_with_the_remedy() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    fixture.create_rule("hub", "quay").await;
    let mut client = fixture.rules();

    let error = client.create_rule(create_rule("X", "No/Prefix", "")).await.unwrap_err();
    assert_eq!(fields(&error), ["rule_id", "rule.prefix", "rule.upstream"]);
    let error = client.create_rule(create_rule("b", "hub", "quay")).await.unwrap_err();
    assert_eq!(kind(&error), (Code::AlreadyExists, "ALREADY_EXISTS".into()));
    assert_eq!(details(&error).resource_info().unwrap().resource_name, "rules/hub");
    let error = client.create_rule(create_rule("hub", "other", "quay")).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    let error = client.create_rule(create_rule("c", "c", "nowhere")).await.unwrap_err();
    assert_eq!(kind(&error), (Code::NotFound, "NOT_FOUND".into()));
    assert_eq!(details(&error).error_info().unwrap().metadata["field"], "rule.upstream");
    assert!(error.message().contains("`upstreams/nowhere`") && error.message().contains("create it first"));

    let delete = pb::DeleteUpstreamRequest { name: "upstreams/quay".into(), ..Default::default() };
    let error = fixture.upstreams().delete_upstream(delete).await.unwrap_err();
    assert_eq!(kind(&error), (Code::FailedPrecondition, "UPSTREAM_IN_USE".into()));
    assert!(error.message().contains("rules/hub"), "{}", error.message());
    assert_eq!(details(&error).precondition_failure().unwrap().violations[0].subject, "upstreams/quay");
    for name in ["", "hub", "rules/Hub"] {
        assert_eq!(fields(&client.get_rule(pb::GetRuleRequest { name: name.into() }).await.unwrap_err()), ["name"]);
    }
}

#[tokio::test]
async fn lists_go_on_from_page_to_page() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    for id in ["c", "a", "e", "b", "d"] {
        fixture.create_rule(id, "quay").await;
    }
    let mut client = fixture.rules();
    let (mut seen, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = pb::ListRulesRequest { page_size: 2, page_token };
        let page = client.list_rules(request).await.unwrap().into_inner();
        seen.extend(page.rules.into_iter().map(|rule| rule.prefix));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen.concat().as_str(), pages), ("abcde", 3));

    let list = |page_size, page_token: &str| pb::ListRulesRequest { page_size, page_token: page_token.into() };
    let first = client.list_rules(list(2, "")).await.unwrap().into_inner().next_page_token;
    let error = client.list_rules(list(-1, "nonsense")).await.unwrap_err();
    assert_eq!(fields(&error), ["page_size", "page_token"]);
    let request = pb::ListUpstreamsRequest { page_size: 2, page_token: first };
    assert_eq!(fields(&fixture.upstreams().list_upstreams(request).await.unwrap_err()), ["page_token"]);
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let mut client = fixture.rules();
    let request_id = Uuid::new_v4().to_string();
    let request = pb::CreateRuleRequest { request_id, ..create_rule("hub", "hub", "quay") };
    let first = client.create_rule(request.clone()).await.unwrap().into_inner();
    let mut other = fixture.rules();
    let (a, b) = tokio::join!(client.create_rule(request.clone()), other.create_rule(request.clone()));
    assert_eq!((a.unwrap().into_inner(), b.unwrap().into_inner()), (first.clone(), first));

    let different = pb::CreateRuleRequest { rule_id: "other".into(), ..request.clone() };
    assert_eq!(fields(&client.create_rule(different).await.unwrap_err()), ["request_id"]);
    fixture.world.clock.advance(Duration::from_secs(24 * 60 * 60 + 1));
    assert_eq!(client.create_rule(request).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test]
async fn an_image_name_is_explained() {
    let fixture = Fixture::start().await;
    let hub = pb::Upstream { kind: pb::UpstreamKind::DockerHub.into(), ..Default::default() };
    let request = pb::CreateUpstreamRequest { upstream_id: "docker".into(), upstream: Some(hub), ..Default::default() };
    fixture.upstreams().create_upstream(request).await.unwrap();
    fixture.create_rule("hub", "docker").await;
    let mut client = fixture.rules();
    let mut explain = async |image: &str| client.explain_rule(pb::ExplainRuleRequest { image: image.into() }).await;

    let answer = explain("hub/nginx:1.27").await.unwrap().into_inner();
    assert!(answer.covered && !answer.repository_exists);
    assert_eq!(answer.rule.unwrap().name, "rules/hub");
    assert_eq!(answer.repository, "repositories/hub/library/nginx");
    assert_eq!(answer.upstream_repository, "library/nginx");
    assert_eq!(answer.manifest_url, "https://registry-1.docker.io/v2/library/nginx/manifests/1.27");
    let answer = explain("other/nginx").await.unwrap().into_inner();
    assert!(!answer.covered && answer.explanation.contains("no rule covers"));
    for image in ["", "Hub/x", "localhost:5000/hub/nginx:1"] {
        assert_eq!(fields(&explain(image).await.unwrap_err()), ["image"], "{image}");
    }
}

#[tokio::test]
async fn a_rule_is_validated_step_by_step() {
    let fixture = Fixture::start().await;
    let fake = FakeUpstream::start().await;
    fake.publish_image("team/app", "v1", &[entrepot_test_support::images::random_bytes(1, 100)]);
    let upstream = pb::Upstream { allow_plain_http: true, allow_private_addresses: true, ..oci(&fake.url()) };
    let request =
        pb::CreateUpstreamRequest { upstream_id: "fake".into(), upstream: Some(upstream), ..Default::default() };
    fixture.upstreams().create_upstream(request).await.unwrap();
    fixture.create_rule("demo", "fake").await;
    let mut client = fixture.rules();
    let mut validate = async |image: &str| {
        let request = pb::ValidateRuleRequest { name: "rules/demo".into(), image: image.into() };
        client.validate_rule(request).await
    };

    let answer = validate("demo/team/app:v1").await.unwrap().into_inner();
    assert!(answer.valid && answer.steps.len() == 5, "{answer:?}");
    assert_eq!(answer.steps[4].state(), State::Passed, "{answer:?}");
    let answer = validate("demo/team/absent:v1").await.unwrap().into_inner();
    assert!(!answer.valid);
    assert_eq!(answer.steps[4].state(), State::Failed);
    assert_eq!(fields(&validate("elsewhere/app").await.unwrap_err()), ["image"]);
    let request = pb::ValidateRuleRequest { name: "rules/nope".into(), ..Default::default() };
    assert_eq!(fixture.rules().validate_rule(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_upstream_is_validated_without_a_rule_and_a_realm_elsewhere_is_told_with_its_remedy() {
    let fixture = Fixture::start().await;
    let fake = FakeUpstream::start().await;
    let open = pb::Upstream { allow_plain_http: true, allow_private_addresses: true, ..oci(&fake.url()) };
    let login = pb::Upstream { username: "me".into(), password: "pass-word-1".into(), ..open.clone() };
    for (upstream_id, upstream) in [("open", open), ("login", login)] {
        let request = pb::CreateUpstreamRequest {
            upstream_id: upstream_id.into(),
            upstream: Some(upstream),
            ..Default::default()
        };
        fixture.upstreams().create_upstream(request).await.unwrap();
    }
    let validate = async |id: &str| {
        let request = pb::ValidateUpstreamRequest { name: format!("upstreams/{id}") };
        fixture.upstreams().validate_upstream(request).await.map(tonic::Response::into_inner)
    };
    let answer = validate("open").await.unwrap();
    assert!(answer.valid && answer.steps.len() == 5, "{answer:?}");
    assert_eq!(answer.steps[4].state(), State::Skipped, "{answer:?}");
    fake.set_auth(Auth::Token("me".into(), "pass-word-1".into()));
    fake.set_realm("http://127.0.0.2:5001/token");
    let answer = validate("login").await.unwrap();
    let told = answer.steps.iter().any(|step| {
        step.state() == State::Failed
            && step.message.ends_with("`entrepot upstream update login --allow-host 127.0.0.2:5001`")
    });
    assert!(!answer.valid && told, "{answer:?}");
    assert_eq!(validate("nope").await.unwrap_err().code(), Code::NotFound);
}
