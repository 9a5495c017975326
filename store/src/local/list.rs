//! Lists a folder in the order in which object storage lists keys.

use std::fs;
use std::io;
use std::path::Path;

use super::failed_to;
use super::files::Files;
use crate::{Entry, Error, Key, Prefix};

/// At most `limit` objects below `prefix` and after `start_after`, in byte order.
pub(super) fn list(
    files: &Files,
    prefix: &Prefix,
    start_after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Entry>, Error> {
    let mut listing = Listing { files, start_after: start_after.map(Key::as_str), limit, found: Vec::new() };
    listing.walk(prefix.as_str())?;
    Ok(listing.found)
}

struct Listing<'a> {
    files: &'a Files,
    start_after: Option<&'a str>,
    limit: usize,
    found: Vec<Entry>,
}

impl Listing<'_> {
    /// Walks through `folder`, which is empty or ends with `/`.
    fn walk(&mut self, folder: &str) -> Result<(), Error> {
        for path in entries(self.files.root(), folder)? {
            if self.found.len() >= self.limit {
                break;
            }
            if path.ends_with('/') {
                if !self.is_behind_us(&path) {
                    self.walk(&path)?;
                }
            } else if self.start_after.is_none_or(|after| *path > *after)
                // Files of others in the folder are not shown.
                && let Ok(key) = Key::parse(&path)
            {
                // It may have been deleted meanwhile.
                self.found.extend(self.files.entry(key)?);
            }
        }
        Ok(())
    }

    /// Whether every key below `folder` comes before the part to list.
    fn is_behind_us(&self, folder: &str) -> bool {
        self.start_after.is_some_and(|after| !after.starts_with(folder) && folder < after)
    }
}

/// The children of a folder in the order of keys. Folders have a trailing `/`, since `a-b` comes before `a/b`.
fn entries(root: &Path, folder: &str) -> Result<Vec<String>, Error> {
    let path = root.join(folder);
    let read = || -> io::Result<_> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
            if !name.starts_with('.') {
                entries.push(format!("{folder}{name}{slash}"));
            }
        }
        entries.sort_unstable();
        Ok(entries)
    };
    match read() {
        // It never existed, or was removed meanwhile.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        result => result.map_err(failed_to("list", &path)),
    }
}
