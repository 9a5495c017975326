//! Templates: what is said about a repository before it exists, and what it is then.

use std::time::Duration;

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images, wait_until};
use http::StatusCode;

use crate::registry::{LIMIT, Registry};

#[tokio::test]
async fn a_first_pull_creates_what_the_dry_run_said() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let old = upstream.publish_image("team/app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    let template = pb::Template {
        prefix: "demo/team".to_owned(),
        image_tag_mutability: pb::TagMutability::MutableWithExclusion.into(),
        image_tag_mutability_exclusion_filters: vec!["v*".to_owned()],
        resource_tags: vec![pb::ResourceTag { key: "cost-center".to_owned(), value: "42".to_owned() }],
        ..Default::default()
    };
    let request = pb::CreateTemplateRequest {
        template_id: "teams".to_owned(),
        template: Some(template),
        request_id: String::new(),
    };
    registry.templates().create_template(request).await?;
    let request = pb::ExplainRuleRequest { image: "demo/team/app:v1".to_owned() };
    let said = registry.rules().explain_rule(request).await?.into_inner();
    assert_eq!(said.template, "templates/teams");
    assert_eq!(upstream.request_count(), 0);
    assert!(registry.repository_names().await?.is_empty());

    assert_eq!(registry.manifest("demo/team/app", "v1").await?.bytes, old.manifest_bytes);
    registry.listed("demo/team/app", "v1").await;
    let request = pb::GetRepositoryRequest { name: "repositories/demo/team/app".to_owned() };
    let made = registry.repositories().get_repository(request).await?.into_inner();
    let created = said.created.unwrap_or_default();
    assert_eq!((&made.name, &made.template, &made.rule_uid), (&created.name, &created.template, &created.rule_uid));
    assert_eq!(made.image_tag_mutability, created.image_tag_mutability);
    assert_eq!(made.image_tag_mutability_exclusion_filters, created.image_tag_mutability_exclusion_filters);
    assert_eq!((made.resource_tags.len(), &made.resource_tags), (1, &created.resource_tags));

    // The tag is exempt from those that may move, and the reasons of the answer say so.
    upstream.publish_image("team/app", "v1", &[images::random_bytes(2, 100)]);
    registry.clock.advance(Duration::from_secs(25 * 3600));
    let before = upstream.request_count();
    let answer = registry.manifest("demo/team/app", "v1").await?;
    assert_eq!((answer.status, &answer.bytes), (StatusCode::OK, &old.manifest_bytes));
    assert_eq!(upstream.request_count(), before);
    let explained = registry.explained(&answer).await?;
    assert!(explained.reasons.iter().any(|reason| reason.contains("as its template said")), "{explained:?}");

    // If it is deleted and pulled again, it is a new repository, created with the templates of that time.
    let request = pb::DeleteTemplateRequest { name: "templates/teams".to_owned(), ..Default::default() };
    registry.templates().delete_template(request).await?;
    let request = pb::DeleteRepositoryRequest { name: made.name.clone(), ..Default::default() };
    registry.repositories().delete_repository(request).await?;
    registry.manifest("demo/team/app", "v1").await?;
    wait_until(LIMIT, "it is listed again", async || {
        let request = pb::GetRepositoryRequest { name: made.name.clone() };
        let again = registry.repositories().get_repository(request).await.map(tonic::Response::into_inner);
        again.is_ok_and(|again| again.uid != made.uid && again.template.is_empty() && again.resource_tags.is_empty())
    })
    .await;
    Ok(())
}
