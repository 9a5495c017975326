//! Conversions between the wire and the domain, a file per resource. Errors name the field and the reason.

pub mod access;
pub mod event;
pub mod freshness;
pub mod names;
pub mod rule;
pub mod snapshot;
pub mod template;
pub mod upstream;

use std::fmt;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

/// This release's number as a reader of snapshots and events, which is compared with their `minimum_reader`. It grows
/// when a release learns to read something that older ones must not ignore.
pub const READER: i32 = 1;

/// A mistake in one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field within the request, such as `rule.prefix`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub description: String,
}

/// All mistakes in a request, collected so that a caller sees them at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// A single violation.
    pub fn one(field: impl Into<String>, description: impl fmt::Display) -> Self {
        let mut violations = Self::default();
        violations.add(field, description);
        violations
    }

    /// Adds a violation.
    pub fn add(&mut self, field: impl Into<String>, description: impl fmt::Display) {
        self.0.push(Violation { field: field.into(), description: description.to_string() });
    }

    /// The value, or `None` after adding its error for `field`.
    pub fn take<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(field, error)).ok()
    }

    /// The value, or `None` after adding all its violations.
    pub fn merge<T>(&mut self, result: Result<T, Self>) -> Option<T> {
        result.map_err(|mut others| self.0.append(&mut others.0)).ok()
    }

    /// The value, if there are no violations.
    ///
    /// # Errors
    /// All violations. If the value is missing without any, that is a violation, too.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            None if self.0.is_empty() => Err(Self::one("", "the request is incomplete")),
            Some(_) | None => Err(self),
        }
    }

    /// Whether there are no violations.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the violations.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}`{}` {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

/// The name of an enum's value without the enum's prefix, as the domain, snapshots and the database use it.
fn word<'a>(prefix: &str, name: &'a str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// A time in wire form.
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().min(999_999_999) as i32 }
}

/// A duration in wire form.
pub fn duration(length: std::time::Duration) -> prost_types::Duration {
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: length.subsec_nanos() as i32 }
}

/// A duration from the wire; `None` if it is invalid or negative.
pub fn length(wire: &prost_types::Duration) -> Option<std::time::Duration> {
    let (seconds, nanos) = (u64::try_from(wire.seconds).ok()?, u32::try_from(wire.nanos).ok()?);
    (nanos < 1_000_000_000).then(|| std::time::Duration::new(seconds, nanos))
}

/// A time from the wire; `None` if it is out of range.
pub fn time(wire: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(wire.seconds, u32::try_from(wire.nanos).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_survive_the_wire() {
        for (seconds, nanos) in [(0, 0), (1_700_000_000, 999_999_999), (-1, 1)] {
            let instant = DateTime::from_timestamp(seconds, nanos).unwrap();
            assert_eq!(time(&timestamp(instant)), Some(instant));
        }
        assert_eq!(time(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
        assert_eq!(time(&Timestamp { seconds: 0, nanos: -1 }), None);
    }

    #[test]
    fn lengths_survive_the_wire_and_are_never_negative() {
        for length_ in [std::time::Duration::ZERO, std::time::Duration::new(86_400, 999_999_999)] {
            assert_eq!(length(&duration(length_)), Some(length_));
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(length(&prost_types::Duration { seconds, nanos }), None);
        }
    }

    #[test]
    fn all_violations_are_told_at_once() {
        let mut violations = Violations::default();
        assert_eq!(violations.take("a", "1".parse::<u8>()), Some(1));
        assert_eq!(violations.take("b", "x".parse::<u8>()), None);
        violations.add("c.d", "must be set");
        let error = violations.finish(Some(())).unwrap_err();
        assert_eq!(error.to_string(), "`b` invalid digit found in string; `c.d` must be set");
    }
}
