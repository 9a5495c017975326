//! What operators do in a run, and what their calls promise.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use entrepot_proto::v1 as pb;
use http::Method;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Response, Status};

use super::history::Effect;
use super::world::World;
use super::{FLUX, NODES, STEADY};
use crate::dice::Dice;

/// How long somebody waits for a sync.
const SYNC: Duration = Duration::from_secs(45);
/// How long a change of rules is tried.
const RULE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// Says which nodes lag behind a change of rules.
const LAGGING: &str = "entrepot-lagging-nodes";

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    DeleteTag,
    DeleteImage,
    DeleteRepository,
    Sync,
    /// An image is removed at its upstream, then here.
    Remove,
}

impl Deed {
    /// Some come more often than others.
    pub(super) const ALL: [Self; 8] = [
        Self::DeleteTag,
        Self::DeleteTag,
        Self::DeleteTag,
        Self::DeleteImage,
        Self::DeleteRepository,
        Self::Sync,
        Self::Sync,
        Self::Remove,
    ];
}

impl World {
    /// Does something to a tag that was chosen, its repository, or another image.
    pub(super) async fn operate(self: &Arc<Self>, deed: Deed, subject: usize, dice: &mut Dice) {
        let (repository, tag) = self.place_of(subject);
        // Mostly there is something new to be seen.
        let moves = dice.below(5) > Some(0);
        match deed {
            Deed::DeleteTag => {
                self.move_if(moves, &[subject]);
                let begin = self.now();
                let name = format!("repositories/{repository}/tags/{tag}");
                let returned = self.delete_image(name.clone()).await;
                self.note(deed, begin, returned, |image| {
                    (name, vec![Effect::Renewed(subject)], image.lagging_node_count)
                });
                self.ask_behind(&[subject]);
            }
            Deed::DeleteImage => {
                let Some(digest) = self.digests_of(subject).pop() else { return };
                self.move_if(moves, &[subject]);
                let begin = self.now();
                let name = format!("repositories/{repository}/images/{digest}");
                let returned = self.delete_image(name.clone()).await;
                self.note(deed, begin, returned, |image| {
                    (name, vec![Effect::Deleted { subject, digest }], image.lagging_node_count)
                });
                self.ask_behind(&[subject]);
            }
            Deed::DeleteRepository => {
                let subjects = self.tags_of(STEADY, Some(&repository));
                self.move_if(moves, &subjects);
                let begin = self.now();
                let name = format!("repositories/{repository}");
                let request = pb::DeleteRepositoryRequest { name: name.clone(), etag: String::new() };
                let returned = self.cluster.api().repositories().delete_repository(request).await;
                let effects = subjects.iter().copied().map(Effect::Renewed).collect();
                self.note(deed, begin, returned, |repository| (name, effects, repository.lagging_node_count));
                self.ask_behind(&subjects);
            }
            Deed::Sync => {
                let subjects = self.tags_of(STEADY, Some(&repository));
                self.move_if(moves, &subjects);
                let begin = self.now();
                let synced = timeout(SYNC, self.sync(&repository))
                    .await
                    .unwrap_or_else(|_| Err(Status::deadline_exceeded("the sync takes too long")));
                self.note(deed, begin, synced, |items| {
                    let is_synced = |subject: &usize| {
                        let image = self.place_of(*subject);
                        items.iter().any(|item| item.image == format!("repositories/{}/tags/{}", image.0, image.1))
                    };
                    let effects = subjects.iter().copied().filter(is_synced).map(Effect::Renewed).collect();
                    let lagging = items.iter().map(|item| item.lagging_node_count).max().unwrap_or_default();
                    (repository.clone(), effects, lagging)
                });
                self.ask_behind(&subjects);
            }
            Deed::Remove => self.remove_everywhere(dice).await,
        }
    }

    fn move_if(&self, moves: bool, subjects: &[usize]) {
        if moves {
            subjects.iter().for_each(|subject| self.move_on(*subject));
        }
    }

    async fn delete_image(&self, name: String) -> Result<Response<pb::Image>, Status> {
        self.cluster.api().images().delete_image(pb::DeleteImageRequest { name }).await
    }

    /// Notes what a call has come to; `effects` says what it was about, what it promises, and how many nodes lag.
    fn note<T>(
        &self,
        deed: Deed,
        begin: Duration,
        returned: Result<Response<T>, Status>,
        effects: impl FnOnce(&T) -> (String, Vec<Effect>, i32),
    ) {
        match returned {
            Ok(response) => {
                let (what, effects, lagging) = effects(response.get_ref());
                if lagging > 0 {
                    self.count("calls that waited for a node in vain");
                }
                self.returned(format!("{deed:?} of {what}"), begin, effects, &[]);
                self.count(format!("{deed:?}"));
            }
            // There was nothing, or nobody knows what has become of it.
            Err(status) => self.count(format!("{deed:?} that came to {:?}", status.code())),
        }
    }

    /// Syncs all tags of a repository, and returns what has come of those that their upstream has said something of.
    async fn sync(&self, repository: &str) -> Result<Response<Vec<pb::OperationItem>>, Status> {
        let api = self.cluster.api();
        let request = pb::SyncRepositoryRequest { name: format!("repositories/{repository}"), ..Default::default() };
        let operation = api.repositories().sync_repository(request).await?.into_inner().name;
        loop {
            let request = pb::GetOperationRequest { name: operation.clone() };
            if api.operations().get_operation(request).await?.into_inner().done {
                break;
            }
            sleep(PAUSE).await;
        }
        // What is noted ends now, not when its items were read.
        let request = pb::ListOperationItemsRequest { parent: operation, page_size: 1000, ..Default::default() };
        let items = api.operations().list_operation_items(request).await?.into_inner().items;
        let outcomes = [pb::ItemOutcome::Unchanged, pb::ItemOutcome::Moved, pb::ItemOutcome::Created];
        let synced = items.into_iter().filter(|item| outcomes.contains(&item.outcome()));
        Ok(Response::new(synced.collect()))
    }

    /// Removes an image that nodes have at its upstream, and then deletes it here: it is nowhere from then on.
    async fn remove_everywhere(self: &Arc<Self>, dice: &mut Dice) {
        let subject = self.new_image(STEADY, "removed");
        self.ask_behind(&[subject]);
        let node = dice.below(NODES).unwrap_or_default();
        if self.ask(node, subject, Method::GET).await.is_none() {
            return;
        }
        self.remove(subject);
        let (repository, digest) = self.place_of(subject);
        let (begin, name) = (self.now(), format!("repositories/{repository}/images/{digest}"));
        let returned = self.delete_image(name.clone()).await;
        self.note(Deed::Remove, begin, returned, |image| {
            (name, vec![Effect::Renewed(subject)], image.lagging_node_count)
        });
        self.ask_behind(&[subject]);
    }

    /// Deletes a rule, asks for what nobody has asked for before, and makes the rule anew.
    pub(super) async fn renew_rule(self: &Arc<Self>, round: usize) -> Result<()> {
        let api = self.cluster.api();
        let (begin, deleted) = (
            self.now(),
            self.change_rule(Code::NotFound, async || {
                let request = pb::DeleteRuleRequest { name: format!("rules/{FLUX}"), etag: String::new() };
                api.rules().delete_rule(request).await.map(|response| response.map(drop))
            }),
        );
        let lagging = deleted.await?;
        self.returned(format!("DeleteRule {FLUX}"), begin, vec![Effect::Severed(FLUX)], &lagging);
        let fresh = self.new_tag(FLUX, &format!("fresh-{round}"), "a");
        // The first two are pulled all the time.
        let all = self.tags_of(FLUX, None);
        let known = [&all[..2], &all[all.len() - 2..]].concat();
        self.ask_behind(&[fresh]);
        self.ask(round % NODES, fresh, Method::GET).await;
        known.iter().for_each(|subject| self.move_on(*subject));

        let (begin, created) = (
            self.now(),
            self.change_rule(Code::AlreadyExists, async || {
                let rule = pb::Rule { upstream: format!("upstreams/{STEADY}"), ..Default::default() };
                let request =
                    pb::CreateRuleRequest { rule_id: FLUX.to_owned(), rule: Some(rule), request_id: String::new() };
                api.rules().create_rule(request).await.map(|response| response.map(drop))
            }),
        );
        let lagging = created.await?;
        self.returned(format!("CreateRule {FLUX}"), begin, vec![Effect::Restored(FLUX)], &lagging);
        self.ask_behind(&known);
        self.count("RenewRule");
        Ok(())
    }

    /// Changes a rule, and says which nodes lag. A call that failed may have been carried out: then its repetition gets
    /// `done`, and nothing is known of any node.
    async fn change_rule(
        &self,
        done: Code,
        call: impl AsyncFn() -> Result<Response<()>, Status>,
    ) -> Result<Vec<usize>> {
        let until = Instant::now() + RULE;
        let mut repeated = false;
        loop {
            match call().await {
                Ok(response) => {
                    let named = response.metadata().get(LAGGING).map(|names| names.to_str()).transpose();
                    let named = named.context("names are text")?.unwrap_or_default().to_owned();
                    let lags = |node: &usize| named.split(',').any(|name| name == self.cluster.nodes[*node].name());
                    return Ok((0..NODES).filter(lags).collect());
                }
                Err(status) if repeated && status.code() == done => return Ok((0..NODES).collect()),
                Err(status) => {
                    ensure!(Instant::now() < until, "a rule cannot be changed: {status}");
                    self.count(format!("changes of rules that came to {:?}", status.code()));
                    repeated = true;
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
