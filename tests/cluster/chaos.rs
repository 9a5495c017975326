//! Everything fails all the time, and pulls go on.
//!
//! A seed decides what fails when. Two minutes unless `ENTREPOT_CHAOS_SECONDS` says how long, which is enough for every kind
//! of fault; `ENTREPOT_CHAOS_SEED` says which seed. `scripts/suite chaos` runs an hour.
//!
//! Nothing here asserts a speed: how many pulls there were depends on the machine, and is printed.

mod excuse;
mod leaks;
mod library;
mod load;
mod schedule;
mod strikes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use entrepot_test_support::{FakeUpstream, Link};
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::client::{Client, Credential};
use crate::cluster::{Cluster, Company, Setup};
use crate::report::{report, seconds};
use leaks::{Held, Most};
use load::Load;
use schedule::{KINDS, Planned, SHORT, schedule};
use strikes::Field;

const NODES: usize = 3;
const CONTROL_PLANES: usize = 2;
/// How many of a thousand pulls may need another try without an excuse.
const UNEXCUSED_OF_A_THOUSAND: usize = 1;
/// Within which time all must be given back, and how often it is looked at what there is.
const QUIET: Duration = Duration::from_secs(60);
const SAMPLES: Duration = Duration::from_millis(500);
/// How often it is told how it goes.
const TELLING: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_every_pull_ends_with_the_right_bytes_and_nothing_is_left_behind() -> Result<()> {
    let length = seconds("ENTREPOT_CHAOS_SECONDS", schedule::SHORT.as_secs());
    let seed = seconds("ENTREPOT_CHAOS_SEED", 1).as_secs();
    let run = run(seed, length).await;
    if run.is_err() {
        eprintln!("again: ENTREPOT_CHAOS_SEED={seed} ENTREPOT_CHAOS_SECONDS={} scripts/suite chaos", length.as_secs());
    }
    run
}

async fn run(seed: u64, length: Duration) -> Result<()> {
    let setup = Setup {
        nodes: NODES,
        control_planes: CONTROL_PLANES,
        links: true,
        trace_ratio: "0.0",
        company: Company::Alone,
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let (cluster, upstream) = (Arc::new(cluster), Arc::new(FakeUpstream::start().await));
    let link = Link::start(upstream.address()).await;
    cluster.api().upstream_at("demo", &format!("http://{}", link.address()), None).await?;
    cluster.api().rule_to("demo", "demo").await?;
    let password = Credential::Password("AWS".to_owned(), cluster.api().login_token().await?);
    let client = Client::patient(&cluster.registry_url(), password);
    let field = Arc::new(Field::new(cluster.clone(), upstream, link, seed));
    let load = Load::new(field.clone(), client, seed);
    for _ in 0..20 {
        load.pull_new().await?;
    }
    let before: Vec<_> = cluster.nodes.iter().map(Held::by).collect();

    let (most, began) = (Most::default(), Instant::now());
    let pulls = telling(&load, &field, began, load.clone().run(began + length));
    let strikes = strike_all(&field, schedule(seed, length, NODES, CONTROL_PLANES), began);
    let (ended, ()) = watched(&cluster, &most, async { tokio::join!(pulls, strikes) }).await;
    tell(&load, &field, &most, began);
    ended?;
    judge(&load, &field, &most, length)?;
    none_left(&cluster, &before).await
}

/// Carries out what is planned, each in its time.
async fn strike_all(field: &Field, planned: Vec<Planned>, began: Instant) {
    join_all(planned.into_iter().map(async |planned| {
        tokio::time::sleep_until((began + planned.at).into()).await;
        field.strike(planned).await;
    }))
    .await;
}

/// Tells now and then how it goes.
async fn telling<T>(load: &Load, field: &Field, began: Instant, what: impl Future<Output = T>) -> T {
    let mut what = std::pin::pin!(what);
    loop {
        match tokio::time::timeout(TELLING, &mut what).await {
            Ok(result) => return result,
            Err(_) => {
                let (pulls, now) = (load.tally().pulls, field.now().join(", "));
                eprintln!("after {:.0?}: {pulls} pulls; at the moment: {now}", began.elapsed());
            }
        }
    }
}

/// Notes while something goes on how much there is of everything.
async fn watched<T>(cluster: &Cluster, most: &Most, what: impl Future<Output = T>) -> T {
    let (end, mut ended) = watch::channel(false);
    let watching = async {
        while !*ended.borrow() {
            most.see(leaks::count(cluster).await);
            let _ = tokio::time::timeout(SAMPLES, ended.changed()).await;
        }
    };
    let what = async {
        let result = what.await;
        end.send_replace(true);
        result
    };
    tokio::join!(what, watching).0
}

/// Tells what has come of it.
fn tell(load: &Load, field: &Field, most: &Most, began: Instant) {
    let (tally, mut kinds) = (load.tally(), BTreeMap::<String, usize>::new());
    let strikes = field.strikes();
    strikes.iter().for_each(|strike| *kinds.entry(strike.fault.kind()).or_default() += 1);
    report("faults", format!("{}: {kinds:?}", strikes.len()));
    report("members that were started again", field.starts());
    report(
        "pulls",
        format_args!(
            "{} in {:.0?}, {} MiB, the longest took {:.1?}; at once {}, excused {:?}, not excused {}",
            tally.pulls,
            began.elapsed(),
            tally.bytes >> 20,
            tally.longest,
            tally.at_once,
            tally.excused,
            tally.unexcused
        ),
    );
    report("fetches of the upstream", field.upstream.request_count());
    tally.told.iter().for_each(|told| eprintln!("not excused: {told}"));
    report("the most at once", leaks::line(&most.counts()));
}

/// Whether everything was there at some time that a fault can leave behind, and hardly a pull failed without one.
fn judge(load: &Load, field: &Field, most: &Most, length: Duration) -> Result<()> {
    let tally = load.tally();
    // Of fewer than a thousand, one.
    let allowed = (tally.pulls * UNEXCUSED_OF_A_THOUSAND / 1000).max(1);
    ensure!(
        tally.unexcused <= allowed,
        "{} of {} pulls needed another try without an excuse",
        tally.unexcused,
        tally.pulls
    );
    if length < SHORT {
        eprintln!("in less than {SHORT:?} some faults may not come: that each has come is not asserted");
        return Ok(());
    }
    let kinds: BTreeSet<_> = field.strikes().iter().map(|strike| strike.fault.kind()).collect();
    ensure!(kinds.len() == KINDS, "only {} of {KINDS} kinds of faults have come: {kinds:?}", kinds.len());
    for (name, count) in most.counts() {
        ensure!(
            count > 0.0 || name == "silent nodes",
            "there never were any {name}, so that none being left says nothing"
        );
    }
    Ok(())
}

/// Waits until everything is given back.
async fn none_left(cluster: &Cluster, before: &[Held]) -> Result<()> {
    let (quiet, mut counts) = (Instant::now(), leaks::count(cluster).await);
    while counts.values().any(|count| *count > 0.0) && quiet.elapsed() < QUIET {
        tokio::time::sleep(SAMPLES).await;
        counts = leaks::count(cluster).await;
    }
    let left = leaks::line(&counts);
    if counts.values().any(|count| *count > 0.0) {
        bail!("left after {:?}: {left}; {:?}", quiet.elapsed(), leaks::uploads(cluster).await);
    }
    report("everything was given back after", format!("{:.1?}", quiet.elapsed()));
    let folders = cluster.seaweed.upload_folders(&cluster.shared.store.bucket).await;
    report("folders of parts that SeaweedFS keeps and S3 does not list", folders);
    for (node, before) in cluster.nodes.iter().zip(before) {
        let mut held = Held::by(node);
        while !held.is_little(before) && quiet.elapsed() < QUIET {
            tokio::time::sleep(SAMPLES).await;
            held = Held::by(node);
        }
        let what = format!("`{}` when it was quiet for {:.0?}, and at first", node.name(), quiet.elapsed());
        report(&what, format_args!("{held}; {before}"));
        ensure!(held.is_little(before), "`{}` has or takes more than it may when it is quiet: {held}", node.name());
    }
    Ok(())
}
