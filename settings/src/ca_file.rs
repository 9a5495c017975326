//! Certificates of authorities that are trusted in addition to the machine's.

use std::path::PathBuf;

use entrepot_runtime::config::{Reported, Section};

/// Reads the key `ca_file`, and returns the content of the file that it names, in PEM.
///
/// # Errors
/// If the file cannot be read or holds no certificate; the reader keeps the mistake.
pub fn ca_file(section: &mut Section<'_>) -> Result<Option<String>, Reported> {
    const KEY: &str = "ca_file";
    let Some(path) = section.optional::<PathBuf>(KEY)? else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => Ok(Some(pem)),
        Ok(_) => Err(section.problem(KEY, format!("`{}` must hold certificates in PEM format", path.display()))),
        Err(error) => Err(section.problem(KEY, format!("`{}` cannot be read: {error}", path.display()))),
    }
}
