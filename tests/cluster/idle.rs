//! What an idle cluster asks of its bucket, counted on the way there; and by arithmetic what each of many nodes would.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use entrepot_test_support::wait_until;

use crate::cluster::{Cluster, Company, Member, Setup};
use crate::report::{report, seconds};

const NODES: usize = 3;
/// How many nodes a large cluster has.
const MANY: f64 = 30.0;
/// What each node may ask of its bucket in a minute.
const REQUESTS: f64 = 18.0;
/// Until the nodes know each other, and have been known for long enough to hold anything.
const KNOWN: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_nodes_ask_their_bucket_seldom_also_where_there_are_many() -> Result<()> {
    let watched = seconds("ENTREPOT_IDLE_SECONDS", 60);
    let setup = Setup { nodes: NODES, links: true, company: Company::Any, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    for node in &cluster.nodes {
        wait_until(KNOWN, "the node holds records", async || {
            let (known, hold) =
                (node.metric("entrepot_nodes", &[]), node.metric("entrepot_memory_hold_time_seconds", &[]));
            known.await.is_ok_and(|nodes| nodes == NODES as f64) && hold.await.is_ok_and(|time| time > 0.0)
        })
        .await;
    }
    let members = || cluster.nodes.iter().chain(&cluster.control_planes);
    members().for_each(|member| drop(member.links().store.take_requests()));
    tokio::time::sleep(watched).await;
    let minutes = watched.as_secs_f64() / 60.0;
    let nodes = count(&cluster.nodes, minutes);
    let control_planes = count(&cluster.control_planes, minutes);
    for (kind, asked) in [("node", &nodes), ("control plane", &control_planes)] {
        let all: f64 = asked.values().sum();
        report(
            &format!("requests of each idle {kind} in a minute, over {watched:?}"),
            format_args!("{all:.1}: {asked:.2?}"),
        );
    }
    let all: f64 = nodes.values().sum();
    // This alone grows with the others.
    let of_others = nodes.get("GET nodes").copied().unwrap_or_default();
    let of_many = all - of_others + of_others / (NODES - 1) as f64 * (MANY - 1.0);
    report(&format!("requests of each of {MANY} idle nodes in a minute, by arithmetic"), format_args!("{of_many:.1}"));
    assert!(nodes.contains_key("LIST nodes") && nodes.contains_key("PUT nodes"), "they tell each other: {nodes:?}");
    // What another node left behind is looked for now and then.
    let events: f64 = nodes.iter().filter(|(what, _)| what.ends_with(" events")).map(|(_, count)| count).sum();
    assert!(events <= 1.0, "nobody wrote one: {nodes:?}");
    assert!(all <= REQUESTS && of_many <= REQUESTS, "{nodes:?}");
    Ok(())
}

/// What each of the members has asked of the bucket in a minute: how often, by method and folder.
fn count(members: &[Member], minutes: f64) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for request in members.iter().flat_map(|member| member.links().store.take_requests()) {
        *counts.entry(what(&request)).or_default() += 1.0 / minutes / members.len() as f64;
    }
    counts
}

/// `GET nodes` of `GET /bucket/registry/nodes/node-1`, and `LIST nodes` of a listing.
fn what(request: &str) -> String {
    let (method, path) = request.split_once(' ').unwrap_or((request, ""));
    let path = path.replace("%2F", "/");
    let (method, folders) = match path.split_once("prefix=") {
        Some((_, prefix)) => ("LIST", prefix),
        None => (method, path.trim_start_matches('/').split_once('/').unwrap_or_default().1),
    };
    let folder = folders.split(['?', '&']).next().unwrap_or_default().split('/').nth(1).unwrap_or_default();
    format!("{method} {folder}")
}
