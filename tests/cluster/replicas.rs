//! Two control planes at once: whichever is called, all nodes follow, and both tell the same.

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};
use http::StatusCode;

use crate::cluster::Cluster;
use crate::report::report;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_on_either_control_plane_has_reached_every_node_when_the_call_returns() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    cluster.api().upstream("hub", &upstream).await?;
    let apis: Vec<_> = cluster.control_planes.iter().map(|control_plane| cluster.api_of(control_plane)).collect();

    let mut took = Vec::new();
    for round in 0..10 {
        let (here, there) = (&apis[round % 2], &apis[(round + 1) % 2]);
        let (id, begun) = (format!("r{round}"), std::time::Instant::now());
        here.rule_to(&id, "hub").await?;
        took.push(begun.elapsed());
        for node in &cluster.nodes {
            let pulled = node.client().get(&format!("/v2/{id}/app/manifests/v1")).await?;
            assert_eq!(pulled.status, StatusCode::OK, "round {round} on `{}`", node.name());
        }
        there.delete_rule(&id).await?;
        for node in &cluster.nodes {
            let refused = node.client().get(&format!("/v2/{id}/other/manifests/v1")).await?;
            assert_eq!((refused.status, &*refused.code()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"), "round {round}");
        }
        assert!(here.rule_names().await?.is_empty());
    }
    report("a change of configuration with two control planes, median", format!("{:?}", crate::report::median(took)));
    for control_plane in &cluster.control_planes {
        let log = control_plane.program.log();
        assert!(!log.contains("lagging") && !log.contains("behind"), "{log}");
    }

    // A revoked key is refused by all nodes at once, whoever revoked it.
    let principal = pb::Principal { permission_set: pb::PermissionSet::Puller.into(), ..Default::default() };
    let principal_id = "robot".to_owned();
    let request = pb::CreatePrincipalRequest { principal_id, principal: Some(principal), request_id: String::new() };
    apis[0].principals().create_principal(request).await?;
    let request = pb::CreateAccessKeyRequest { parent: "principals/robot".to_owned(), request_id: String::new() };
    let created = apis[1].access_keys().create_access_key(request).await?.into_inner();
    let key = created.access_key.expect("a key");
    let robot = crate::client::Credential::Password(key.key_id.clone(), created.secret);
    for node in &cluster.nodes {
        assert_eq!(node.client().with(robot.clone()).get("/v2/").await?.status, StatusCode::OK);
    }
    apis[0].access_keys().revoke_access_key(pb::RevokeAccessKeyRequest { name: key.name }).await?;
    for node in &cluster.nodes {
        assert_eq!(node.client().with(robot.clone()).get("/v2/").await?.status, StatusCode::UNAUTHORIZED);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_control_planes_list_what_all_nodes_have_pulled() -> Result<()> {
    const REPOSITORIES: u64 = 20;
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    let mut expected = Vec::new();
    for number in 0..REPOSITORIES {
        upstream.publish_image(&format!("app-{number:02}"), "v1", &[images::random_bytes(number, 1000)]);
        let repository = format!("demo/app-{number:02}");
        cluster.nodes[usize::try_from(number)? % 2].client().pull(&repository, "v1").await?;
        expected.push(repository);
    }
    for control_plane in &cluster.control_planes {
        let api = cluster.api_of(control_plane);
        for repository in &expected {
            api.listed(repository, "v1").await;
        }
        assert_eq!(api.repository_names().await?, expected, "{}", control_plane.name());
    }

    // What is deleted through one is gone for both, and for both nodes, when the call returns.
    let request = pb::DeleteRepositoryRequest { name: format!("repositories/{}", expected[0]), ..Default::default() };
    cluster.api_of(&cluster.control_planes[1]).repositories().delete_repository(request).await?;
    cluster.api().delete_rule("demo").await?;
    assert_eq!(cluster.api().repository_names().await?, expected[1..]);
    for node in &cluster.nodes {
        let gone = node.client().get(&format!("/v2/{}/manifests/v1", expected[0])).await?;
        assert_eq!(gone.status, StatusCode::NOT_FOUND, "{}", node.name());
        let cached = node.client().get(&format!("/v2/{}/manifests/v1", expected[1])).await?;
        assert_eq!(cached.status, StatusCode::OK, "{}", node.name());
    }
    Ok(())
}
