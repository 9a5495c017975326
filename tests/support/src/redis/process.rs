//! A Redis server as a process, and `redis-cli` to talk to it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::{Login, Options};
use crate::program::{self, Host, Program};
use crate::wait_until;

/// The port of each server, on a host of its own.
pub(super) const PORT: u16 = 16_379;
/// The limit of every wait.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// The fixture's own login.
const FIXTURE: (&str, &str) = ("fixture", "of-these-tests");

/// A server, running or not.
pub(super) struct Server {
    program: Program,
    address: SocketAddr,
    tls: bool,
    /// The arguments with which `redis-cli` logs in.
    login: Vec<OsString>,
}

/// The role of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Sentinel,
}

impl Server {
    /// A server called `name` at `address`. `extra` are lines for its configuration.
    pub(super) fn new(
        name: &str,
        role: Role,
        address: SocketAddr,
        folder: &Path,
        options: &Options,
        extra: &str,
    ) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("the folder can be written to");
        let file = folder.join("redis.conf");
        std::fs::write(&file, configuration(role, address, &folder, options, extra)).expect("the folder is writable");
        let mut program = Program::new(name, installed("redis-server"), &folder).arg(&file);
        if role == Role::Sentinel {
            program = program.arg("--sentinel");
        }
        let login: &[&str] = match &options.login {
            None => &[],
            Some(Login::Password(password)) => &["-a", password],
            Some(Login::User { .. }) => &["--user", FIXTURE.0, "-a", FIXTURE.1],
        };
        let mut login: Vec<OsString> = login.iter().map(OsString::from).collect();
        if options.tls.is_some() {
            login.extend(["--tls".into(), "--insecure".into()]);
        }
        Self { program, address, tls: options.tls.is_some(), login }
    }

    /// Starts it, and waits until it answers.
    pub(super) async fn start(&self) {
        self.program.start();
        let what = format!("`{}` answers", self.program.name());
        wait_until(LIMIT, &what, async || {
            assert!(self.program.is_running(), "`{}` has ended:\n{}", self.program.name(), self.program.tail());
            self.try_command(&["PING"]).await.is_ok_and(|answer| answer == "PONG")
        })
        .await;
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}", if self.tls { "rediss" } else { "redis" }, self.address)
    }

    pub(super) async fn command(&self, command: &[&str]) -> String {
        let answer = self.try_command(command).await;
        answer.unwrap_or_else(|problem| panic!("`{}` does not do {command:?}: {problem}", self.program.name()))
    }

    pub(super) async fn try_command(&self, command: &[&str]) -> Result<String, String> {
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let mut arguments: Vec<OsString> = ["-e", "--no-auth-warning", "-h", &host, "-p", &port].map(Into::into).into();
        arguments.extend(self.login.iter().cloned());
        arguments.extend(command.iter().map(OsString::from));
        cli(arguments).await
    }
}

/// A folder for servers.
pub(super) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("redis-").tempdir().expect("there is a folder for what is temporary")
}

/// An address for a server.
pub(super) fn place() -> SocketAddr {
    Host::free().at(PORT)
}

/// Runs `redis-cli`.
pub(super) async fn cli(arguments: Vec<OsString>) -> Result<String, String> {
    let run = move || {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        program::try_run(installed("redis-cli"), &arguments, &[])
    };
    let (status, stdout, stderr) = tokio::task::spawn_blocking(run).await.expect("the fixture does not panic");
    let stdout = String::from_utf8_lossy(&stdout).trim_end().to_owned();
    if status.success() { Ok(stdout) } else { Err(format!("{stdout} {stderr}")) }
}

fn configuration(role: Role, address: SocketAddr, folder: &Path, options: &Options, extra: &str) -> String {
    let (host, port) = (address.ip(), address.port());
    let mut text = format!("bind {host}\nprotected-mode no\ndir {}\n", folder.display());
    if role == Role::Server {
        // Nothing is written to disk: its content is lost when it ends.
        text += "save \"\"\nappendonly no\n";
    }
    match &options.tls {
        None => writeln!(text, "port {port}"),
        Some((certificate, key)) => {
            let file = |name: &str, content: &str| {
                let file = folder.join(name);
                std::fs::write(&file, content).expect("the folder can be written to");
                file.display().to_string()
            };
            let (certificate, key) = (file("tls.crt", certificate), file("tls.key", key));
            writeln!(
                text,
                "port 0\ntls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-auth-clients no"
            )
        }
    }
    .expect("text can be written to");
    match &options.login {
        None => Ok(()),
        Some(Login::Password(password)) => writeln!(text, "requirepass {password}"),
        Some(Login::User { name, password, rules }) => {
            let (fixture, its_password) = FIXTURE;
            writeln!(
                text,
                "user default off\nuser {fixture} on >{its_password} ~* &* +@all\nuser {name} on >{password} {rules}"
            )
        }
    }
    .expect("text can be written to");
    text + extra
}

/// A program of Redis.
fn installed(name: &str) -> PathBuf {
    let folders = ["/usr/local/bin", "/usr/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("`{name}` is not installed: `apt-get install redis-server` installs it"))
}
