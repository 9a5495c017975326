//! `entrepot keys`: the files that programs of one cluster share.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use entrepot_runtime::chain;
use entrepot_trust::{ClusterKey, KeyFileError, SnapshotSigner};

use crate::error::Error;
use crate::output;

const CLUSTER: &str = "cluster.key";
const SEED: &str = "snapshot.key";
const PUBLIC: &str = "snapshot.pub";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the keys of a new cluster: cluster.key, snapshot.key and snapshot.pub.
    ///
    /// cluster.key belongs on every machine of the cluster: it seals the credentials of upstreams and signs tokens.
    /// snapshot.key belongs only on control planes: it signs the snapshots for nodes. snapshot.pub, which is not
    /// secret, belongs on nodes, so that they can check the signature. Existing files are never replaced.
    #[command(after_help = EXAMPLES)]
    Generate(GenerateArgs),
}

const EXAMPLES: &str = "\
Examples:
  entrepot keys generate --out /etc/entrepot/keys
  entrepot keys generate --out /etc/entrepot/keys --if-missing";

#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// The folder to write to; it is created if needed.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,

    /// Accept existing keys if all of them are there: for scripts that run at every start.
    #[arg(long)]
    if_missing: bool,
}

/// What a folder contains already.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Both secrets; the public key can be derived from them.
    Both,
    /// One file, or two that do not form a set.
    Some(&'static str, &'static str),
}

impl Command {
    pub(crate) fn run(self) -> Result<ExitCode, Error> {
        let Self::Generate(args) = self;
        generate(&args)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn generate(args: &GenerateArgs) -> Result<(), Error> {
    let folder = &args.out;
    make_folder(folder)?;
    match (look(folder), args.if_missing) {
        (Found::Nothing, _) => {
            write(folder)?;
            for (file, whose) in [(CLUSTER, "every machine"), (SEED, "control planes only"), (PUBLIC, "nodes")] {
                output::note(&format!("made {}, for {whose}", folder.join(file).display()));
            }
            Ok(())
        }
        (Found::Both, true) => {
            write(folder)?;
            output::note(&format!("kept the keys in {}", folder.display()));
            Ok(())
        }
        (Found::Some(there, missing), true) => Err(Error::Failed(format!(
            "{} is there, but {missing} is not: copy the missing file from another machine of the cluster. If no \
             cluster uses these keys yet, remove what is there",
            folder.join(there).display()
        ))),
        (Found::Both | Found::Some(..), false) => Err(Error::Failed(format!(
            "there are keys in {}, and a cluster that loses its keys loses its secrets: choose another folder, or say \
             --if-missing to let them be",
            folder.display()
        ))),
    }
}

/// Creates what is missing, and reads what exists, so that unusable keys are reported now.
fn write(folder: &Path) -> Result<(), Error> {
    let failed = |error: KeyFileError| Error::Failed(chain(&error).to_string());
    ClusterKey::load_or_generate(folder.join(CLUSTER)).map_err(failed)?;
    let signer = SnapshotSigner::load_or_generate(folder.join(SEED)).map_err(failed)?;
    signer.public_key().save(folder.join(PUBLIC)).map_err(failed)
}

fn look(folder: &Path) -> Found {
    // A dangling link counts as existing, too: nothing is created in its place.
    let is_there = |file: &str| folder.join(file).symlink_metadata().is_ok();
    match (is_there(CLUSTER), is_there(SEED), is_there(PUBLIC)) {
        (false, false, false) => Found::Nothing,
        (true, true, _) => Found::Both,
        (true, false, _) => Found::Some(CLUSTER, SEED),
        (false, true, _) => Found::Some(SEED, CLUSTER),
        (false, false, true) => Found::Some(PUBLIC, SEED),
    }
}

/// Creates the folder, accessible only to its owner; an existing one is left as it is.
fn make_folder(folder: &Path) -> Result<(), Error> {
    let made = match folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => std::fs::create_dir_all(parent),
        None => Ok(()),
    };
    let made = made.and_then(|()| match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        // This holds whatever the process's umask says.
        Ok(()) => std::fs::set_permissions(folder, Permissions::from_mode(0o700)),
        Err(error) => Err(error),
    });
    made.map_err(|error| Error::Failed(format!("cannot make the folder `{}`: {error}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path, if_missing: bool) -> Result<(), String> {
        generate(&GenerateArgs { out: folder.to_owned(), if_missing }).map_err(|error| error.to_string())
    }

    fn contents(folder: &Path) -> [Vec<u8>; 3] {
        [CLUSTER, SEED, PUBLIC].map(|file| std::fs::read(folder.join(file)).unwrap())
    }

    #[test]
    fn keys_that_are_there_are_refused_or_kept_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("etc/keys");
        run(&folder, false).unwrap();
        let made = contents(&folder);
        assert!(run(&folder, false).unwrap_err().contains("--if-missing"));
        run(&folder, true).unwrap();
        assert_eq!(contents(&folder), made);
    }

    #[test]
    fn half_a_set_is_refused_with_what_to_do_and_left_as_it_is() {
        for (kept, missing) in [(CLUSTER, SEED), (SEED, CLUSTER), (PUBLIC, SEED)] {
            let folder = tempfile::tempdir().unwrap();
            run(folder.path(), false).unwrap();
            for file in [CLUSTER, SEED, PUBLIC].into_iter().filter(|file| *file != kept) {
                std::fs::remove_file(folder.path().join(file)).unwrap();
            }
            for if_missing in [true, false] {
                let error = run(folder.path(), if_missing).unwrap_err();
                assert!(!if_missing || (error.contains(kept) && error.contains(&format!("but {missing}"))), "{error}");
            }
            assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        }
    }

    #[test]
    fn a_public_key_that_is_lost_is_made_from_its_seed_and_a_wrong_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), false).unwrap();
        let made = contents(folder.path());
        std::fs::remove_file(folder.path().join(PUBLIC)).unwrap();
        run(folder.path(), true).unwrap();
        assert_eq!(contents(folder.path()), made);

        std::fs::write(folder.path().join(PUBLIC), SnapshotSigner::generate().public_key().to_string()).unwrap();
        assert!(run(folder.path(), true).unwrap_err().contains("another key"));
    }

    #[test]
    fn keys_that_others_can_read_are_refused_rather_than_kept() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), false).unwrap();
        std::fs::set_permissions(folder.path().join(SEED), Permissions::from_mode(0o644)).unwrap();
        assert!(run(folder.path(), true).unwrap_err().contains("chmod 600"));
    }
}
