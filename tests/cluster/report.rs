//! What a test has measured, for whoever reads its output.

use std::time::Duration;

/// Says what was measured.
pub(crate) fn report(what: &str, value: impl std::fmt::Display) {
    eprintln!("measured: {what}: {value}");
}

/// Half of the durations are shorter.
pub(crate) fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

/// The shortest duration that this part of all does not exceed.
pub(crate) fn quantile(durations: impl Iterator<Item = Duration>, part: f64) -> Duration {
    let mut durations: Vec<Duration> = durations.collect();
    durations.sort();
    let at = (durations.len() as f64 * part).ceil() as usize;
    durations[at.clamp(1, durations.len()) - 1]
}

/// A number of seconds from the environment, for a test that has a short form and a long one.
pub(crate) fn seconds(variable: &str, default: u64) -> Duration {
    let said = std::env::var(variable).ok().filter(|text| !text.is_empty());
    let seconds = said.map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number of seconds")));
    Duration::from_secs(seconds.unwrap_or(default))
}
