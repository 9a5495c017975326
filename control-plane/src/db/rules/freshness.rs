//! How far a rule's tags are trusted, as its columns have it. NULL is the default.

use std::time::Duration;

use entrepot_domain::freshness::{Mode, Policy, TagPattern, TagWindow, WhenDeleted, WhenDenied};
use tokio_postgres::Row;

use super::super::Error;
use super::super::row::{column, corrupt, parsed_all};

/// The policy in a row of the table `rules`.
pub(super) fn from_row(row: &Row) -> Result<Policy, Error> {
    let default = Policy::default();
    Ok(Policy {
        window: length(row, "window_seconds")?.unwrap_or(default.window),
        mode: named(row, "mode", Mode::from_name)?.unwrap_or(default.mode),
        immutable_tags: parsed_all(row, "immutable_tags")?,
        max_stale: length(row, "max_stale_seconds")?,
        when_deleted: named(row, "when_deleted", WhenDeleted::from_name)?.unwrap_or(default.when_deleted),
        when_denied: named(row, "when_denied", WhenDenied::from_name)?.unwrap_or(default.when_denied),
        tag_windows: tag_windows(row)?,
        tag_list_window: length(row, "tag_list_window_seconds")?.unwrap_or(default.tag_list_window),
        referrers_window: length(row, "referrers_window_seconds")?.unwrap_or(default.referrers_window),
        automatic_sync: column::<Option<bool>>(row, "automatic_sync")?.unwrap_or(default.automatic_sync),
    })
}

/// A policy's windows of tags, as the columns hold them.
pub(super) struct TagWindowColumns {
    pub(super) patterns: Vec<String>,
    pub(super) seconds: Vec<Option<i64>>,
    pub(super) modes: Vec<Option<&'static str>>,
}

impl TagWindowColumns {
    pub(super) fn of(policy: &Policy) -> Self {
        let all = &policy.tag_windows;
        Self {
            patterns: all.iter().map(|own| own.pattern.to_string()).collect(),
            seconds: all.iter().map(|own| own.window.map(seconds)).collect(),
            modes: all.iter().map(|own| own.mode.map(Mode::as_str)).collect(),
        }
    }
}

/// A length of time as a column holds it.
pub(super) fn seconds(length: Duration) -> i64 {
    i64::try_from(length.as_secs()).unwrap_or(i64::MAX)
}

fn tag_windows(row: &Row) -> Result<Vec<TagWindow>, Error> {
    let patterns: Vec<TagPattern> = parsed_all(row, "tag_window_patterns")?;
    let seconds: Vec<Option<i64>> = column(row, "tag_window_seconds")?;
    let modes: Vec<Option<&str>> = column(row, "tag_window_modes")?;
    let rows = patterns.into_iter().zip(seconds).zip(modes);
    let read = rows.map(|((pattern, seconds), mode)| {
        let window = seconds.map(|seconds| to_length("tag_window_seconds", seconds)).transpose()?;
        let mode = mode.map(|mode| from_name("tag_window_modes", mode, Mode::from_name)).transpose()?;
        Ok(TagWindow { pattern, window, mode })
    });
    read.collect()
}

fn length(row: &Row, name: &'static str) -> Result<Option<Duration>, Error> {
    column::<Option<i64>>(row, name)?.map(|seconds| to_length(name, seconds)).transpose()
}

fn to_length(column: &'static str, seconds: i64) -> Result<Duration, Error> {
    u64::try_from(seconds).map(Duration::from_secs).map_err(|error| corrupt(column, error))
}

fn named<T>(row: &Row, name: &'static str, read: fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
    column::<Option<&str>>(row, name)?.map(|text| from_name(name, text, read)).transpose()
}

fn from_name<T>(column: &'static str, text: &str, read: fn(&str) -> Option<T>) -> Result<T, Error> {
    read(text).ok_or_else(|| corrupt(column, "unknown"))
}
