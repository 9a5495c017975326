//! What a test has seen and measured, for whoever reads its output.

/// Says what was measured.
pub(crate) fn report(what: &str, value: impl std::fmt::Display) {
    eprintln!("measured: {what}: {value}");
}
