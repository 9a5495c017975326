//! Configuration: one TOML file, overridden by the environment, read key by key.
//!
//! A program asks for the keys that it knows. All mistakes are collected on the way: values that cannot be read,
//! missing keys, and keys or sections that no code has asked for. [`Reader::finish`] returns all of them at once, so
//! that an operator can fix a file in one go.
//!
//! ```
//! use std::net::SocketAddr;
//! use entrepot_runtime::config::{Problems, Reader};
//!
//! fn read(reader: &mut Reader) -> Result<SocketAddr, Problems> {
//!     let mut section = reader.section("operations");
//!     let listen = section.get::<SocketAddr>("listen", "127.0.0.1:5002");
//!     reader.finish(&["postgres", "api"])?;
//!     Ok(listen?)
//! }
//!
//! let environment = [("ENTREPOT__OPERATIONS__LISTEN".to_owned(), "127.0.0.1:7002".to_owned())];
//! let mut reader = Reader::load(None, environment).unwrap();
//! assert_eq!(read(&mut reader).unwrap().port(), 7002);
//! ```

mod nearest;
mod problems;
mod section;
mod setting;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::{Table, Value};

pub use problems::{Problem, Problems, Reported};
pub use section::Section;
pub use setting::{ByteSize, Parsed, Setting};

/// The beginning of names of variables that override a key.
const PREFIX: &str = "ENTREPOT__";

/// Reads a configuration section by section, and remembers the mistakes and the keys that were asked for.
#[derive(Debug)]
pub struct Reader {
    file: BTreeMap<String, Table>,
    /// The overriding variables by section and key.
    overrides: BTreeMap<(String, String), Override>,
    asked: Vec<Described>,
    /// Sections and keys that only another program reads.
    passed_over: BTreeSet<(String, String)>,
    problems: Vec<Problem>,
}

/// An environment variable that overrides a key.
#[derive(Debug)]
struct Override {
    variable: String,
    text: String,
}

/// A key that was asked for. The documented example must contain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub section: String,
    pub key: String,
    /// The default, as it would be written in the environment.
    pub default: Option<String>,
}

/// The environment variables. Only `main` calls this, and passes them to [`Reader::load`].
pub fn environment() -> Vec<(String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

impl Reader {
    /// Reads the file at `path`, if any, and the variables that override its keys. An empty variable counts as unset.
    ///
    /// # Errors
    /// If the file cannot be read or is not TOML. All other mistakes are returned by [`Reader::finish`].
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let table = path.map_or_else(|| Ok(Table::new()), parse)?;
        let mut reader = Self {
            file: BTreeMap::new(),
            overrides: BTreeMap::new(),
            asked: Vec::new(),
            passed_over: BTreeSet::new(),
            problems: Vec::new(),
        };
        for (name, value) in table {
            if let Value::Table(section) = value {
                reader.file.insert(name, section);
            } else {
                reader.add(&name, "stands above all sections; put it below a line such as `[registry]`");
            }
        }
        for (variable, text) in environment {
            reader.take_override(variable, text);
        }
        Ok(reader)
    }

    /// The section called `name`, whether it exists or not.
    pub fn section(&mut self, name: &'static str) -> Section<'_> {
        Section::new(self, name)
    }

    /// Ends the reading. Everything that no code has asked for is a mistake, except in sections of other programs,
    /// whose names are in `foreign`.
    ///
    /// # Errors
    /// All mistakes.
    pub fn finish(&mut self, foreign: &[&str]) -> Result<(), Problems> {
        self.refuse_unknown(foreign);
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(std::mem::take(&mut self.problems))) }
    }

    /// Every key that was asked for, in that order.
    pub fn described(&self) -> &[Described] {
        &self.asked
    }

    fn take_override(&mut self, variable: String, text: String) {
        let Some(name) = variable.strip_prefix(PREFIX) else { return };
        // An empty variable counts as unset, because tools pass on unset values like that.
        if text.is_empty() {
            return;
        }
        match name.split_once("__") {
            Some((section, key)) if !section.is_empty() && !key.is_empty() => {
                let place = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
                self.overrides.insert(place, Override { variable, text });
            }
            _ => self.add(&variable, "names no key; write ENTREPOT__SECTION__KEY, or unset it"),
        }
    }

    fn refuse_unknown(&mut self, foreign: &[&str]) {
        let mut sections: BTreeSet<&str> = self.asked.iter().map(|asked| asked.section.as_str()).collect();
        sections.extend(foreign);
        let mut found = Vec::new();
        let mut look = |section: &str, key: Option<&str>, variable: Option<&str>| {
            if foreign.contains(&section) {
                return;
            }
            let place = |key: &str| variable.map_or_else(|| format!("{section}.{key}"), str::to_owned);
            if !sections.contains(section) {
                let place = variable.map_or_else(|| format!("[{section}]"), str::to_owned);
                let near = nearest::of(section, sections.iter().copied()).map(|near| format!("[{near}]"));
                found.push((place, unknown("section", near)));
            } else if let Some(key) = key
                && !self.knows(section, key)
            {
                let known = self.asked.iter().filter(|asked| asked.section == section).map(|asked| asked.key.as_str());
                let near = nearest::of(key, known);
                let near = near.map(|near| variable.map_or(near.to_owned(), |_| variable_of(section, near)));
                found.push((place(key), unknown("key", near)));
            }
        };
        for (section, table) in &self.file {
            look(section, None, None);
            if sections.contains(section.as_str()) {
                table.keys().for_each(|key| look(section, Some(key), None));
            }
        }
        for ((section, key), found) in &self.overrides {
            look(section, Some(key), Some(&found.variable));
        }
        for (place, what) in found {
            self.add(&place, what);
        }
    }

    fn knows(&self, section: &str, key: &str) -> bool {
        self.asked.iter().any(|asked| asked.section == section && asked.key == key)
            || self.passed_over.contains(&(section.to_owned(), key.to_owned()))
    }

    fn add(&mut self, place: &str, what: impl Into<String>) {
        self.problems.push(Problem { place: place.to_owned(), what: what.into() });
    }
}

/// The variable that overrides a key.
fn variable_of(section: &str, key: &str) -> String {
    format!("{PREFIX}{}__{}", section.to_ascii_uppercase(), key.to_ascii_uppercase())
}

fn unknown(what: &str, near: Option<String>) -> String {
    match near {
        Some(near) => format!("unknown {what}; did you mean `{near}`?"),
        None => format!("unknown {what}; remove it, config.example.toml has all that there are"),
    }
}

fn parse(path: &Path) -> Result<Table, Problems> {
    let place = path.display().to_string();
    let failed = |what: String| Problems(vec![Problem { place: place.clone(), what }]);
    let text = std::fs::read_to_string(path).map_err(|error| {
        failed(format!("the configuration file cannot be read ({error}); give another with --config"))
    })?;
    text.parse().map_err(|error: toml::de::Error| {
        // The parser would quote the line, which may contain a password.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let (line, column) =
            (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count());
        failed(format!("not TOML at line {line}, column {}: {}", column + 1, error.message()))
    })
}
