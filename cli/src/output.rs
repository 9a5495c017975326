//! What comes back, shown to people as tables and to programs as one JSON document.

mod json;
mod table;
mod word;

use std::io::{self, IsTerminal as _, Write};

pub(crate) use table::{Cells, details, size, time, timed};
pub(crate) use word::word;

/// How to show what comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    #[default]
    Table,
    /// One JSON document: the answer's proto JSON with the field names of the .proto, enum values without their prefix.
    Json,
}

/// An answer that can be shown.
pub(crate) trait Shown: prost::Message {
    /// The message's name, such as `entrepot.v1.Rule`.
    const MESSAGE: &'static str;

    /// What people see of it, each with its heading.
    fn details(&self) -> Cells;
}

/// A resource that lists are made of.
pub(crate) trait Listed: Shown {
    /// The field of the list response that has the items, which is also what people call them.
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

    /// Shows one answer, to people in the words of `text`.
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

/// How a list that changes is shown while it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Screen {
    /// Each state in the place of the one before.
    Redrawn,
    /// One state after the other.
    Appended,
}

impl Screen {
    /// What suits standard output.
    pub(crate) fn of_stdout() -> Self {
        if io::stdout().is_terminal() { Self::Redrawn } else { Self::Appended }
    }
}

impl Output {
    /// Shows one state of a list that changes, with a line of text below it for people; to programs one document a
    /// line. Returns whether somebody still reads.
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

/// Writes to standard output; a reader that has gone is no failure.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Tells people something that is not part of the answer.
pub(crate) fn note(text: &str) {
    // Nobody is left to tell that standard error cannot be written.
    let _ = writeln!(io::stderr(), "{text}");
}
