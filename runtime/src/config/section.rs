//! One section of a configuration.

use toml::Value;

use super::problems::{Problem, Reported};
use super::{Described, Reader, Setting, variable_of};

/// Reads the keys of a section. Its reader collects the mistakes.
#[derive(Debug)]
pub struct Section<'a> {
    reader: &'a mut Reader,
    name: &'static str,
}

/// Whether a wrong value may be quoted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    Value,
    Nothing,
}

impl<'a> Section<'a> {
    pub(super) fn new(reader: &'a mut Reader, name: &'static str) -> Self {
        Self { reader, name }
    }

    /// The section's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The value of `key`, or the default, which is spelled as in the environment.
    ///
    /// # Errors
    /// If the value cannot be read; the reader keeps the mistake.
    ///
    /// # Panics
    /// If the default cannot be read, which is a bug.
    pub fn get<T: Setting>(&mut self, key: &str, default: &str) -> Result<T, Reported> {
        self.describe(key, Some(default));
        let value = self.value(key, Quote::Value)?;
        Ok(value.unwrap_or_else(|| {
            T::from_text(default).unwrap_or_else(|error| panic!("the default of {}.{key}: {error}", self.name))
        }))
    }

    /// The value of `key`, if it is set.
    ///
    /// # Errors
    /// If the value cannot be read; the reader keeps the mistake.
    pub fn optional<T: Setting>(&mut self, key: &str) -> Result<Option<T>, Reported> {
        self.describe(key, None);
        self.value(key, Quote::Value)
    }

    /// As [`Section::optional`], for a value that must not be quoted in messages.
    ///
    /// # Errors
    /// If the value cannot be read; the reader keeps the mistake.
    pub fn optional_secret<T: Setting>(&mut self, key: &str) -> Result<Option<T>, Reported> {
        self.describe(key, None);
        self.value(key, Quote::Nothing)
    }

    /// The value of `key`, which must be set.
    ///
    /// # Errors
    /// If it is not set or cannot be read; the reader keeps the mistake.
    pub fn required<T: Setting>(&mut self, key: &str) -> Result<T, Reported> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    /// Reports that `key` must be set.
    pub fn missing(&mut self, key: &str) -> Reported {
        let variable = variable_of(self.name, key);
        self.problem(key, format!("must be set, here or as {variable}"))
    }

    /// Reports a mistake in the value of `key`. The text says what is wrong and what to do about it, and quotes no
    /// secret.
    pub fn problem(&mut self, key: &str, what: impl Into<String>) -> Reported {
        let place = self.place(key);
        let problem = Problem { place, what: what.into() };
        self.reader.problems.push(problem.clone());
        Reported(problem)
    }

    /// Whether `key` has a value, right or wrong, in the file or in the environment.
    pub fn is_set(&self, key: &str) -> bool {
        self.override_of(key).is_some() || self.filed(key).is_some()
    }

    /// Accepts a key that only another program uses.
    pub fn pass_over(&mut self, key: &str) {
        self.reader.passed_over.insert((self.name.to_owned(), key.to_owned()));
    }

    fn describe(&mut self, key: &str, default: Option<&str>) {
        if !self.reader.asked.iter().any(|asked| asked.section == self.name && asked.key == key) {
            let default = default.map(str::to_owned);
            self.reader.asked.push(Described { section: self.name.to_owned(), key: key.to_owned(), default });
        }
    }

    fn value<T: Setting>(&mut self, key: &str, quote: Quote) -> Result<Option<T>, Reported> {
        let (read, quoted) = match (self.override_of(key), self.filed(key)) {
            (Some(found), _) => (T::from_text(&found.text), Some(found.text.clone())),
            (None, Some(value)) => (T::from_value(value), quotable(value)),
            (None, None) => return Ok(None),
        };
        read.map(Some).map_err(|what| {
            // A value with an @ may be a URL with a password.
            let quoted = quoted.filter(|text| quote == Quote::Value && !text.contains('@') && text.len() <= 200);
            let not = quoted.map(|text| format!(", not `{text}`")).unwrap_or_default();
            self.problem(key, format!("{what}{not}"))
        })
    }

    fn override_of(&self, key: &str) -> Option<&super::Override> {
        self.reader.overrides.get(&(self.name.to_owned(), key.to_owned()))
    }

    fn filed(&self, key: &str) -> Option<&Value> {
        self.reader.file.get(self.name)?.get(key)
    }

    fn place(&self, key: &str) -> String {
        match self.override_of(key) {
            Some(found) => format!("{}.{key} (from {})", self.name, found.variable),
            None => format!("{}.{key}", self.name),
        }
    }
}

fn quotable(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => Some(value.to_string()),
        Value::Array(_) | Value::Table(_) => None,
    }
}
