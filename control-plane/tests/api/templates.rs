//! Templates: their life cycle, what is refused, and what a first pull would create with them.

use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::TagMutability;
use prost_types::FieldMask;
use tonic::Code;

use crate::content::{Repository, report};
use crate::fixture::{Fixture, fields, kind};

fn tag(key: &str, value: &str) -> pb::ResourceTag {
    pb::ResourceTag { key: key.to_owned(), value: value.to_owned() }
}

fn create(id: &str, prefix: &str, mutability: TagMutability, exclusions: &[&str]) -> pb::CreateTemplateRequest {
    pb::CreateTemplateRequest {
        template_id: id.to_owned(),
        template: Some(pb::Template {
            prefix: prefix.to_owned(),
            description: "made by a test".to_owned(),
            image_tag_mutability: mutability.into(),
            image_tag_mutability_exclusion_filters: exclusions.iter().map(ToString::to_string).collect(),
            resource_tags: vec![tag("by", id)],
            ..Default::default()
        }),
        request_id: String::new(),
    }
}

async fn explain(fixture: &Fixture, image: &str) -> pb::ExplainRuleResponse {
    let request = pb::ExplainRuleRequest { image: image.to_owned() };
    fixture.rules().explain_rule(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn templates_are_created_listed_changed_and_deleted() {
    let fixture = Fixture::start().await;
    let mut templates = fixture.templates();
    let request = pb::CreateTemplateRequest {
        request_id: uuid::Uuid::now_v7().to_string(),
        ..create("hub", "", TagMutability::ImmutableWithExclusion, &["latest"])
    };
    let made = templates.create_template(request.clone()).await.unwrap().into_inner();
    assert_eq!((made.name.as_str(), made.prefix.as_str()), ("templates/hub", "hub"));
    assert_eq!(made.applied_for, [i32::from(pb::template::AppliedFor::PullThroughCache)]);
    assert_eq!(templates.create_template(request).await.unwrap().into_inner(), made, "a retry gets the same answer");
    for (id, prefix) in [("hub", "elsewhere"), ("other", "hub/")] {
        let error = templates.create_template(create(id, prefix, TagMutability::Mutable, &[])).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{id}");
    }
    templates.create_template(create("root", "ROOT", TagMutability::Unspecified, &[])).await.unwrap();
    let request = pb::ListTemplatesRequest { page_size: 1, ..Default::default() };
    let page = templates.list_templates(request).await.unwrap().into_inner();
    let request = pb::ListTemplatesRequest { page_size: 1, page_token: page.next_page_token };
    let last = templates.list_templates(request).await.unwrap().into_inner();
    let names = [&page.templates[0].name, &last.templates[0].name];
    assert_eq!(
        (names, last.next_page_token.as_str()),
        ([&"templates/hub".to_owned(), &"templates/root".to_owned()], "")
    );

    let changed = pb::Template {
        name: made.name.clone(),
        image_tag_mutability: TagMutability::Immutable.into(),
        etag: made.etag.clone(),
        ..Default::default()
    };
    let paths = ["image_tag_mutability", "image_tag_mutability_exclusion_filters"].map(str::to_owned).to_vec();
    let request = pb::UpdateTemplateRequest { template: Some(changed), update_mask: Some(FieldMask { paths }) };
    let updated = templates.update_template(request.clone()).await.unwrap().into_inner();
    assert_eq!(updated.image_tag_mutability(), TagMutability::Immutable);
    assert_eq!((&updated.description, &updated.resource_tags), (&made.description, &made.resource_tags));
    assert_eq!(templates.update_template(request).await.unwrap_err().code(), Code::Aborted, "its etag is stale");
    let moved = pb::Template { name: made.name.clone(), prefix: "quay".to_owned(), ..Default::default() };
    let request = pb::UpdateTemplateRequest { template: Some(moved), update_mask: None };
    assert_eq!(fields(&templates.update_template(request).await.unwrap_err()), ["template.prefix"]);

    let request = pb::DeleteTemplateRequest { name: made.name.clone(), ..Default::default() };
    assert_eq!(templates.delete_template(request.clone()).await.unwrap().into_inner(), updated);
    assert_eq!(templates.delete_template(request).await.unwrap_err().code(), Code::NotFound);
    let gone = templates.get_template(pb::GetTemplateRequest { name: made.name }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test]
async fn a_template_that_promises_what_does_not_come_is_refused_with_the_field_named() {
    let fixture = Fixture::start().await;
    let mut templates = fixture.templates();
    let refused = |template: pb::Template| pb::CreateTemplateRequest {
        template_id: "hub".to_owned(),
        template: Some(template),
        request_id: String::new(),
    };
    let kms = pb::EncryptionConfiguration { encryption_type: "KMS".to_owned(), kms_key: "key".to_owned() };
    for (template, field, said) in [
        (pb::Template { lifecycle_policy: "{}".into(), ..Default::default() }, "lifecycle_policy", "not supported yet"),
        (
            pb::Template { repository_policy: "{}".into(), ..Default::default() },
            "repository_policy",
            "not supported yet",
        ),
        (
            pb::Template { encryption_configuration: Some(kms), ..Default::default() },
            "encryption_configuration",
            "not supported yet",
        ),
        (pb::Template { custom_role_arn: "arn".into(), ..Default::default() }, "custom_role_arn", "means nothing here"),
        (
            pb::Template { applied_for: vec![pb::template::AppliedFor::CreateOnPush.into()], ..Default::default() },
            "applied_for[0]",
            "not supported yet",
        ),
        (
            pb::Template { image_tag_mutability_exclusion_filters: vec!["v*".into()], ..Default::default() },
            "image_tag_mutability_exclusion_filters",
            "MUTABLE_WITH_EXCLUSION",
        ),
        (
            pb::Template { resource_tags: vec![tag("a;b", "")], ..Default::default() },
            "resource_tags[0]",
            "key of 1 to 128",
        ),
    ] {
        let error = templates.create_template(refused(template)).await.unwrap_err();
        assert_eq!(fields(&error), [format!("template.{field}")], "{error}");
        assert!(error.message().contains(said), "{error}");
        assert_eq!(kind(&error).0, Code::InvalidArgument);
    }
    // Updates are checked in the same way.
    templates.create_template(create("hub", "", TagMutability::Mutable, &[])).await.unwrap();
    let template = pb::Template { name: "templates/hub".into(), lifecycle_policy: "{}".into(), ..Default::default() };
    let request = pb::UpdateTemplateRequest { template: Some(template), update_mask: None };
    assert_eq!(fields(&templates.update_template(request).await.unwrap_err()), ["template.lifecycle_policy"]);
}

#[tokio::test]
async fn a_dry_run_says_what_a_first_pull_would_create_and_creates_nothing() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    fixture.create_rule("hub", "quay").await;
    let plain = explain(&fixture, "hub/team/app:v1").await;
    let created = plain.created.unwrap();
    assert_eq!((plain.template.as_str(), created.image_tag_mutability()), ("", TagMutability::Mutable));
    let mut templates = fixture.templates();
    for (id, prefix) in [("hub", "hub"), ("team", "hub/team"), ("root", "ROOT"), ("elsewhere", "hub/tea")] {
        templates
            .create_template(create(id, prefix, TagMutability::ImmutableWithExclusion, &["latest"]))
            .await
            .unwrap();
    }
    let answer = explain(&fixture, "hub/team/app:v1").await;
    assert_eq!((answer.template.as_str(), answer.repository_exists), ("templates/team", false));
    assert!(answer.explanation.contains("by the template `team`"), "{}", answer.explanation);
    assert!(answer.explanation.contains("IMMUTABLE_WITH_EXCLUSION"), "{}", answer.explanation);
    assert_eq!((answer.window, answer.mode()), (None, pb::rule::Mode::Unspecified), "the tag will never move");
    assert!(explain(&fixture, "hub/team/app:latest").await.window.is_some(), "this one is excluded");
    let created = answer.created.unwrap();
    assert_eq!((created.name.as_str(), created.rule.as_str()), ("repositories/hub/team/app", "rules/hub"));
    assert_eq!((created.template.as_str(), &created.resource_tags), ("templates/team", &vec![tag("by", "team")]));
    let listed = fixture.repositories().list_repositories(pb::ListRepositoriesRequest::default()).await.unwrap();
    assert!(listed.into_inner().repositories.is_empty(), "a dry run creates nothing");

    // Once the repository exists, its own settings count, and no template.
    let app = Repository { name: "hub/team/app".parse().unwrap(), incarnation: uuid::Uuid::now_v7() };
    let settings = node::RepositorySettings {
        template_id: "old".to_owned(),
        tag_mutability: "IMMUTABLE".to_owned(),
        resource_tags: vec![node::ResourceTag { key: "team".to_owned(), value: "web".to_owned() }],
        ..Default::default()
    };
    let mut event = app.created();
    if let Some(node::event::Kind::RepositoryCreated(created)) = &mut event.kind {
        created.settings = Some(settings);
    }
    report(&fixture, vec![event]).await;
    let request = pb::GetRepositoryRequest { name: "repositories/hub/team/app".to_owned() };
    let repository = fixture.repositories().get_repository(request).await.unwrap().into_inner();
    assert_eq!(
        (repository.template.as_str(), repository.image_tag_mutability()),
        ("templates/old", TagMutability::Immutable)
    );
    assert_eq!(repository.resource_tags, [tag("team", "web")]);
    let answer = explain(&fixture, "hub/team/app:latest").await;
    assert_eq!((answer.template.as_str(), answer.repository_exists, answer.created), ("", true, None));
    assert_eq!(answer.window, None, "its tags never move");
}
