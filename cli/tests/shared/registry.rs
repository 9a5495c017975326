//! A registry for one test: the real command, both planes, the embedded Postgres.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use entrepot_test_support::wait_until_blocking;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The limit of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
/// The administrator's key of every registry here that is given one.
pub(crate) const KEY: &str = "admin:correct-horse-battery";

/// A registry of its own on free ports.
pub(crate) struct Registry {
    process: Child,
    /// What it prints when it is ready, line by line.
    pub(crate) welcome: Vec<String>,
}

impl Registry {
    pub(crate) fn start(folder: &Path, key: Option<&str>) -> Self {
        Self::start_as(&mut up(folder, key))
    }

    /// As [`Registry::start`], with another command line.
    pub(crate) fn start_as(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        // It prints everything at once, and this is near the end.
        let mut welcome = vec![];
        for line in lines {
            let last = line.contains("docker login");
            welcome.push(line);
            if last {
                break;
            }
        }
        assert_eq!(welcome.first().map(String::as_str), Some("Entrepot is ready."));
        Self { process, welcome }
    }

    #[allow(dead_code, reason = "not each of the test programs looks at the process")]
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it prints about `what`.
    pub(crate) fn told(&self, what: &str) -> &str {
        let line = self.welcome.iter().find_map(|line| line.trim_start().strip_prefix(what));
        line.unwrap().trim()
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.run_as(line, KEY)
    }

    pub(crate) fn run_as(&self, line: &str, key: &str) -> Output {
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("entrepot"));
        let api = self.told("API");
        entrepot().args(words).env("ENTREPOT_API", api).env("ENTREPOT_KEY", key).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.text(line)).unwrap()
    }

    #[track_caller]
    pub(crate) fn text(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Kills it like `kill -9`.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to stop, as a service manager would.
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        wait_until_blocking(LIMIT, "it has stopped", || self.process.try_wait().unwrap().is_some());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn entrepot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_entrepot"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

pub(crate) fn up(folder: &Path, key: Option<&str>) -> Command {
    let mut command = entrepot();
    command.arg("up").arg("--data-dir").arg(folder);
    command.args(["--registry-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"]);
    command.args(["--operations-listen", "127.0.0.1:0"]).envs(key.map(|key| ("ENTREPOT_BOOTSTRAP_KEY", key)));
    command
}

/// A folder that the user that runs Postgres may pass through.
pub(crate) fn passable() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

/// How many processes work in the folder; those of Postgres do.
pub(crate) fn processes_in(folder: &Path) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))).count()
}
