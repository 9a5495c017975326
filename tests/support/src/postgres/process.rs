//! Postgres as a process: its programs, its user, and its end.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

/// The superuser of the databases.
pub(super) const SUPERUSER: &str = "postgres";

/// A folder that contains a data folder and a socket folder. Clones share it.
#[derive(Clone)]
pub(super) struct Cluster(Arc<Folder>);

struct Folder {
    /// The shell that removes what a dying process leaves. It reads from a pipe whose other end only this process has,
    /// so it continues when this process ends in any way.
    janitor: Child,
    folder: TempDir,
    programs: PathBuf,
    user: Option<User>,
    /// The port for TLS, if it is used.
    tls_port: Option<u16>,
}

/// The settings of a Postgres that is reached over TLS.
pub(super) struct Tls {
    pub(super) port: u16,
    /// Certificate and key, in PEM.
    pub(super) certificate: (String, String),
}

/// The user that a process runs as.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl Cluster {
    /// Creates a new one.
    pub(super) fn create(tls: Option<&Tls>) -> Self {
        // Not in `TMPDIR`, which may be too long for a socket's path or closed to the user `postgres`.
        let folder = tempfile::Builder::new().prefix("pg-").tempdir_in("/tmp").expect("/tmp can be written to");
        // Postgres refuses to run as root.
        let user = is_root().then(|| user("postgres"));
        if let Some(User { uid, gid }) = user {
            chown(folder.path(), Some(uid), Some(gid)).expect("root can give a folder away");
        }
        let (janitor, tls_port) = (janitor(folder.path()), tls.map(|tls| tls.port));
        let cluster = Self(Arc::new(Folder { janitor, folder, programs: programs(), user, tls_port }));
        cluster.make_data_folder();
        if let Some(tls) = tls {
            cluster.prepare_tls(tls);
        }
        cluster
    }

    /// Creates the data folder as a copy of what `initdb` has made once, which takes a fifth of the time.
    fn make_data_folder(&self) {
        let version = self.run("initdb", &["--version"]);
        let version: String = version.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
        let kept = crate::cache().join("postgres").join(version);
        if kept.exists() {
            return copy_folder(&kept, &self.data_folder());
        }
        let data_folder = self.data_folder();
        let data_folder_text = data_folder.to_str().expect("the folder's path is text");
        let arguments = ["--username", SUPERUSER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"];
        self.run("initdb", &[&arguments[..], &["--pgdata", data_folder_text]].concat());
        let folder = kept.parent().expect("it is in a folder of its own");
        fs::create_dir_all(folder).expect("the cache can be written to");
        // It gets its name only when it is complete. Another process may have been faster, with the same content.
        let copy = tempfile::Builder::new().prefix(".").tempdir_in(folder).expect("the cache can be written to");
        copy_folder(&data_folder, &copy.path().join("data"));
        let _ = fs::rename(copy.path().join("data"), &kept);
    }

    /// Runs a program of Postgres to its end, and returns its output.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().expect("Postgres' programs can be started");
        assert!(output.status.success(), "{program} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Puts certificate and key where Postgres looks for them; passwords are then required over the network.
    fn prepare_tls(&self, tls: &Tls) {
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        let (certificate, key) = &tls.certificate;
        for (name, text) in [("server.crt", certificate.as_str()), ("server.key", key), ("pg_hba.conf", rules)] {
            let path = self.data_folder().join(name);
            fs::write(&path, text).expect("the data folder can be written to");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file's mode can be set");
            if let Some(User { uid, gid }) = self.0.user {
                chown(&path, Some(uid), Some(gid)).expect("root can give a file away");
            }
        }
    }

    pub(super) fn socket_folder(&self) -> PathBuf {
        self.0.folder.path().to_owned()
    }

    fn data_folder(&self) -> PathBuf {
        self.0.folder.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.0.folder.path().join("log")
    }

    fn network(&self) -> Vec<String> {
        match self.0.tls_port {
            None => vec!["-c".to_owned(), "listen_addresses=".to_owned()],
            Some(port) => ["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={port}"), "-c", "ssl=on"]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    pub(super) fn tls_port(&self) -> Option<u16> {
        self.0.tls_port
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.0.programs.join(program));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir(self.0.folder.path());
        // A Ctrl-C for the tests must not reach it.
        command.stdin(Stdio::null()).process_group(0);
        if let Some(User { uid, gid }) = self.0.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// A running Postgres.
pub(super) struct Server {
    child: Child,
    cluster: Cluster,
}

impl Server {
    pub(super) fn start(cluster: &Cluster) -> Self {
        let log = File::create(cluster.log_file()).expect("the log can be made");
        let child = cluster
            .command("postgres")
            .arg("-D")
            .arg(cluster.data_folder())
            .arg("-k")
            .arg(cluster.socket_folder())
            .args(cluster.network())
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            .args(["-c", "synchronous_commit=off", "-c", "max_connections=200", "-c", "shared_buffers=32MB"])
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("postgres can be started");
        Self { child, cluster: cluster.clone() }
    }

    /// The end of its log, if it has ended.
    pub(super) fn epitaph(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            _ => Some(fs::read_to_string(self.cluster.log_file()).unwrap_or_default()),
        }
    }

    /// SIGINT: what Postgres calls a fast shutdown.
    pub(super) fn stop(mut self) {
        self.signal("INT");
        let _ = self.child.wait();
    }

    /// SIGKILL. Its children notice, and end by themselves.
    pub(super) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, name: &str) {
        let _ = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGQUIT: what Postgres calls an immediate shutdown.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("QUIT");
        }
        let _ = self.child.wait();
    }
}

/// Waits until this process is gone, then ends the Postgres of `folder` and removes it.
fn janitor(folder: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        while read -r _; do :; done
        pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
        if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ]; then
            kill -QUIT "$pid" 2>/dev/null
            tries=0
            while kill -0 "$pid" 2>/dev/null && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
        fi
        rm -rf "$1""#;
    Command::new("/bin/sh")
        .args(["-c", SCRIPT, "janitor"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .expect("a shell can be started")
}

/// Copies a folder with everything in it, including owners.
fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("--").arg(from).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "{} cannot be copied to {}", from.display(), to.display());
}

/// The folder with the newest Postgres.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    found.sort();
    let elsewhere = ["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    let folders = found.into_iter().rev().map(|(_, folder)| folder).chain(elsewhere);
    let mut complete = folders.filter(|folder| folder.join("initdb").exists() && folder.join("postgres").exists());
    complete.next().expect("Postgres is not installed: `apt-get install postgresql` installs it")
}

fn is_root() -> bool {
    let mut status = String::new();
    let read = File::open("/proc/self/status").and_then(|mut file| file.read_to_string(&mut status));
    read.is_ok() && status.lines().any(|line| line.starts_with("Uid:\t0\t0\t"))
}

fn user(name: &str) -> User {
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let fields = fields.unwrap_or_else(|| panic!("there is no user `{name}`, and Postgres refuses to run as root"));
    let id = |index: usize| fields.get(index).and_then(|id| id.parse().ok()).expect("ids are numbers");
    User { uid: id(2), gid: id(3) }
}
