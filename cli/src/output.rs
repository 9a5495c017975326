//! Results, shown as tables for people and as one JSON document for programs.

mod json;
mod table;
mod word;

use std::io::{self, IsTerminal as _, Write};

pub(crate) use table::{Cells, details, size, time, timed};
pub(crate) use word::word;

/// How to show results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    #[default]
    Table,
    /// One JSON document: the answer's proto JSON with the field names of the .proto, and enum values without their
    /// prefix.
    Json,
}

/// An answer that can be shown.
pub(crate) trait Shown: prost::Message {
    /// The message's name, such as `entrepot.v1.Rule`.
    const MESSAGE: &'static str;

    /// What people see of it, with headings.
    fn details(&self) -> Cells;
}

/// A resource that can be listed.
pub(crate) trait Listed: Shown {
    /// The field of the list response with the items; also the word that people use for them.
    const ITEMS: &'static str;

    /// What people see of it in a list.
    fn row(&self) -> Cells {
        self.details()
    }
}

impl Output {
    /// Shows one answer.
    pub(crate) fn one<T: Shown>(self, answer: &T) -> io::Result<()> {
        self.show(answer, |out| table::details(out, &answer.details()))
    }

    /// Shows one answer, to people with `text`.
    pub(crate) fn show<T: Shown>(
        self,
        answer: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        print(|out| match self {
            Self::Table => text(out),
            Self::Json => json::one(out, answer),
        })
    }

    /// Shows what was deleted.
    pub(crate) fn deleted<T: Shown>(self, answer: &T, name: &str) -> io::Result<()> {
        self.show(answer, |out| writeln!(out, "deleted {name}"))
    }

    /// Shows a whole list.
    pub(crate) fn list<T: Listed>(self, items: &[T]) -> io::Result<()> {
        print(|out| match self {
            Self::Table => {
                if items.is_empty() {
                    note(&format!("no {}", T::ITEMS.replace('_', " ")));
                }
                table::list(out, &items.iter().map(T::row).collect::<Vec<_>>())
            }
            Self::Json => json::list(out, items),
        })
    }
}

/// How a changing list is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Screen {
    /// Each state replaces the previous one.
    Redrawn,
    /// Each state follows the previous one.
    Appended,
}

impl Screen {
    /// The form that suits standard output.
    pub(crate) fn of_stdout() -> Self {
        if io::stdout().is_terminal() { Self::Redrawn } else { Self::Appended }
    }
}

impl Output {
    /// Shows one state of a changing list: for people with a line of text below it, for programs as one document per
    /// line. Returns whether somebody is still reading.
    pub(crate) fn state<T: Listed, A: Shown>(self, screen: Screen, answer: &A, items: &[T], text: &str) -> bool {
        let mut out = io::stdout().lock();
        let written = match self {
            Self::Json => json::one(&mut out, answer),
            Self::Table => {
                let begin = if screen == Screen::Redrawn { "\x1b[H\x1b[J" } else { "" };
                let rows: Vec<_> = items.iter().map(T::row).collect();
                write!(out, "{begin}")
                    .and_then(|()| table::list(&mut out, &rows))
                    .and_then(|()| writeln!(out, "{text}"))
            }
        };
        written.and_then(|()| out.flush()).is_ok()
    }
}

/// Writes to standard output. It is not an error if the reader has gone.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Tells people of nodes that did not say in time that they know of a change.
pub(crate) fn note_lagging(count: i32) {
    match count {
        ..=0 => {}
        1 => note(
            "1 node did not say in time that it knows of this; if it does not reach the bucket, it serves what was until it does",
        ),
        _ => note(&format!(
            "{count} nodes did not say in time that they know of this; those that do not reach the bucket serve what was until they do"
        )),
    }
}

/// Tells people something that is not part of the answer.
pub(crate) fn note(text: &str) {
    // If standard error cannot be written, there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}
