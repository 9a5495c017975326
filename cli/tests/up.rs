//! `entrepot up` for real: both planes, the embedded Postgres, and the lines that scripts rely on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(90);
const KEY: &str = "admin:correct-horse-battery";

/// A registry of its own on free ports.
struct Registry {
    process: Child,
    /// What it says when it is ready, a line each.
    welcome: Vec<String>,
}

impl Registry {
    fn start(folder: &Path, key: Option<&str>) -> Self {
        let mut process = up(folder, key).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        // It says all of it at once, and this is near the end.
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

    /// What it says about `what`.
    fn told(&self, what: &str) -> &str {
        let line = self.welcome.iter().find_map(|line| line.trim_start().strip_prefix(what));
        line.unwrap().trim()
    }

    fn run(&self, line: &str) -> Output {
        self.run_as(line, KEY)
    }

    fn run_as(&self, line: &str, key: &str) -> Output {
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("entrepot"));
        let api = self.told("API");
        entrepot().args(words).env("ENTREPOT_API", api).env("ENTREPOT_KEY", key).output().unwrap()
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.text(line)).unwrap()
    }

    #[track_caller]
    fn text(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asks it to stop as a service manager would.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        let deadline = Instant::now() + LIMIT;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn entrepot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_entrepot"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn up(folder: &Path, key: Option<&str>) -> Command {
    let mut command = entrepot();
    command.arg("up").arg("--data-dir").arg(folder);
    command.args(["--registry-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"]);
    command.args(["--operations-listen", "127.0.0.1:0"]).envs(key.map(|key| ("ENTREPOT_BOOTSTRAP_KEY", key)));
    command
}

/// A folder that the user who runs Postgres may pass through.
fn passable() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

fn processes_in(folder: &Path) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))).count()
}

#[test]
fn the_lines_that_scripts_rely_on_work_as_written() {
    let folder = passable();
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));

    registry.text(
        "entrepot upstream create local --kind oci --endpoint http://127.0.0.1:5100 --allow-plain-http --allow-private-addresses",
    );
    registry.text("entrepot rule create demo --upstream local");
    let explained = registry.text("entrepot rule explain demo/team/app:v1");
    assert!(explained.contains("http://127.0.0.1:5100/v2/team/app/manifests/v1"), "{explained}");
    let password = registry.text("entrepot login-password");
    assert_eq!(password.trim().split('.').count(), 3, "the token and nothing else");
    assert_eq!(registry.text("entrepot repository list --output json"), "{\"repositories\":[]}\n");

    let rule = registry.json("entrepot rule get rules/demo --output json");
    assert_eq!((&rule["prefix"], &rule["upstream"]), (&"demo".into(), &"upstreams/local".into()));
    assert_eq!(registry.json("entrepot upstream list -o json")["upstreams"][0]["kind"], "OCI");
    assert!(registry.text("entrepot rule list").starts_with("RULE  PREFIX  UPSTREAM"));
    registry.text("entrepot rule update demo --upstream-prefix mirror");
    assert_eq!(registry.json("entrepot rule get demo -o json")["upstream_prefix"], "mirror");
    assert_eq!(registry.text("entrepot rule delete demo"), "deleted rules/demo\n");
    assert_eq!(registry.text("entrepot upstream delete local"), "deleted upstreams/local\n");
    registry.stop();
}

#[test]
fn refusals_say_what_to_do() {
    let folder = passable();
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));
    let refused = |line: &str, key: &str| {
        let output = registry.run_as(line, key);
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let text = refused("entrepot rule list", "admin:wrong-secret");
    assert!(text.starts_with("error: ") && text.contains("ENTREPOT_KEY"), "{text}");
    let text = refused("entrepot rule create Demo_1 --upstream nowhere --prefix UPPER/case", KEY);
    assert!(text.contains("\n  rule_id: ") && text.contains("\n  rule.prefix: "), "{text}");
    let text = refused("entrepot rule get nothing", KEY);
    assert!(text.contains("nothing"), "{text}");

    registry.text("entrepot principal create ci --permission-set puller");
    let key = registry.text("entrepot access-key create ci");
    let text = refused("entrepot upstream list", key.trim());
    assert!(text.contains("administrator"), "{text}");
    let key_id = key.split(':').next().unwrap();
    registry.text(&format!("entrepot access-key revoke ci/{key_id}"));
    assert!(registry.text("entrepot access-key list ci").contains("revoked"));
    registry.stop();
}

#[test]
fn a_first_key_is_made_shown_once_and_good_and_stopping_leaves_nothing_running() {
    let folder = passable();
    let data = folder.path().join("data");
    let registry = Registry::start(&data, None);
    let key = registry.told("first key").split(' ').next().unwrap().to_owned();
    assert!(registry.run_as("entrepot rule list", &key).status.success());
    let probe = format!("{}/readyz", registry.told("operations"));
    assert!(entrepot().args(["health", "--url", &probe]).status().unwrap().success());

    for (name, mode) in [("cluster.key", 0o600), ("snapshot.key", 0o600), ("store", 0o700), ("postgres", 0o700)] {
        assert_eq!(fs::metadata(data.join(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
    let second = up(&data, None).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process"), "{second:?}");
    registry.stop();
    assert_eq!(processes_in(&data), 0);
    let restored = entrepot().args(["admin", "restore", "--data-dir"]).arg(&data).output().unwrap();
    assert!(restored.status.success() && String::from_utf8_lossy(&restored.stderr).contains("nothing was done"));
    assert_eq!(processes_in(&data), 0);

    let registry = Registry::start(&data, None);
    assert!(registry.told("first key").starts_with("was shown at the first start"));
    assert!(registry.run_as("entrepot rule list", &key).status.success());
    registry.stop();
}

#[test]
fn it_comes_back_after_kill_9_and_serves_pulls_without_postgres() {
    let folder = passable();
    let data = folder.path().join("data");
    let mut registry = Registry::start(&data, Some(KEY));
    registry.text("entrepot upstream create quay --kind quay");
    registry.process.kill().unwrap();
    registry.process.wait().unwrap();

    let registry = Registry::start(&data, Some(KEY));
    assert!(registry.text("entrepot upstream list").contains("quay"));
    registry.stop();

    // A database that cannot be started: the registry itself starts from what is published.
    let (database, away) = (data.join("postgres/data"), data.join("postgres/data.away"));
    fs::rename(&database, &away).unwrap();
    fs::create_dir(&database).unwrap();
    fs::write(database.join("PG_VERSION"), "9\n").unwrap();
    let probe = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut process = up(&data, Some(KEY)).args(["--operations-listen", &probe]).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    let url = format!("http://{probe}/readyz");
    while !entrepot().args(["health", "--url", &url]).stderr(Stdio::null()).status().unwrap().success() {
        assert!(Instant::now() < deadline, "it does not get ready without Postgres");
        std::thread::sleep(Duration::from_millis(50));
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_taken_port_and_an_open_api_are_refused_before_anything_is_made() {
    let folder = passable();
    let data = folder.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for (flag, addr, code, parts) in [
        ("--registry-listen", addr.as_str(), 1, [addr.as_str(), "--registry-listen"]),
        ("--api-listen", "0.0.0.0:5001", 2, ["clear-text gRPC", "--allow-plain-api"]),
    ] {
        let output = up(&data, None).args([flag, addr]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    assert!(!data.exists());
}

#[test]
fn a_first_start_without_postgres_names_what_to_install() {
    let folder = passable();
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("postgres/data")).unwrap();
    fs::write(data.join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let output = up(&data, None).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("\nerror: the database in") && text.contains("made by PostgreSQL 9,"), "{text}");
}
