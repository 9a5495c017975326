//! The folder where tests keep things, outside the source tree.

use std::path::PathBuf;

/// The folder for downloads and reports: `ENTREPOT_CACHE`, or `~/.cache/entrepot`.
pub fn cache() -> PathBuf {
    let named = std::env::var_os("ENTREPOT_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into()));
    named.unwrap_or_else(|| home().join(".cache/entrepot"))
}
