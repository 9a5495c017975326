//! Clients that pull whole images through the load balancer, whatever happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::excuse::Excuse;
use super::library::{Library, Published};
use super::strikes::Field;
use crate::client::Client;
use crate::reader::{Cut, Reading};

/// How many clients there are, and how often each begins a pull, if the last one has ended: twice as often in a long run,
/// which has the machine to itself.
const CLIENTS: usize = 120;
const EVERY: Duration = Duration::from_secs(12);
const LONG: Duration = Duration::from_secs(300);
/// How long and how often a pull is tried, and how long a client waits in between.
const PATIENCE: Duration = Duration::from_secs(180);
const MOST_TRIES: usize = 300;
const PAUSE: Duration = Duration::from_millis(500);
/// How many pulls that nothing excuses are told in full, with how much of the log.
const TOLD: usize = 20;
const LINES: usize = 20;

/// What has come of all pulls so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Whole pulls; every byte was right.
    pub(super) pulls: usize,
    pub(super) bytes: u64,
    /// Pulls in which no request had to be repeated.
    pub(super) at_once: usize,
    /// Pulls in which some had, with an excuse for each of them. A pull with several counts for the last one.
    pub(super) excused: BTreeMap<Excuse, usize>,
    /// Pulls in which one had without any.
    pub(super) unexcused: usize,
    pub(super) told: Vec<String>,
    pub(super) longest: Duration,
}

/// The clients, and what they share.
pub(super) struct Load {
    field: Arc<Field>,
    library: Library,
    client: Client,
    tally: Mutex<Tally>,
}

impl Load {
    pub(super) fn new(field: Arc<Field>, client: Client, seed: u64) -> Arc<Self> {
        let library = Library::new(field.upstream.clone(), seed);
        Arc::new(Self { field, library, client, tally: Mutex::default() })
    }

    /// Pulls until `end`. An error is a wrong byte, or a pull that came to nothing.
    pub(super) async fn run(self: Arc<Self>, end: Instant) -> Result<()> {
        let (began, mut clients) = (Instant::now(), tokio::task::JoinSet::new());
        for number in 0..CLIENTS {
            let load = self.clone();
            clients.spawn(async move {
                // What could not begin in time begins as soon as it can, so that the number of pulls does not depend on
                // what goes wrong.
                let mut next = interval(if end - began > LONG { EVERY / 2 } else { EVERY });
                next.set_missed_tick_behavior(MissedTickBehavior::Burst);
                while Instant::now() < end {
                    next.tick().await;
                    load.pull(&load.library.any()).await.with_context(|| format!("client {number}"))?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Pulls an image that nobody has pulled.
    pub(super) async fn pull_new(&self) -> Result<()> {
        self.pull(&self.library.publish()).await
    }

    async fn pull(&self, image: &Published) -> Result<()> {
        let (began, mut cuts) = (Instant::now(), Vec::new());
        for part in &image.parts {
            let mut reading = Reading::of(part, began);
            while let Some(cut) = reading.go_on(&self.client, || 0).await? {
                let excuse = self.field.excuse(&cut, image.is_kept(&self.field));
                cuts.push((&*part.path, cut, excuse));
                let told = || cuts.iter().map(|(path, cut, _)| format!("\n{path}: {cut}")).collect::<String>();
                ensure!(cuts.len() < MOST_TRIES && began.elapsed() < PATIENCE, "given up after{}", told());
                sleep(PAUSE).await;
            }
        }
        image.was_pulled(began, &self.field);
        let mut tally = self.tally();
        tally.pulls += 1;
        tally.bytes += image.parts.iter().map(|part| part.bytes.len() as u64).sum::<u64>();
        tally.longest = tally.longest.max(began.elapsed());
        match cuts.last() {
            None => tally.at_once += 1,
            Some(_) if cuts.iter().any(|(.., excuse)| excuse.is_none()) => {
                tally.unexcused += 1;
                if tally.told.len() < TOLD {
                    let kind = if image.is_kept(&self.field) { "held" } else { "not held for sure" };
                    let cuts = cuts.iter().map(|(path, cut, excuse)| self.told(path, cut, *excuse));
                    tally.told.push(format!("{kind}{}", cuts.collect::<String>()));
                }
            }
            Some((.., excuse)) => *tally.excused.entry(excuse.unwrap_or(Excuse::NodeKilled)).or_default() += 1,
        }
        Ok(())
    }

    /// An answer that was cut. If nothing excuses that, with what the node has logged of it.
    fn told(&self, path: &str, cut: &Cut, excuse: Option<Excuse>) -> String {
        let mut told = format!("\n{path}: {cut} [{excuse:?}]");
        let (Some(id), Some(name), None) = (&cut.request_id, cut.node(), excuse) else { return told };
        let node = self.field.cluster.nodes.iter().find(|node| node.name() == name);
        let log = node.map(|node| node.program.log()).unwrap_or_default();
        log.lines().filter(|line| line.contains(&**id)).take(LINES).for_each(|line| told += &format!("\n    {line}"));
        told
    }

    /// What has come of it so far.
    pub(super) fn tally(&self) -> parking_lot::MutexGuard<'_, Tally> {
        self.tally.lock()
    }
}
