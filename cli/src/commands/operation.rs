//! `entrepot operation`, and how commands that start an operation show it.

mod bars;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use entrepot_proto::v1::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ItemOutcome, ListOperationItemsRequest,
    ListOperationsRequest, Operation, OperationItem, OperationState, WatchOperationRequest,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Code, Status};

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, note, note_lagging, size, time, word};

use bars::Bars;

/// How often a lost control plane is called again, and how long to wait each time.
const RETRY: (usize, Duration) = (30, Duration::from_secs(1));

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List operations, the newest first.
    #[command(after_help = "\
Examples:
  entrepot operation list
  entrepot operation list --filter 'done = false'
  entrepot operation list --filter 'repository = \"repositories/demo/team/app\"' --output json")]
    List {
        /// Select operations: terms joined by AND, each `repository = "repositories/demo/team/app"` or `done = false`.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Show an operation.
    Get {
        /// Its name, as shown by `list`.
        #[arg(value_name = "OPERATION")]
        operation: String,
    },
    /// Show the results or progress of the tags or images of an operation.
    Items {
        #[arg(value_name = "OPERATION")]
        operation: String,
    },
    /// Follow an operation to its end; ctrl-c leaves it running.
    Watch {
        #[arg(value_name = "OPERATION")]
        operation: String,
    },
    /// Cancel an operation: finished items stay finished, and all others are stopped.
    Cancel {
        #[arg(value_name = "OPERATION")]
        operation: String,
    },
    /// Forget an operation that has ended. This happens by itself after a week.
    Delete {
        #[arg(value_name = "OPERATION")]
        operation: String,
    },
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Error> {
        let (mut operations, output) = (session.operations(), session.output);
        let full = |name: &str| names::full("operations", name);
        match self {
            Self::List { filter } => {
                let filter = filter.unwrap_or_default();
                let page = async |page_token| {
                    let request = ListOperationsRequest { page_size: PAGE_SIZE, page_token, filter: filter.clone() };
                    let answer = operations.list_operations(request).await?.into_inner();
                    Ok((answer.operations, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
            Self::Get { operation } => {
                let request = GetOperationRequest { name: full(&operation) };
                output.one(&operations.get_operation(request).await?.into_inner())?;
            }
            Self::Items { operation } => output.list(&items(session, &full(&operation)).await?)?,
            Self::Watch { operation } => {
                let request = GetOperationRequest { name: full(&operation) };
                let found = operations.get_operation(request).await?.into_inner();
                return end(session, watch(session, found).await?).await;
            }
            Self::Cancel { operation } => {
                let request = CancelOperationRequest { name: full(&operation) };
                output.one(&operations.cancel_operation(request).await?.into_inner())?;
            }
            Self::Delete { operation } => {
                let request = DeleteOperationRequest { name: full(&operation) };
                let deleted = operations.delete_operation(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows a newly started operation until it ends, unless `detach` is set. Ctrl-c cancels it.
pub(super) async fn follow(session: &Session, begun: Operation, detach: bool) -> Result<ExitCode, Error> {
    if detach {
        session.output.one(&begun)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Handled from here on, because a reader of the note may press ctrl-c at once.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let name = begun.name.clone();
    note(&format!("{name} was begun; ctrl-c cancels it"));
    let mut watching = Box::pin(watch(session, begun));
    let watched = tokio::select! {
        watched = &mut watching => watched?,
        _ = interrupts.recv() => {
            note(&format!("cancelling {name}; ctrl-c once more leaves it alone"));
            session.operations().cancel_operation(CancelOperationRequest { name: name.clone() }).await?;
            tokio::select! {
                watched = &mut watching => watched?,
                _ = interrupts.recv() => return Ok(ExitCode::FAILURE),
            }
        }
    };
    end(session, watched).await
}

/// Follows an operation to its end, and returns its final state.
async fn watch(session: &Session, operation: Operation) -> Result<Operation, Error> {
    let mut seen = Seen { operation, ended: BTreeMap::new() };
    let bars = Bars::new();
    let mut tries = 0..RETRY.0;
    loop {
        match watch_once(session, &mut seen, &bars, &mut tries).await {
            Ok(()) if seen.operation.done => return Ok(seen.operation),
            // A stream that ends early means that its control plane is stopping.
            Ok(()) => {}
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown) => {
                if tries.next().is_none() {
                    return Err(status.into());
                }
            }
            Err(status) => return Err(status.into()),
        }
        tokio::time::sleep(RETRY.1).await;
    }
}

/// What has been received about an operation.
struct Seen {
    operation: Operation,
    /// The results of ended items, by image.
    ended: BTreeMap<String, ItemOutcome>,
}

async fn watch_once(
    session: &Session,
    seen: &mut Seen,
    bars: &Bars,
    tries: &mut std::ops::Range<usize>,
) -> Result<(), Status> {
    let request = WatchOperationRequest { name: seen.operation.name.clone() };
    let mut messages = session.operations().watch_operation(request).await?.into_inner();
    while let Some(message) = messages.message().await? {
        *tries = 0..RETRY.0;
        if let Some(operation) = message.operation {
            seen.operation = operation;
        }
        let (running, ended): (Vec<_>, Vec<_>) =
            message.items.into_iter().partition(|item| item.outcome() == ItemOutcome::Unspecified);
        for item in ended {
            if seen.ended.insert(item.image.clone(), item.outcome()).is_none() {
                bars.ended(&line(&item));
            }
        }
        bars.show(&seen.operation, &running);
    }
    Ok(())
}

/// Shows how everything ended. The exit code tells whether it succeeded.
async fn end(session: &Session, operation: Operation) -> Result<ExitCode, Error> {
    let items = items(session, &operation.name).await?;
    session.output.list(&items)?;
    // Most likely the same ones at each tag.
    note_lagging(items.iter().map(|item| item.lagging_node_count).max().unwrap_or_default());
    let (name, state) = (&operation.name, operation.state());
    if state == OperationState::Succeeded {
        return Ok(ExitCode::SUCCESS);
    }
    let failed = operation.failed_count;
    note(&if state == OperationState::Cancelled {
        format!("{name} was cancelled")
    } else {
        format!("{failed} of {} failed", operation.item_count)
    });
    Ok(ExitCode::FAILURE)
}

async fn items(session: &Session, parent: &str) -> Result<Vec<OperationItem>, Error> {
    let mut operations = session.operations();
    let page = async |page_token| {
        let request = ListOperationItemsRequest { parent: parent.to_owned(), page_size: PAGE_SIZE, page_token };
        let answer = operations.list_operation_items(request).await?.into_inner();
        Ok((answer.items, answer.next_page_token))
    };
    Ok(all_pages(page).await?)
}

/// The result of an item as a line for people.
fn line(item: &OperationItem) -> String {
    let (image, outcome) = (short(&item.image), result(item));
    let detail = match item.outcome() {
        ItemOutcome::Moved => format!("{} to {}", digits(&item.from_digest), digits(&item.to_digest)),
        ItemOutcome::Created | ItemOutcome::Unchanged => digits(&item.to_digest),
        ItemOutcome::Deleted | ItemOutcome::Failed => item.reason.clone(),
        ItemOutcome::Unspecified | ItemOutcome::Cancelled => String::new(),
    };
    format!("{image}: {outcome} {detail}").trim_end().to_owned()
}

/// The result of an item, or what it is doing.
fn result(item: &OperationItem) -> &'static str {
    match item.outcome() {
        ItemOutcome::Unspecified if item.node.is_empty() => "waiting",
        ItemOutcome::Unspecified => "running",
        ItemOutcome::Unchanged => "unchanged",
        ItemOutcome::Moved => "moved",
        ItemOutcome::Created => "created",
        ItemOutcome::Deleted => "deleted upstream",
        ItemOutcome::Failed => "failed",
        ItemOutcome::Cancelled => "cancelled",
    }
}

/// `demo/app:v1` for `repositories/demo/app/tags/v1`.
fn short(image: &str) -> String {
    let path = names::short("repositories", image);
    match (path.rsplit_once("/tags/"), path.rsplit_once("/images/")) {
        (Some((repository, tag)), _) if !tag.contains('/') => format!("{repository}:{tag}"),
        (_, Some((repository, digest))) => format!("{repository}@{}", digits(digest)),
        (_, _) => path.to_owned(),
    }
}

/// The beginning of a digest, enough to tell it from others.
fn digits(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => format!("{algorithm}:{}", hex.get(..12).unwrap_or(hex)),
        None => digest.to_owned(),
    }
}

impl Shown for Operation {
    const MESSAGE: &'static str = "entrepot.v1.Operation";

    fn details(&self) -> Cells {
        let state = match self.state() {
            OperationState::Unspecified => "unknown",
            OperationState::Running => "running",
            OperationState::Cancelling => "cancelling",
            OperationState::Succeeded => "succeeded",
            OperationState::Failed => "failed",
            OperationState::Cancelled => "cancelled",
        };
        vec![
            ("OPERATION", names::short("operations", &self.name).to_owned()),
            ("KIND", word(self, "kind")),
            ("REPOSITORY", names::short("repositories", &self.repository).to_owned()),
            ("STATE", state.to_owned()),
            ("ENDED", format!("{} of {}", self.ended_count, self.item_count)),
            ("FAILED", self.failed_count.to_string()),
            ("SIZE", size(self.done_bytes)),
            ("ACCESS KEY", self.access_key_id.clone()),
            ("BEGUN", time(self.create_time.as_ref())),
            ("END", time(self.end_time.as_ref())),
        ]
    }
}

impl Listed for Operation {
    const ITEMS: &'static str = "operations";
}

impl Shown for OperationItem {
    const MESSAGE: &'static str = "entrepot.v1.OperationItem";

    fn details(&self) -> Cells {
        vec![
            ("IMAGE", short(&self.image)),
            ("RESULT", result(self).to_owned()),
            ("FROM", digits(&self.from_digest)),
            ("TO", digits(&self.to_digest)),
            ("SIZE", size(self.done_bytes)),
            ("REASON", self.reason.clone()),
        ]
    }
}

impl Listed for OperationItem {
    const ITEMS: &'static str = "items";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_an_item_ended() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let item = |outcome: ItemOutcome, reason: &str| OperationItem {
            image: "repositories/demo/tags/app/tags/v1".into(),
            outcome: outcome.into(),
            from_digest: digest("a"),
            to_digest: digest("b"),
            reason: reason.into(),
            ..Default::default()
        };
        for (item, text) in [
            (item(ItemOutcome::Moved, ""), "demo/tags/app:v1: moved sha256:aaaaaaaaaaaa to sha256:bbbbbbbbbbbb"),
            (item(ItemOutcome::Unchanged, ""), "demo/tags/app:v1: unchanged sha256:bbbbbbbbbbbb"),
            (item(ItemOutcome::Failed, "it is away"), "demo/tags/app:v1: failed it is away"),
            (item(ItemOutcome::Cancelled, ""), "demo/tags/app:v1: cancelled"),
        ] {
            assert_eq!(line(&item), text);
        }
        let by_digest = format!("repositories/demo/app/images/{}", digest("c"));
        assert_eq!(short(&by_digest), "demo/app@sha256:cccccccccccc");
    }
}
