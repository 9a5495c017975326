//! A change of configuration, and a pull right after it.

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images, wait_until};
use http::StatusCode;

use crate::registry::{LIMIT, Registry};

#[tokio::test]
async fn a_rule_that_is_created_changed_or_deleted_is_seen_by_the_next_pull() -> Result<()> {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let one = first.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let two = second.publish_image("app", "v1", &[images::random_bytes(2, 100)]);
    let registry = Registry::start().await?;
    registry.upstream("first", &first).await?;
    registry.upstream("second", &second).await?;
    let digest = async |name: &str| -> Result<(StatusCode, Option<String>)> {
        let answer = registry.manifest(name, "v1").await?;
        Ok((answer.status, answer.header("docker-content-digest").map(str::to_owned)))
    };

    for round in 0..20 {
        let id = format!("r{round}");
        let name = format!("{id}/app");
        assert_eq!(digest(&name).await?.0, StatusCode::NOT_FOUND);
        let mut rule = registry.rule_to(&id, "first").await?;
        assert_eq!(digest(&name).await?, (StatusCode::OK, Some(one.manifest.clone())), "round {round}");

        rule.upstream = "upstreams/second".to_owned();
        let request = pb::UpdateRuleRequest { rule: Some(rule), update_mask: Some(mask(&["upstream"])) };
        let mut rule = registry.rules().update_rule(request).await?.into_inner();
        assert_eq!(digest(&name).await?, (StatusCode::OK, Some(two.manifest.clone())), "round {round}");

        rule.prefix = format!("{id}/moved");
        let request = pb::UpdateRuleRequest { rule: Some(rule), update_mask: Some(mask(&["prefix"])) };
        let rule = registry.rules().update_rule(request).await?.into_inner();
        assert_eq!(digest(&format!("{id}/moved/app")).await?.1, Some(two.manifest.clone()), "round {round}");

        let request = pb::DeleteRuleRequest { name: rule.name, etag: String::new() };
        registry.rules().delete_rule(request).await?;
        let before = second.request_count();
        assert_eq!(
            digest(&name).await?,
            (StatusCode::OK, Some(two.manifest.clone())),
            "what is cached is still served"
        );
        let unknown = registry.manifest(&name, "v2").await?;
        assert_eq!((unknown.status, unknown.code().as_str()), (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"));
        let nothing = registry.manifest(&format!("{id}/other"), "v1").await?;
        assert_eq!((nothing.status, nothing.code().as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"));
        assert_eq!(second.request_count(), before, "without a rule nobody is asked");
    }
    Ok(())
}

#[tokio::test]
async fn a_repository_belongs_to_the_rule_that_fills_it_now() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    let first = registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    registry.listed("demo/app", "v1").await;
    let get = async || -> Result<pb::Repository> {
        let request = pb::GetRepositoryRequest { name: "repositories/demo/app".to_owned() };
        Ok(registry.repositories().get_repository(request).await?.into_inner())
    };
    let old = get().await?;
    assert_eq!((old.cached, old.rule.as_str(), &old.rule_uid), (true, "rules/demo", &first.uid));

    let name = "rules/demo".to_owned();
    registry.rules().delete_rule(pb::DeleteRuleRequest { name, etag: String::new() }).await?;
    let orphan = get().await?;
    assert_eq!((orphan.rule.as_str(), &orphan.rule_uid), ("", &first.uid));

    // Under the next rule, the tag counts as never confirmed; the repository stays the same.
    let second = registry.rule_to("demo", "demo").await?;
    registry.manifest("demo/app", "v1").await?;
    wait_until(LIMIT, "the repository has its new rule", async || {
        get().await.is_ok_and(|now| now.rule == "rules/demo" && now.rule_uid == second.uid && now.uid == old.uid)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn under_another_rule_links_do_not_carry_over() -> Result<()> {
    let (private, public) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let secret = private.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &private).await?;
    registry.manifest("demo/app", "v1").await?;
    for blob in secret.blobs() {
        assert_eq!(registry.blob("demo/app", &blob).await?.status, StatusCode::OK);
    }

    let name = "rules/demo".to_owned();
    registry.rules().delete_rule(pb::DeleteRuleRequest { name, etag: String::new() }).await?;
    registry.upstream("public", &public).await?;
    registry.rule_to("demo", "public").await?;
    for path in
        [format!("manifests/{}", secret.manifest), format!("blobs/{}", secret.layers[0]), "manifests/v1".to_owned()]
    {
        assert_eq!(registry.get(&format!("/v2/demo/app/{path}")).await?.status, StatusCode::NOT_FOUND, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_names_somebody_elses_digest_does_not_show_it() -> Result<()> {
    let (private, public) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let secret = private.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    registry.rule("private", &private).await?;
    registry.rule("public", &public).await?;
    registry.manifest("private/app", "v1").await?;
    let layer = &secret.layers[0];
    assert_eq!(registry.blob("private/app", layer).await?.status, StatusCode::OK);

    // The public upstream has a manifest that names the private layer, but not the layer itself.
    public.publish_manifest("evil", Some("v1"), &secret.media_type, &secret.manifest_bytes);
    assert_eq!(registry.manifest("public/evil", "v1").await?.status, StatusCode::OK);
    let answer = registry.blob("public/evil", layer).await?;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
    assert_eq!(registry.blob("private/app", layer).await?.status, StatusCode::OK);
    Ok(())
}

fn mask(paths: &[&str]) -> prost_types::FieldMask {
    prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }
}
