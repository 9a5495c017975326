//! Nothing stale: three nodes are asked at random while tags move, things are deleted and synced, rules go and come, and
//! everything fails. Then it is judged, from what was called and answered when, which answers must not have been.
//!
//! A seed decides who does what in which order; how it meets is up to the machine. 40 seconds unless
//! `ENTREPOT_CHECKER_SECONDS` says how long; `ENTREPOT_CHECKER_SEED` says which seed. `scripts/suite checker` takes ten
//! minutes, in which some faults outlast the time for which a silent node counts as alive.

mod deeds;
mod faults;
mod history;
mod judge;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use entrepot_proto::v1 as pb;
use entrepot_test_support::wait_until;
use futures_util::future::join_all;
use http::Method;

use crate::cluster::{Cluster, Setup};
use crate::dice::Dice;
use crate::report::{report, seconds};
use deeds::Deed;
use faults::{HANDS, strike_all};
use judge::judge;
use world::World;

const NODES: usize = 3;
/// How long nodes hold what they have read, unless it is set; and until they have been known for long enough to do so.
const HOLD: Duration = Duration::from_secs(5);
const KNOWN: Duration = Duration::from_secs(90);
/// A rule whose tags are moved by calls alone, one whose tags pulls and automatic syncs move, and one that goes and comes.
const STEADY: &str = "steady";
const BRISK: &str = "brisk";
const FLUX: &str = "flux";
/// How long a tag of the brisk rule is trusted, and how often one moves.
const WINDOW_SECONDS: i64 = 8;
const MOVES: Duration = Duration::from_millis(700);
/// How many pull from each node, and how many operators there are.
const PULLERS: usize = 2;
const OPERATORS: usize = 4;
/// The longest that somebody who pulls, or an operator, does nothing.
const IDLE_MS: (usize, usize) = (60, 400);
/// A run of that length has some faults that last long.
const LONG: Duration = Duration::from_secs(300);
/// How much longer a run may take until each thing has happened.
const MORE: Duration = Duration::from_secs(90);
/// How long it may take until all is as it was.
const WHOLE: Duration = Duration::from_secs(90);
/// How many wrong answers are told.
const TOLD: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_no_answer_is_older_than_what_a_call_had_made_so_before_the_request() -> Result<()> {
    let length = seconds("ENTREPOT_CHECKER_SECONDS", 40);
    let seed = seconds("ENTREPOT_CHECKER_SEED", 1).as_secs();
    report("the seed of the checker", seed);
    let run = run(seed, length).await;
    if run.is_err() {
        eprintln!(
            "again: ENTREPOT_CHECKER_SEED={seed} ENTREPOT_CHECKER_SECONDS={} scripts/suite checker",
            length.as_secs()
        );
    }
    run
}

async fn run(seed: u64, length: Duration) -> Result<()> {
    let setup = Setup { nodes: NODES, control_planes: 1, links: true, trace_ratio: "0.0", ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let world = Arc::new(World::new(cluster, seed).await?);
    make_rules(&world).await?;
    for node in &world.cluster.nodes {
        wait_until(KNOWN, "the node holds records", async || {
            let held = node.metric("entrepot_memory_hold_time_seconds", &[]).await;
            held.is_ok_and(|held| held == HOLD.as_secs_f64())
        })
        .await;
    }

    let (until, is_over) = (world.now() + length, AtomicBool::new(false));
    // On a machine that is busy it takes longer until each thing has happened.
    let goes_on = || world.now() < until || (world.now() < until + MORE && missing(&world).is_some());
    let striking = async {
        let strike = |(hand, faults): (u64, &&[_])| {
            let (world, faults, goes_on) = (world.clone(), faults.to_vec(), &goes_on);
            let mut dice = Dice(seed + 1000 * (hand + 1));
            async move { strike_all(&world, &faults, &mut dice, goes_on, length >= LONG).await }
        };
        join_all((0..).zip(HANDS.iter()).map(strike)).await;
        is_over.store(true, Ordering::SeqCst);
    };
    let pulling = join_all((0..NODES * PULLERS).map(|number| keep_pulling(&world, number, seed, &is_over)));
    let operating = join_all((0..OPERATORS).map(|number| keep_operating(&world, number, seed, &is_over)));
    let (_, _, _, (), ruled) = tokio::join!(
        striking,
        pulling,
        operating,
        keep_moving(&world, seed, &is_over),
        keep_renewing(&world, &is_over)
    );
    ruled?;
    all_agree(&world).await;
    world.settle().await;
    decide(&world)
}

/// The upstream, and the rules to it.
async fn make_rules(world: &World) -> Result<()> {
    let api = world.cluster.api();
    api.rule(STEADY, &world.upstream).await?;
    api.rule_to(FLUX, STEADY).await?;
    let window = Some(prost_types::Duration { seconds: WINDOW_SECONDS, nanos: 0 });
    let rule = pb::Rule { upstream: format!("upstreams/{STEADY}"), window, ..Default::default() };
    let request = pb::CreateRuleRequest { rule_id: BRISK.to_owned(), rule: Some(rule), request_id: String::new() };
    api.rules().create_rule(request).await?;
    let all: Vec<usize> = [STEADY, BRISK, FLUX].iter().flat_map(|rule| world.tags_of(rule, None)).collect();
    let pulls = all.iter().map(|subject| world.pull(0, *subject));
    join_all(pulls).await;
    Ok(())
}

/// Asks one node again and again.
async fn keep_pulling(world: &World, number: usize, seed: u64, is_over: &AtomicBool) {
    let (node, mut dice) = (number % NODES, Dice(seed + 1 + number as u64));
    let subjects: Vec<usize> = [STEADY, BRISK, FLUX].iter().flat_map(|rule| world.tags_of(rule, None)).collect();
    while !is_over.load(Ordering::SeqCst) {
        let subject = *dice.any(&subjects);
        match dice.below(10).unwrap_or_default() {
            0 => world.pull(node, subject).await,
            1 | 2 => drop(world.ask(node, subject, Method::HEAD).await),
            3 => {
                let digests = world.digests_of(subject);
                let recent = &digests[digests.len().saturating_sub(3)..];
                let digest: &String = dice.any(recent);
                world.ask_by_digest(node, subject, digest).await;
            }
            _ => drop(world.ask(node, subject, Method::GET).await),
        }
        idle(&mut dice, IDLE_MS.0).await;
    }
}

/// Deletes and syncs, again and again.
async fn keep_operating(world: &Arc<World>, number: usize, seed: u64, is_over: &AtomicBool) {
    let mut dice = Dice(seed + 100 + number as u64);
    let subjects = world.tags_of(STEADY, None);
    while !is_over.load(Ordering::SeqCst) {
        let (deed, subject) = (*dice.any(&Deed::ALL), *dice.any(&subjects));
        world.operate(deed, subject, &mut dice).await;
        idle(&mut dice, IDLE_MS.1).await;
    }
}

/// Moves tags that nobody calls for.
async fn keep_moving(world: &World, seed: u64, is_over: &AtomicBool) {
    let (mut dice, subjects) = (Dice(seed + 200), world.tags_of(BRISK, None));
    while !is_over.load(Ordering::SeqCst) {
        world.move_on(*dice.any(&subjects));
        world.count("moves without a call");
        tokio::time::sleep(MOVES).await;
    }
}

/// Lets a rule go and come.
async fn keep_renewing(world: &Arc<World>, is_over: &AtomicBool) -> Result<()> {
    for round in 0.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        world.renew_rule(round).await?;
        tokio::time::sleep(MOVES).await;
    }
    Ok(())
}

async fn idle(dice: &mut Dice, most_ms: usize) {
    tokio::time::sleep(Duration::from_millis(dice.below(most_ms).unwrap_or_default() as u64)).await;
}

/// Waits until all nodes say the same of everything.
async fn all_agree(world: &World) {
    for subject in [STEADY, BRISK, FLUX].iter().flat_map(|rule| world.tags_of(rule, None)) {
        let (repository, tag) = world.place_of(subject);
        let what = format!("all nodes say the same of {repository}:{tag}");
        wait_until(WHOLE, &what, async || world.agreed(subject).await.is_some()).await;
    }
}

/// Tells what has come of it, and fails if anything is wrong, or was not reached.
fn decide(world: &World) -> Result<()> {
    let (history, counts) = (world.history(), world.counts());
    counts.iter().for_each(|(what, count)| report(what, count));
    report("calls that promise something", history.calls.len());
    let wrong = judge(&history, HOLD);
    for wrong in wrong.iter().take(TOLD) {
        let answer = &history.answers[wrong.answer];
        let subject = &history.subjects[answer.subject];
        let (node, span) = (world.cluster.nodes[answer.node].name(), answer.span);
        eprintln!(
            "wrong: {node} said of {} from {:.3?} to {:.3?} ({:?}): {}",
            subject.name(),
            span.begin,
            span.end,
            answer.said,
            wrong.why
        );
    }
    if !wrong.is_empty() {
        for (what, span) in world.faults() {
            eprintln!("from {:.3?} to {:.3?}: {what}", span.begin, span.end);
        }
        for call in &history.calls {
            let (span, lagging) = (call.span, &call.lagging);
            eprintln!(
                "from {:.3?} to {:.3?}: {} ({:?}), behind: {lagging:?}",
                span.begin, span.end, call.what, call.effect
            );
        }
    }
    ensure!(wrong.is_empty(), "{} of {} answers must not have been", wrong.len(), history.answers.len());
    let wrong_bytes = world.wrong_bytes();
    ensure!(wrong_bytes.is_empty(), "{wrong_bytes:?}");

    let missing = missing(world);
    ensure!(missing.is_none(), "there never was: {}", missing.unwrap_or_default());
    Ok(())
}

/// What has to happen in each run, and has not yet.
fn missing(world: &World) -> Option<String> {
    let counts = world.counts();
    let deeds = Deed::ALL.iter().map(|deed| format!("{deed:?}"));
    let faults = HANDS.iter().flat_map(|faults| faults.iter()).map(|fault| format!("{fault:?}"));
    let others = [
        "RenewRule",
        "moves without a call",
        "calls that waited for a node in vain",
        "answers of the records",
        "answers while the store was away",
        "answers that there is nothing",
        "answers with content",
    ];
    let mut all = deeds.chain(faults).chain(others.map(str::to_owned));
    all.find(|what| counts.get(what).is_none_or(|count| *count == 0))
}
