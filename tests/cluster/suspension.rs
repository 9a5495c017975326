//! A node that was suspended for longer than a change of the configuration waits for it.

use std::time::Duration;

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};
use tokio::time::sleep;

use crate::cluster::{Cluster, Company, Setup};

const SUSPENDED: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_suspended_does_not_fill_by_a_rule_that_was_deleted_meanwhile() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let setup = Setup { nodes: 2, control_planes: 1, links: true, company: Company::Any, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let (api, node) = (cluster.api(), &cluster.nodes[1]);
    api.rule("demo", &upstream).await?;
    upstream.publish_image("app", "first", &[images::random_bytes(1, 1000)]);
    node.client().pull("demo/app", "first").await?;
    upstream.publish_image("app", "second", &[images::random_bytes(2, 1000)]);

    // The control plane does not tell it either, so that it knows from nobody but itself that time has passed.
    node.links().apis.iter().for_each(|link| link.refuse());
    node.program.freeze();
    let request = pb::DeleteRuleRequest { name: "rules/demo".to_owned(), etag: String::new() };
    api.rules().delete_rule(request).await?;
    sleep(SUSPENDED).await;
    node.program.thaw();

    let client = node.client();
    assert!(client.pull("demo/app", "second").await.is_err(), "filled by a rule that has gone");
    assert!(upstream.log().iter().all(|request| !request.path.contains("second")), "the upstream was asked");
    client.pull("demo/app", "first").await?;
    Ok(())
}
