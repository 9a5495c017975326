//! Rows as a control plane of a later release writes them: this release handles everything that it knows, loses
//! nothing, and opens nothing.

use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::rules_client::RulesClient;
use entrepot_test_support::wait_until;
use tokio_postgres::SimpleQueryMessage;
use tonic::{Code, Status};

use crate::content::{Repository, list_images, list_repositories, report};
use crate::fixture::{Fixture, LIMIT, World, details, kind};
use crate::node::Node;
use crate::snapshot::published;

/// Asserts that a call is refused because only another release understands `item`.
fn assert_not_understood<T: std::fmt::Debug>(answer: Result<T, Status>, item: &str, word: &str) {
    let error = answer.unwrap_err();
    assert_eq!(kind(&error), (Code::FailedPrecondition, "OF_ANOTHER_RELEASE".into()), "{error:?}");
    assert!(error.message().contains(&format!("`{item}`")) && error.message().contains(word), "{}", error.message());
    assert_eq!(details(&error).error_info().unwrap().metadata["resource"], item);
}

async fn one(world: &World, sql: &str) -> String {
    let rows = world.sql(sql).await;
    let value = rows.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(0).map(str::to_owned)
    });
    value.unwrap_or_default()
}

fn left_out(fixture: &Fixture) -> f64 {
    fixture.metric("entrepot_row_left_out_total", &[])
}

async fn list_upstreams(fixture: &Fixture, page_size: i32) -> Vec<String> {
    let (mut all, mut request) = (Vec::new(), pb::ListUpstreamsRequest { page_size, ..Default::default() });
    loop {
        let page = fixture.upstreams().list_upstreams(request.clone()).await.unwrap().into_inner();
        assert!(page.upstreams.len() <= page_size as usize);
        all.extend(page.upstreams.into_iter().map(|upstream| upstream.name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return all;
        }
    }
}

#[tokio::test]
async fn an_upstream_of_an_unknown_kind_is_left_out_of_lists_and_passed_on_to_nodes() {
    let fixture = Fixture::start().await;
    for id in ["a", "b", "c", "d"] {
        fixture.create_upstream(id).await;
    }
    fixture.create_rule("b", "b").await;
    fixture.world.sql("UPDATE upstreams SET kind = 'HARBOR' WHERE upstream_id IN ('b', 'c')").await;

    for page_size in [1, 2, 3, 100] {
        assert_eq!(list_upstreams(&fixture, page_size).await, ["upstreams/a", "upstreams/d"], "{page_size} on a page");
    }
    assert!(left_out(&fixture) >= 8.0);
    let name = || "upstreams/b".to_owned();
    let get = pb::GetUpstreamRequest { name: name() };
    assert_not_understood(fixture.upstreams().get_upstream(get).await, "upstreams/b", "HARBOR");
    let upstream =
        pb::Upstream { name: name(), username: "me".into(), password: "secret".into(), ..Default::default() };
    let update = pb::UpdateUpstreamRequest { upstream: Some(upstream), ..Default::default() };
    assert_not_understood(fixture.upstreams().update_upstream(update).await, "upstreams/b", "HARBOR");
    let delete = pb::DeleteUpstreamRequest { name: name(), ..Default::default() };
    assert_not_understood(fixture.upstreams().delete_upstream(delete).await, "upstreams/b", "HARBOR");
    let validate = pb::ValidateRuleRequest { name: "rules/b".into(), ..Default::default() };
    assert_not_understood(fixture.rules().validate_rule(validate).await, "upstreams/b", "HARBOR");

    // This rule is of this release.
    let rule = pb::Rule { name: "rules/b".into(), mode: pb::rule::Mode::Off.into(), ..Default::default() };
    let update = pb::UpdateRuleRequest { rule: Some(rule), ..Default::default() };
    assert_eq!(fixture.rules().update_rule(update).await.unwrap().into_inner().upstream, "upstreams/b");
    let (_, snapshot) = published(&fixture.world).await;
    let kinds: Vec<&str> = snapshot.upstreams.iter().map(|upstream| upstream.kind.as_str()).collect();
    assert_eq!(kinds, ["QUAY", "HARBOR", "HARBOR", "QUAY"], "nodes of the later release know it");
    assert_eq!(snapshot.rules[0].freshness.as_ref().unwrap().mode, "OFF");
}

#[tokio::test]
async fn what_is_for_later_readers_covers_its_names_for_nobody() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    for id in ["known", "later"] {
        fixture.create_rule(id, "quay").await;
        let template = pb::Template { prefix: id.into(), ..Default::default() };
        let request =
            pb::CreateTemplateRequest { template_id: id.into(), template: Some(template), ..Default::default() };
        fixture.templates().create_template(request).await.unwrap();
    }
    let sql =
        "UPDATE rules SET minimum_reader = 9, policy = policy || '{\"visible_to\": [\"ops\"]}' WHERE rule_id = 'later';
               UPDATE templates SET tag_mutability = 'FROZEN' WHERE template_id = 'later'";
    fixture.world.sql(sql).await;

    let rules = fixture.rules().list_rules(pb::ListRulesRequest::default()).await.unwrap().into_inner().rules;
    assert_eq!(rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["rules/known"]);
    let list = pb::ListTemplatesRequest::default();
    let templates = fixture.templates().list_templates(list).await.unwrap().into_inner().templates;
    assert_eq!(templates.iter().map(|template| template.name.as_str()).collect::<Vec<_>>(), ["templates/known"]);
    let get = pb::GetRuleRequest { name: "rules/later".into() };
    assert_not_understood(fixture.rules().get_rule(get).await, "rules/later", "minimum_reader is 9");
    let get = pb::GetTemplateRequest { name: "templates/later".into() };
    assert_not_understood(fixture.templates().get_template(get).await, "templates/later", "tag_mutability");
    let explain = |image: &str| pb::ExplainRuleRequest { image: image.into() };
    let answer = fixture.rules().explain_rule(explain("later/app:v1")).await;
    assert_not_understood(answer, "rules/later", "minimum_reader is 9");
    let explained = fixture.rules().explain_rule(explain("known/app:v1")).await.unwrap().into_inner();
    assert_eq!(explained.template, "templates/known");

    fixture.create_rule("another", "quay").await;
    let (_, snapshot) = published(&fixture.world).await;
    let covered = |rule: &node::SnapshotRule| (rule.prefix.clone(), rule.minimum_reader);
    assert_eq!(
        snapshot.rules.iter().map(covered).collect::<Vec<_>>(),
        [("another".into(), 0), ("known".into(), 0), ("later".into(), i32::MAX)]
    );
    let covered = |template: &node::SnapshotTemplate| (template.prefix.clone(), template.minimum_reader);
    assert_eq!(
        snapshot.templates.iter().map(covered).collect::<Vec<_>>(),
        [("known".into(), 0), ("later".into(), i32::MAX)]
    );
}

#[tokio::test]
async fn a_policy_keeps_what_only_another_release_knows() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    fixture.create_rule("hub", "quay").await;
    let sql = "UPDATE rules SET policy = policy || '{\"mode\": \"PREDICTIVE\", \"mirrors\": {\"of\": [1]}}'";
    fixture.world.sql(sql).await;
    let get = pb::GetRuleRequest { name: "rules/hub".into() };
    let rule = fixture.rules().get_rule(get).await.unwrap().into_inner();
    assert_eq!(rule.mode(), pb::rule::Mode::Blocking, "what asks the upstream first opens nothing");
    let window = Some(prost_types::Duration { seconds: 7, nanos: 0 });
    let rule = pb::Rule { name: rule.name, etag: rule.etag, window, ..Default::default() };
    let update = pb::UpdateRuleRequest { rule: Some(rule), ..Default::default() };
    fixture.rules().update_rule(update).await.unwrap();
    let sql = "SELECT concat(policy->>'window_seconds', policy->>'mode', policy->'mirrors'->'of') FROM rules";
    assert_eq!(one(&fixture.world, sql).await, "7PREDICTIVE[1]");
}

#[tokio::test]
async fn what_nodes_leave_out_is_said_and_counted() {
    let fixture = Fixture::start().await;
    let node = Node::watch(&fixture, "older").await;
    let left_out = |item: &str| node::LeftOut { item: item.into(), reason: "is not known here".into() };
    let said = |left_out| node::WatchSnapshotRequest { node_id: "older".into(), left_out, ..Default::default() };
    let count = |kind: &str| fixture.metric("entrepot_node_left_out", &[&format!("kind=\"{kind}\"")]);
    let until = async |rules: f64, others: f64| {
        let is_counted = async || (count("rules"), count("other")) == (rules, others);
        wait_until(LIMIT, "what is left out is counted", is_counted).await;
    };
    node.say.send(said(vec![left_out("rules/a"), left_out("rules/b"), left_out("colours/red")])).await.unwrap();
    until(2.0, 1.0).await;
    node.say.send(said(vec![left_out("rules/a")])).await.unwrap();
    until(1.0, 0.0).await;
    drop(node);
    until(0.0, 0.0).await;
}

/// A principal with a key. Returns the key's name and the credentials.
async fn puller(fixture: &Fixture, id: &str) -> (String, String) {
    let principal = pb::Principal { permission_set: pb::PermissionSet::Puller.into(), ..Default::default() };
    let request =
        pb::CreatePrincipalRequest { principal_id: id.into(), principal: Some(principal), ..Default::default() };
    fixture.principals().create_principal(request).await.unwrap();
    let request = pb::CreateAccessKeyRequest { parent: format!("principals/{id}"), ..Default::default() };
    let created = fixture.access_keys().create_access_key(request).await.unwrap().into_inner();
    let key = created.access_key.unwrap();
    (key.name, format!("{}:{}", key.key_id, created.secret))
}

async fn call(fixture: &Fixture, key: &str) -> Code {
    let mut rules = RulesClient::with_interceptor(fixture.channel.clone(), fixture.login(key));
    let read = rules.list_rules(pb::ListRulesRequest::default()).await.map(drop);
    let login = fixture.login_tokens_as(key).get_login_token(pb::GetLoginTokenRequest {}).await.map(drop);
    let codes = [read, login].map(|answer| answer.err().map_or(Code::Ok, |error| error.code()));
    assert_eq!(codes[0], codes[1]);
    codes[0]
}

#[tokio::test]
async fn a_principal_of_an_unknown_kind_can_do_nothing_and_be_got_rid_of() {
    let fixture = Fixture::start().await;
    let (name, key) = puller(&fixture, "auditor").await;
    let (_, other_key) = puller(&fixture, "restricted").await;
    assert_eq!(call(&fixture, &key).await, Code::Ok);
    let sql = "UPDATE principals SET permission_set = 'AUDITOR' WHERE principal_id = 'auditor';
               UPDATE principals SET minimum_reader = 9, permission_set = 'ADMINISTRATOR' WHERE principal_id = 'restricted'";
    fixture.world.sql(sql).await;
    // Any change makes sessions forgotten.
    fixture.create_upstream("quay").await;
    assert_eq!(call(&fixture, &key).await, Code::PermissionDenied);
    assert_eq!(call(&fixture, &other_key).await, Code::PermissionDenied, "it is for later readers");

    let list = pb::ListPrincipalsRequest::default();
    let principals = fixture.principals().list_principals(list).await.unwrap().into_inner().principals;
    let sets: Vec<_> = principals.iter().map(pb::Principal::permission_set).collect();
    let unknown = pb::PermissionSet::Unspecified;
    assert_eq!(sets, [pb::PermissionSet::Administrator, unknown, unknown]);
    let (_, snapshot) = published(&fixture.world).await;
    let auditor = &snapshot.principals[1];
    assert_eq!((auditor.permission_set.as_str(), auditor.actions.len()), ("AUDITOR", 0));
    assert_eq!((snapshot.principals[2].minimum_reader, snapshot.principals[2].actions.len()), (9, 0));

    let create = pb::CreateAccessKeyRequest { parent: "principals/auditor".into(), ..Default::default() };
    assert_not_understood(fixture.access_keys().create_access_key(create).await, "principals/auditor", "AUDITOR");
    let revoke = pb::RevokeAccessKeyRequest { name };
    fixture.access_keys().revoke_access_key(revoke).await.unwrap();
    assert_eq!(call(&fixture, &key).await, Code::Unauthenticated);
    for id in ["auditor", "restricted"] {
        let delete = pb::DeletePrincipalRequest { name: format!("principals/{id}") };
        fixture.principals().delete_principal(delete).await.unwrap();
    }
    assert_eq!(published(&fixture.world).await.1.principals.len(), 1);
}

#[tokio::test]
async fn keys_of_unknown_forms_let_nobody_in_and_can_be_revoked() {
    let fixture = Fixture::start().await;
    let cluster_key = fixture.world.cluster_key();
    let (hashed, hashed_key) = puller(&fixture, "hashed").await;
    let (sealed, sealed_key) = puller(&fixture, "sealed").await;
    let (suspended, suspended_key) = puller(&fixture, "suspended").await;
    let id = |key: &str| key.split(':').next().unwrap().to_owned();
    let unknown_hash = cluster_key.seal(&format!("access-key/{}", id(&hashed_key)), &[99; 40]);
    let sql = format!(
        "ALTER TABLE access_keys DROP CONSTRAINT access_keys_state_check, DROP CONSTRAINT access_keys_sealed_secret_check;
         UPDATE access_keys SET sealed_hash = '\\x{}' WHERE key_id = '{}';
         UPDATE access_keys SET sealed_hash = '\\x63' WHERE key_id = '{}';
         UPDATE access_keys SET state = 'SUSPENDED' WHERE key_id = '{}'",
        hex(&unknown_hash),
        id(&hashed_key),
        id(&sealed_key),
        id(&suspended_key),
    );
    fixture.world.sql(&sql).await;
    fixture.create_upstream("quay").await;
    for (name, key) in [(hashed, hashed_key), (sealed, sealed_key), (suspended, suspended_key)] {
        assert_eq!(call(&fixture, &key).await, Code::Unauthenticated, "{name}");
        let revoked = fixture.access_keys().revoke_access_key(pb::RevokeAccessKeyRequest { name }).await.unwrap();
        assert_eq!(revoked.into_inner().state(), pb::access_key::State::Revoked);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn unknown_forms_of_content_and_work_hide_nothing_else() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![app.created(), app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;
    let sql = "
        UPDATE repositories SET settings = '{\"tag_mutability\": {\"by\": \"schedule\"}}';
        INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms, cache_time)
        SELECT incarnation, 'blake3:0f', 'application/vnd.example', 1, 1, '{}', now() FROM repositories;
        INSERT INTO tags (incarnation, tag, digest, revision) SELECT incarnation, 'v2', 'blake3:0f', 1 FROM repositories;
        INSERT INTO operations (uid, kind, access_key_id, item_count)
        VALUES ('01931fd2-e8c0-7000-8000-0000000000ab', 'SCAN_IMAGES', 'admin', 2);
        INSERT INTO jobs (operation_uid, ordinal, kind, subject, payload, priority, turn_time, outcome, end_time)
        VALUES ('01931fd2-e8c0-7000-8000-0000000000ab', 1, 'scan_image', 'x', '{}', 1, now(), 'QUARANTINED', now()),
               ('01931fd2-e8c0-7000-8000-0000000000ab', 2, 'scan_image', 'y', '{}', 1, now(), NULL, NULL)";
    fixture.world.sql(sql).await;

    assert_eq!(list_repositories(&fixture, "").await, ["demo/app"]);
    let get = pb::GetRepositoryRequest { name: "repositories/demo/app".into() };
    let repository = fixture.repositories().get_repository(get).await.unwrap().into_inner();
    assert_eq!(repository.image_tag_mutability(), pb::TagMutability::Immutable, "no tag moves by mistake");
    for filter in ["", "tagged = true", r#"tag = "v1""#] {
        let images = list_images(&fixture, "demo/app", filter).await;
        assert_eq!(images.len(), 1, "{filter}");
    }
    let request = pb::ListImagesRequest { parent: "repositories/demo/app".into(), page_size: 1, ..Default::default() };
    let page = fixture.images().list_images(request).await.unwrap().into_inner();
    assert_eq!((page.images.len(), page.next_page_token.as_str()), (1, ""), "the one that is left out is the youngest");

    let list = pb::ListOperationsRequest::default();
    let operations = fixture.operations().list_operations(list).await.unwrap().into_inner().operations;
    assert_eq!(operations[0].kind(), pb::OperationKind::Unspecified);
    let list = pb::ListOperationItemsRequest { parent: operations[0].name.clone(), ..Default::default() };
    assert_eq!(fixture.operations().list_operation_items(list).await.unwrap().into_inner().items.len(), 2);
    let lease = node::LeaseJobsRequest { node_id: "n1".into(), kinds: vec!["sync".into(), "warm".into()], limit: 10 };
    assert!(fixture.nodes("n1").lease_jobs(lease).await.unwrap().into_inner().jobs.is_empty());
    let cancel = pb::CancelOperationRequest { name: operations[0].name.clone() };
    let cancelled = fixture.operations().cancel_operation(cancel).await.unwrap().into_inner();
    assert!(cancelled.ended_count >= 1);
}
