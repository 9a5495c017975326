//! Progress bars on a terminal, and otherwise a line for each ended item.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};

use entrepot_proto::v1::{Operation, OperationItem};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::short;
use crate::output::note;

/// How many items get a bar of their own.
const ITEMS: usize = 8;

/// The progress of an operation, on standard error.
pub(super) enum Bars {
    /// One bar for the operation, and one for each running item.
    Drawn(Box<Drawn>),
    /// Lines only.
    Lines,
}

/// Bars on a terminal.
pub(super) struct Drawn {
    screen: MultiProgress,
    all: ProgressBar,
    items: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// The form that suits standard error.
    pub(super) fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let screen = MultiProgress::new();
        let all = screen.add(ProgressBar::new(0).with_style(style("{bar:30} {pos} of {len} {msg}")));
        Self::Drawn(Box::new(Drawn { screen, all, items: Mutex::default() }))
    }

    /// Reports an item that has ended.
    pub(super) fn ended(&self, line: &str) {
        match self {
            // If the terminal has gone, there is nobody to tell.
            Self::Drawn(drawn) => drop(drawn.screen.println(line)),
            Self::Lines => note(line),
        }
    }

    /// Shows the current progress.
    pub(super) fn show(&self, operation: &Operation, running: &[OperationItem]) {
        let Self::Drawn(drawn) = self else { return };
        drawn.all.set_length(count(operation.item_count.into()));
        drawn.all.set_position(count(operation.ended_count.into()));
        if operation.failed_count > 0 {
            drawn.all.set_message(format!("({} failed)", operation.failed_count));
        }
        let mut items = drawn.items.lock();
        items.retain(|image, bar| {
            let runs = running.iter().any(|item| item.image == *image);
            if !runs {
                bar.finish_and_clear();
                drawn.screen.remove(bar);
            }
            runs
        });
        for item in running {
            if !items.contains_key(&item.image) && items.len() >= ITEMS {
                continue;
            }
            let bar = items.entry(item.image.clone()).or_insert_with(|| {
                let style = style("  {bar:28} {bytes:>10} of {total_bytes:10} {msg}");
                drawn.screen.add(ProgressBar::no_length().with_style(style).with_message(short(&item.image)))
            });
            // A length of zero would be a full bar.
            if item.total_bytes > 0 {
                bar.set_length(count(item.total_bytes));
            }
            bar.set_position(count(item.done_bytes));
        }
        if operation.done {
            drawn.all.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Self::Drawn(drawn) = self {
            drop(drawn.screen.clear());
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}
