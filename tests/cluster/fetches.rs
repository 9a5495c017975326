//! How often many clients on several nodes have one cold blob fetched, beside CNCF Distribution as a proxy, each node
//! of which is alone.
//!
//! Short in CI; `ENTREPOT_FETCHES=full` is the long form, and `scripts/suite fetches` runs it. The report is a table
//! and a plot, which stay outside the tree.

mod distribution;
mod table;

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use entrepot_test_support::{FakeUpstream, Fault, images};
use futures_util::future::try_join_all;

use crate::client::{Client, Credential};
use crate::cluster::{Cluster, Company, Setup};
use crate::reader::{Wanted, read};
use crate::report::report;
use distribution::Distribution;
use table::{Cell, Table};

const NODES: [usize; 4] = [1, 2, 3, 5];
/// How fast the upstream is: slow enough for all clients to come while the blob does.
const SHAPED: u64 = 2 << 20;
/// What each repository is called below the rule.
const REPOSITORY: &str = "app";

/// How many clients want how many blobs of which size, one blob after the other.
struct Form {
    clients: &'static [usize],
    blobs: u64,
    size: usize,
}

impl Form {
    fn of_environment() -> Self {
        match std::env::var("ENTREPOT_FETCHES").as_deref() {
            Ok("full") => Self { clients: &[1, 3, 10, 50, 200], blobs: 3, size: 2 << 20 },
            Ok("") | Err(_) => Self { clients: &[1, 40], blobs: 1, size: 1 << 20 },
            Ok(other) => panic!("ENTREPOT_FETCHES is `full` or nothing, and not `{other}`"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_clients_on_any_number_of_nodes_has_a_blob_fetched_once() -> Result<()> {
    let most = NODES.into_iter().max().unwrap_or_default();
    let (form, upstream) = (Form::of_environment(), FakeUpstream::start().await);
    let Some(cluster) = Cluster::start_with(Setup { nodes: most, company: Company::Alone, ..Setup::default() }).await?
    else {
        return Ok(());
    };
    cluster.api().rule("demo", &upstream).await?;
    let password = Credential::Password("AWS".to_owned(), cluster.api().login_token().await?);
    let login = Client::of(&cluster.registry_url(), password).log_in("demo/app").await?.credential().clone();
    let ours: Vec<_> = cluster.nodes.iter().map(|node| Client::patient(&node.registry_url(), login.clone())).collect();
    let ours = Side { name: "Entrepot", clients: ours, path: "/v2/demo/app/blobs/" };
    let theirs = Distribution::start(most, &upstream, cluster.folder()).await;
    let theirs = theirs.as_ref().map(|distribution| {
        let clients = distribution.urls().map(|url| Client::patient(&url, Credential::Nobody)).collect();
        Side { name: "Distribution", clients, path: "/v2/app/blobs/" }
    });

    let (mut table, mut seed) = (Table::new(form.size), 0);
    for side in [Some(ours), theirs].into_iter().flatten() {
        // As on any day, each node has been asked for something before.
        let small = upstream.publish_blob(REPOSITORY, b"small");
        for client in &side.clients {
            client.get(&format!("{}{small}", side.path)).await?;
        }
        for nodes in NODES {
            for &clients in form.clients {
                let (before, began) = (table.fetches(), Instant::now());
                for _ in 0..form.blobs {
                    seed += 1;
                    let bytes = Bytes::from(images::random_bytes(seed, form.size));
                    table.add(
                        Cell { side: side.name, nodes, clients },
                        side.fetch(&upstream, bytes, nodes, clients).await?,
                    );
                }
                let fetches = table.fetches() - before;
                let what = format!("fetches of {} by {clients} clients over {nodes} nodes", side.name);
                report(&what, format_args!("{fetches} of {} blobs, in {:.1?}", form.blobs, began.elapsed()));
            }
        }
    }
    report("the table and the plot are in", table.write()?.display());
    let more: Vec<_> = table.cells().filter(|(cell, mean)| cell.side == "Entrepot" && *mean != 1.0).collect();
    ensure!(more.is_empty(), "not fetched once: {more:?}");
    Ok(())
}

/// A registry with several nodes.
struct Side {
    name: &'static str,
    /// A client of each node.
    clients: Vec<Client>,
    /// Where its blobs are.
    path: &'static str,
}

impl Side {
    /// Has clients on the first `nodes` nodes read a new blob, and says how often it was fetched.
    async fn fetch(&self, upstream: &FakeUpstream, bytes: Bytes, nodes: usize, clients: usize) -> Result<usize> {
        let digest = upstream.publish_blob(REPOSITORY, &bytes);
        upstream.script(&digest, Fault::Rate(SHAPED));
        let wanted = Wanted { path: format!("{}{digest}", self.path), digest, bytes };
        let reads = (0..clients).map(|number| {
            let (wanted, client) = (wanted.clone(), self.clients[number % nodes].clone());
            tokio::spawn(async move { read(&wanted, &client, &client, Instant::now(), || 0).await })
        });
        for seen in try_join_all(reads.collect::<Vec<_>>()).await? {
            let cuts = seen?.cuts;
            ensure!(cuts.is_empty(), "{}: a reader was cut by {cuts:#?}", self.name);
        }
        let fetches = upstream.fetches_of(&wanted.digest);
        upstream.remove(REPOSITORY, &wanted.digest);
        Ok(fetches)
    }
}
