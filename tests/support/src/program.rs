//! Programs as processes: started, examined, stopped, killed and frozen.

mod host;
mod probe;
mod spawn;

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;

pub use host::Host;
pub use probe::{Probed, probe};

use crate::wait_until;

/// How long a program may take to become ready, to log something, or to end.
const LIMIT: Duration = Duration::from_secs(60);
/// How much of a program's log a failing test prints.
const SHOWN_BYTES: usize = 6000;

/// A program with its arguments and its log. It may be running or not. It ends when this is dropped, and also with the
/// test's process, however that ends.
pub struct Program {
    name: String,
    file: Mutex<PathBuf>,
    arguments: Vec<OsString>,
    environment: Mutex<Vec<(String, String)>>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Program {
    /// The program in `file`, called `name`, which writes its log below `folder`. It is not started yet. Its
    /// environment contains only `PATH`.
    pub fn new(name: &str, file: impl Into<PathBuf>, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            file: Mutex::new(file.into()),
            arguments: Vec::new(),
            environment: Mutex::new(vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin".to_owned())]),
            log: folder.join(format!("{name}.log")),
            child: Mutex::default(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.set_env(name, Some(value));
        self
    }

    /// Sets or removes a variable; this takes effect at its next start.
    pub fn set_env(&self, name: &str, value: Option<&str>) {
        let mut environment = self.environment.lock();
        environment.retain(|(known, _)| known != name);
        environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Uses the file of the same name in another folder from its next start on.
    ///
    /// # Panics
    /// If there is none.
    pub fn move_to(&self, folder: &Path) {
        let mut file = self.file.lock();
        *file = folder.join(file.file_name().expect("a program is a file"));
        assert!(file.exists(), "{} is missing", file.display());
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of its process, if it was started and not waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.lock().as_ref().map(Child::id)
    }

    /// Starts it. Its output is appended to its log.
    ///
    /// # Panics
    /// If it is running, or cannot be started.
    pub fn start(&self) {
        assert!(!self.is_running(), "`{}` runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log can be written");
        // A parent-death signal works however this process ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&*self.file.lock()).args(&self.arguments);
        command.env_clear().envs(self.environment.lock().iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        // A Ctrl-C for the tests must not reach it; it ends with them anyway.
        command.process_group(0);
        let started = spawn::spawn(command);
        let child = started.unwrap_or_else(|error| panic!("`{}` cannot be started: {error}", self.name));
        *self.child.lock() = Some(child);
    }

    /// Whether it is running or frozen.
    pub fn is_running(&self) -> bool {
        self.child.lock().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until `GET /readyz` at `operations` answers 200.
    ///
    /// # Panics
    /// If it ends before, or is not ready within a minute.
    pub async fn until_ready(&self, operations: SocketAddr) {
        self.until_probed(operations, "ready", async |probed| probed.status == 200).await;
    }

    /// Waits until `GET /readyz` at `operations` answers anything but 200.
    pub async fn until_not_ready(&self, operations: SocketAddr) {
        self.until_probed(operations, "not ready", async |probed| probed.status != 200).await;
    }

    async fn until_probed(&self, operations: SocketAddr, what: &str, holds: impl AsyncFn(Probed) -> bool) {
        let what = format!("`{}` is {what}", self.name);
        wait_until(LIMIT, &what, async || {
            assert!(self.is_running(), "`{}` has ended:\n{}", self.name, self.tail());
            match probe(operations, "/readyz").await {
                Ok(probed) => holds(probed).await,
                Err(_) => false,
            }
        })
        .await;
    }

    /// SIGTERM, and waits until it has ended.
    pub async fn stop(&self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) {
        self.signal("KILL");
        self.ended().await;
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// If it does not end within a minute, or is not running.
    pub async fn ended(&self) -> ExitStatus {
        let status = Mutex::new(None);
        let what = format!("`{}` has ended", self.name);
        wait_until(LIMIT, &what, async || {
            let mut child = self.child.lock();
            let running = child.as_mut().expect("it was started");
            *status.lock() = running.try_wait().expect("a child can be waited for");
            status.lock().is_some()
        })
        .await;
        *self.child.lock() = None;
        let status = *status.lock();
        status.expect("it was waited for")
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, name: &str) {
        let child = self.child.lock();
        let id = child.as_ref().unwrap_or_else(|| panic!("`{}` does not run", self.name)).id();
        let sent = Command::new("kill").args(["-s", name, &id.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "`{}` cannot be sent SIG{name}", self.name);
    }

    /// Everything that it has logged so far.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    /// The length of its log, for [`Program::log_from`].
    pub fn log_mark(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// What it has logged since its log was `mark` bytes long.
    pub fn log_from(&self, mark: u64) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.log) {
            file.seek(SeekFrom::Start(mark)).expect("a file can be searched");
            file.read_to_end(&mut bytes).expect("the log can be read");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until its log since `mark` contains `text`.
    pub async fn until_logged(&self, mark: u64, text: &str) {
        let what = format!("`{}` logs `{text}`", self.name);
        wait_until(LIMIT, &what, async || self.log_from(mark).contains(text)).await;
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let start = log.ceil_char_boundary(log.len().saturating_sub(SHOWN_BYTES));
        log[start..].to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the log of `{}` ends with:\n{}", self.name, self.tail());
        }
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("name", &self.name).field("log", &self.log).finish_non_exhaustive()
    }
}

/// A program of this workspace, which cargo has built beside the running test.
///
/// # Panics
/// If it does not exist.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    // The test is in `deps/`, and the programs are one folder above.
    let file = test.ancestors().nth(2).expect("a test is in a folder").join(name);
    assert!(
        file.exists(),
        "{} is missing: run `cargo build --workspace --bins --features entrepot-data-plane/failpoints` first",
        file.display()
    );
    file
}

/// Runs a program of this machine to its end, and returns its standard output.
///
/// # Panics
/// If it fails.
pub fn run(file: impl AsRef<OsStr>, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<u8> {
    let (status, stdout, stderr) = try_run(&file, arguments, environment);
    assert!(status.success(), "{:?} {arguments:?} failed with {status}:\n{stderr}", file.as_ref());
    stdout
}

/// Runs a program of this machine to its end, and returns its status, its standard output and its standard error.
///
/// # Panics
/// If it cannot be started.
pub fn try_run(
    file: impl AsRef<OsStr>,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (ExitStatus, Vec<u8>, String) {
    let file = file.as_ref();
    let ran = Command::new(file).args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).output();
    let ran = ran.unwrap_or_else(|error| panic!("{} cannot be started: {error}", file.display()));
    (ran.status, ran.stdout, String::from_utf8_lossy(&ran.stderr).into_owned())
}
