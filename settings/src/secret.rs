//! Secrets, which may be in files of their own.

use std::path::PathBuf;

use entrepot_domain::Secret;
use entrepot_runtime::config::{Reported, Section};

/// Reads a key with a secret, such as `password`, or the file that the key with the suffix `_file` names.
///
/// White space at the end of such a file is ignored.
///
/// # Errors
/// If both are set, or the file cannot be read; the reader keeps the mistake.
pub fn secret(section: &mut Section<'_>, key: &str) -> Result<Option<Secret<String>>, Reported> {
    let direct = section.optional_secret::<String>(key);
    let file_key = &format!("{key}_file");
    let file = section.optional::<PathBuf>(file_key);
    match (direct?, file?) {
        (Some(_), Some(_)) => Err(section.problem(key, format!("is set, and {file_key} too: remove one of them"))),
        (Some(text), None) => Ok(Some(Secret::new(text))),
        (None, None) => Ok(None),
        (None, Some(path)) => match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Secret::new(text.trim_end().to_owned()))),
            Err(error) => Err(section.problem(file_key, format!("`{}` cannot be read: {error}", path.display()))),
        },
    }
}

/// As [`secret`], for one that must be set.
///
/// # Errors
/// As [`secret`], and if neither key is set.
pub fn required_secret(section: &mut Section<'_>, key: &str) -> Result<Secret<String>, Reported> {
    secret(section, key)?.ok_or_else(|| section.missing(key))
}
