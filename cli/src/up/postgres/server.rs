//! One run of Postgres: created if needed, started, watched, stopped.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::binaries::Binaries;
use super::folder::{Account, Layout, file};
use super::{Error, State};
use crate::up::parent_death::end_with_parent;

/// The role that owns everything.
pub(super) const SUPERUSER: &str = "entrepot";

const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// Recovery after a kill takes its time.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long Postgres may take to end open sessions and write everything out.
const FAST_SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
const IMMEDIATE_SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Creates the database in a temporary place, and moves it when it is complete.
pub(super) async fn initdb(binaries: &Binaries, account: &Account, layout: &Layout) -> Result<(), Error> {
    end_leftovers(&layout.new_data).await;
    if layout.new_data.exists() {
        warn!("an earlier attempt to create a database did not finish; creating it again");
        fs::remove_dir_all(&layout.new_data).map_err(file("remove", &layout.new_data))?;
    }
    let mut command = Command::new(binaries.folder.join("initdb"));
    account.apply(&mut command);
    command.arg("--pgdata").arg(&layout.new_data).args(["--username", SUPERUSER, "--auth", "trust"]);
    command.args(["--encoding", "UTF8", "--locale", "C.UTF-8", "--data-checksums"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    end_with_parent(&mut command, Signal::KILL);
    let failed = |why: String| Error::Failed { what: "initdb", why };
    let output = timeout(INITDB_LIMIT, command.output())
        .await
        .map_err(|_| failed(format!("not done within {} s", INITDB_LIMIT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let lines: Vec<_> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
        return Err(failed(last_words(&lines, output.status)));
    }
    fs::rename(&layout.new_data, &layout.data).map_err(file("move into place", &layout.new_data))?;
    let parent = layout.data.parent().unwrap_or(&layout.data);
    fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(file("write out", parent))
}

/// A started Postgres.
pub(super) struct Server {
    child: Child,
    pid: Pid,
    log: Log,
    data: PathBuf,
}

impl Server {
    pub(super) async fn start(binaries: &Binaries, account: &Account, layout: &Layout) -> Result<Self, Error> {
        end_leftovers(&layout.data).await;
        let mut command = Command::new(binaries.folder.join("postgres"));
        account.apply(&mut command);
        command.arg("-D").arg(&layout.data);
        let sockets = layout.socket_folder.display().to_string().replace('"', "\"\"");
        for setting in [
            format!("unix_socket_directories=\"{sockets}\""),
            "listen_addresses=".to_owned(),
            "port=5432".to_owned(),
            "shared_buffers=32MB".to_owned(),
            "max_connections=64".to_owned(),
            "log_destination=stderr".to_owned(),
            "logging_collector=off".to_owned(),
        ] {
            command.args(["-c", &setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        // It quits at once, as in a crash, and the next start recovers. A slower shutdown could overlap with that
        // start.
        end_with_parent(&mut command, Signal::QUIT);
        let failed = |why: String| Error::Failed { what: "starting Postgres", why };
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or_else(|| failed("no pid".into()))?;
        let log = Log::new(child.stderr.take());
        Ok(Self { child, pid, log, data: layout.data.clone() })
    }

    /// Reports when it is ready, and stays until it is stopped. If it ends in any other way, that is an error.
    pub(super) async fn run(mut self, state: &watch::Sender<State>, stop: &CancellationToken) -> Result<(), Error> {
        let deadline = Instant::now() + READY_LIMIT;
        let mut ready = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.shut_down().await;
                    return Ok(());
                }
                status = self.child.wait() => {
                    self.log.drain().await;
                    let why = match status {
                        Ok(status) => last_words(self.log.lines.make_contiguous(), status),
                        Err(error) => error.to_string(),
                    };
                    return Err(Error::Failed { what: "Postgres", why });
                }
                () = self.log.follow() => {}
                () = sleep(POLL), if !ready => {
                    if is_ready(&self.data, self.pid) {
                        ready = true;
                        info!("the embedded Postgres is ready");
                        state.send_replace(State::Ready);
                    } else if Instant::now() > deadline {
                        self.shut_down().await;
                        return Err(Error::Slow(READY_LIMIT));
                    }
                }
            }
        }
    }

    /// Asks it to end its sessions and write everything out; after that, tells it to quit; after that, kills it.
    async fn shut_down(&mut self) {
        for (signal, limit) in [(Signal::INT, FAST_SHUTDOWN_LIMIT), (Signal::QUIT, IMMEDIATE_SHUTDOWN_LIMIT)] {
            let _ = kill_process(self.pid, signal);
            let ended = async {
                loop {
                    tokio::select! {
                        _ = self.child.wait() => return,
                        () = self.log.follow() => {}
                    }
                }
            };
            if timeout(limit, ended).await.is_ok() {
                info!("the embedded Postgres has stopped");
                return;
            }
            warn!("the embedded Postgres did not stop within {} s", limit.as_secs());
        }
        let _ = kill_process(self.pid, Signal::KILL);
        end_leftovers(&self.data).await;
        let _ = timeout(IMMEDIATE_SHUTDOWN_LIMIT, self.child.wait()).await;
    }
}

/// The log of Postgres. Its last lines are kept, to explain its end.
struct Log {
    reader: Option<tokio::io::Lines<BufReader<ChildStderr>>>,
    lines: VecDeque<String>,
}

impl Log {
    const KEPT_LINES: usize = 40;

    fn new(stderr: Option<ChildStderr>) -> Self {
        Self { reader: stderr.map(|stderr| BufReader::new(stderr).lines()), lines: VecDeque::new() }
    }

    /// Reads the next line; never returns once there are no more.
    async fn follow(&mut self) {
        let Some(reader) = &mut self.reader else { return std::future::pending().await };
        match reader.next_line().await {
            Ok(Some(line)) => {
                debug!(target: "postgres", "{line}");
                if self.lines.len() == Self::KEPT_LINES {
                    self.lines.pop_front();
                }
                self.lines.push_back(line);
            }
            Ok(None) | Err(_) => self.reader = None,
        }
    }

    /// Reads what has been written already.
    async fn drain(&mut self) {
        while self.reader.is_some() && timeout(Duration::from_millis(200), self.follow()).await.is_ok() {}
    }
}

/// Why a program ended, from its own output as far as possible.
fn last_words(lines: &[String], status: ExitStatus) -> String {
    let marked = lines.iter().rev().find(|line| ["FATAL:", "PANIC:", "error:"].iter().any(|mark| line.contains(mark)));
    let hint = lines.iter().rev().find(|line| line.contains("HINT:"));
    match marked.or(lines.last()) {
        Some(line) => {
            [Some(line), hint].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ") + &format!(" ({status})")
        }
        None => status.to_string(),
    }
}

/// Whether the Postgres with this pid has written that it accepts connections.
fn is_ready(data: &Path, pid: Pid) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let mut lines = text.lines();
    let own = lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid.as_raw_nonzero().get());
    own && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

/// Ends processes that an earlier run has left working in `data`, and removes a stale pid file.
///
/// The folder is ours alone, so any Postgres that works in it is ours. If the number in a pid file belongs to another
/// process by now, Postgres would refuse to start.
async fn end_leftovers(data: &Path) {
    let deadline = Instant::now() + FAST_SHUTDOWN_LIMIT;
    loop {
        let left = working_in(data);
        if left.is_empty() {
            break;
        }
        let signal = if Instant::now() < deadline { Signal::QUIT } else { Signal::KILL };
        debug!("ending {} processes of an earlier Postgres", left.len());
        for pid in left {
            let _ = kill_process(pid, signal);
        }
        if Instant::now() > deadline + IMMEDIATE_SHUTDOWN_LIMIT {
            break;
        }
        sleep(POLL).await;
    }
    if working_in(data).is_empty() {
        // It is fine if it does not exist.
        let _ = fs::remove_file(data.join("postmaster.pid"));
    }
}

/// The Postgres processes whose working folder is `data`; all processes of a Postgres work in its data folder.
fn working_in(data: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            let postgres = fs::read_to_string(entry.path().join("comm")).ok()?.trim() == "postgres";
            let here = fs::read_link(entry.path().join("cwd")).ok()? == data;
            (postgres && here).then_some(pid)
        })
        .collect()
}
