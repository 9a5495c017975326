//! The Postgres installations of this machine.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Error;

/// The oldest major version that our SQL works with.
pub(super) const OLDEST: u32 = 15;
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The programs of one Postgres installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    /// Their folder.
    pub(super) folder: PathBuf,
    /// The major version.
    pub(super) major: u32,
    /// The full version, as the program reports it.
    pub(super) version: String,
}

/// All usable installations: first those on `path`, then the packaged ones, the newest first.
pub(super) async fn find(path: &OsStr) -> Result<Vec<Binaries>, Error> {
    let mut folders: Vec<PathBuf> = std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect();
    folders.extend(versioned("/usr/lib/postgresql", "", "bin"));
    folders.extend(versioned("/usr", "pgsql-", "bin"));

    let mut found: Vec<Binaries> = vec![];
    for folder in folders {
        // A link leads to the folder of the rest of the installation.
        let Ok(program) = fs::canonicalize(folder.join("postgres")) else { continue };
        let Some(folder) = program.parent().filter(|folder| folder.join("initdb").is_file()) else { continue };
        if found.iter().any(|known| known.folder == folder) {
            continue;
        }
        if let Some((major, version)) = version(&program).await.filter(|(major, _)| *major >= OLDEST) {
            found.push(Binaries { folder: folder.to_owned(), major, version });
        }
    }
    if found.is_empty() { Err(Error::NotInstalled) } else { Ok(found) }
}

/// The installation for the data in `data`: of the version that created it, or else the first.
pub(super) fn choose(installed: Vec<Binaries>, data: &Path) -> Result<Binaries, Error> {
    let made_by = fs::read_to_string(data.join("PG_VERSION")).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let majors: Vec<_> = installed.iter().map(|binaries| binaries.major.to_string()).collect();
    let usable = |binaries: &Binaries| made_by.is_none_or(|major| binaries.major == major);
    installed.into_iter().find(usable).ok_or_else(|| Error::OtherMajor {
        folder: data.to_owned(),
        data: made_by.unwrap_or_default(),
        installed: majors.join(", "),
    })
}

/// Folders such as `/usr/lib/postgresql/15/bin`, the newest first.
fn versioned(parent: &str, prefix: &str, rest: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut folders: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((major, entry.path().join(rest)))
        })
        .collect();
    folders.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    folders.into_iter().map(|(_, folder)| folder).collect()
}

/// The version that a program reports, if it is a Postgres server at all.
async fn version(program: &Path) -> Option<(u32, String)> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_LIMIT, command.output()).await.ok()?.ok()?;
    parse_version(std::str::from_utf8(&output.stdout).ok()?)
}

fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?.trim();
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version[..digits].parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        let read = |text| parse_version(text).map(|(major, _)| major);
        assert_eq!(read("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(read("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(read("pg_wrapper 1.0"), None);
    }

    #[test]
    fn data_is_only_opened_by_the_version_that_made_it() {
        let data = tempfile::tempdir().unwrap();
        let of = |major: u32| Binaries {
            folder: PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
            major,
            version: major.to_string(),
        };
        assert_eq!(choose(vec![of(17), of(15)], data.path()).unwrap(), of(17));
        fs::write(data.path().join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(choose(vec![of(17), of(15)], data.path()).unwrap(), of(15));
        let text = choose(vec![of(17), of(16)], data.path()).unwrap_err().to_string();
        assert!(text.contains("made by PostgreSQL 15, and this machine has 17, 16"), "{text}");
        assert!(text.contains("apt-get install postgresql-15"), "{text}");
    }
}
