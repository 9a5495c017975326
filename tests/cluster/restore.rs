//! The database comes back from a backup that is older than the bucket.

use std::time::Instant;

use anyhow::Result;
use entrepot_test_support::program::{built, try_run};
use entrepot_test_support::{FakeUpstream, images};
use http::StatusCode;
use tonic::Code;

use crate::cluster::{Cluster, admin_key};
use crate::report::report;

const BEFORE: u64 = 5;
const AFTER: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_is_not_written_to_before_the_operator_says_so_and_then_lists_everything() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    cluster.api().rule_to("retired", "demo").await?;
    let mut repositories = pull(&cluster, &upstream, 0..BEFORE).await?;

    let dump = cluster.folder().join("backup.dump");
    let dump = dump.to_str().expect("a path that is text");
    cluster.postgres_program("pg_dump", &["--format=custom", "--file", dump, &cluster.database]);
    repositories.extend(pull(&cluster, &upstream, BEFORE..BEFORE + AFTER).await?);
    cluster.api().rule_to("late", "demo").await?;
    cluster.api().delete_rule("retired").await?;
    restore_database(&cluster, dump).await;

    // Pulls go on with what was published last; the API says what to do.
    for node in &cluster.nodes {
        node.client().pull("late/app-1", "v1").await?;
    }
    for control_plane in &cluster.control_planes {
        let status =
            cluster.api_of(control_plane).rule_to("refused", "demo").await.expect_err("the database is behind");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("entrepot admin restore"), "{status}");
    }

    for control_plane in &cluster.control_planes {
        control_plane.program.stop().await;
    }
    // What these have repaired already is to be repaired by the command.
    cluster.sql("TRUNCATE repositories CASCADE");
    let configuration = cluster.folder().join("control-1.toml");
    let configuration = configuration.to_str().expect("a path that is text");
    let begun = Instant::now();
    let arguments = ["admin", "restore", "--config", configuration];
    let (status, stdout, stderr) = try_run(built("entrepot"), &arguments, &[("ENTREPOT_BOOTSTRAP_KEY", &admin_key())]);
    let said = format!("{}{stderr}", String::from_utf8_lossy(&stdout));
    assert!(status.success() && said.contains("26 repositories: 26 added"), "{said}");
    report("`entrepot admin restore` said", format!("{:?} after {:?}", said.trim(), begun.elapsed()));
    for control_plane in &cluster.control_planes {
        control_plane.start().await;
    }

    let begun = Instant::now();
    repositories.push("late/app-1".to_owned());
    repositories.sort();
    for control_plane in &cluster.control_planes {
        let api = cluster.api_of(control_plane);
        for repository in &repositories {
            api.listed(repository, "v1").await;
        }
        assert_eq!(api.repository_names().await?, repositories, "{}", control_plane.name());
        assert_eq!(api.rule_names().await?, ["rules/demo", "rules/retired"]);
    }
    report("every image is listed this long after the restore", format!("{:?}", begun.elapsed()));

    // New rules reach every node, and so does what the backup says of the old ones.
    cluster.api().rule_to("new", "demo").await?;
    for node in &cluster.nodes {
        // The call waits for nodes, but not for long, and these have to find the control planes again first.
        let covered = async || node.client().pull("new/app-1", "v1").await.is_ok();
        cluster.until("the node knows the new rule", covered).await;
        node.client().pull("retired/app-1", "v1").await?;
        let gone = node.client().get("/v2/late/app-2/manifests/v1").await?;
        assert_eq!((gone.status, &*gone.code()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"), "{}", node.name());
        node.client().pull("late/app-1", "v1").await?;
    }
    Ok(())
}

/// First pulls, on each node in turn, until they are listed.
async fn pull(cluster: &Cluster, upstream: &FakeUpstream, numbers: std::ops::Range<u64>) -> Result<Vec<String>> {
    let mut repositories = Vec::new();
    for number in numbers {
        upstream.publish_image(&format!("app-{number}"), "v1", &[images::random_bytes(number, 2000)]);
        let repository = format!("demo/app-{number}");
        cluster.nodes[usize::try_from(number)? % 2].client().pull(&repository, "v1").await?;
        repositories.push(repository);
    }
    for repository in &repositories {
        cluster.api().listed(repository, "v1").await;
    }
    Ok(repositories)
}

/// As an operator would: control planes stopped, the database made anew from the dump, control planes started.
async fn restore_database(cluster: &Cluster, dump: &str) {
    for control_plane in &cluster.control_planes {
        control_plane.program.stop().await;
    }
    cluster.postgres_program("dropdb", &["--force", &cluster.database]);
    cluster.postgres_program("createdb", &[&cluster.database]);
    cluster.postgres_program("pg_restore", &["--exit-on-error", "--dbname", &cluster.database, dump]);
    for control_plane in &cluster.control_planes {
        control_plane.start().await;
    }
}
