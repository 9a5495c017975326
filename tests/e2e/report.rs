//! Prints what a test has seen and measured.

/// Prints a measured value.
pub(crate) fn report(what: &str, value: impl std::fmt::Display) {
    eprintln!("measured: {what}: {value}");
}
