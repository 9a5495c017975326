//! The embedded Postgres: finds the `postgres` of this machine, and runs it for as long as we run.
//!
//! It listens only on a socket in a private folder, and has its own data folder, which only one process may use. It is
//! started from a thread that lives as long as the process, since the signal that ends it with us is sent when that
//! thread ends. If Postgres dies or cannot be started, it is tried again.

mod binaries;
mod folder;
mod server;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use entrepot_runtime::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::folder::{Account, Layout};

/// The user that runs Postgres when we run as root.
pub const DEFAULT_USER: &str = "postgres";
/// The longest pause between two starts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// If Postgres ran for this long, it was not broken from the start.
const STABLE: Duration = Duration::from_secs(30);

/// The configuration of an embedded Postgres.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its own folder, which is created if needed; the parent folder must exist.
    pub folder: PathBuf,
    /// The user that runs it if we run as root.
    pub user: String,
    /// Where to look for `postgres` first, in the form of PATH.
    pub path: OsString,
}

/// Why Postgres cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// This machine has no usable Postgres.
    #[error(
        "no PostgreSQL server {} or newer on PATH, in /usr/lib/postgresql or in /usr/pgsql-*: install one with \
         `apt-get install postgresql` (the service that it starts is not needed), or give --database-url",
        binaries::OLDEST
    )]
    NotInstalled,
    /// The data was created by a major version that is not installed.
    #[error(
        "the database in `{}` was made by PostgreSQL {data}, and this machine has {installed}: install PostgreSQL \
         {data} again (`apt-get install postgresql-{data}`), or move the data with pg_upgrade", folder.display()
    )]
    OtherMajor {
        folder: PathBuf,
        /// The version that created the data.
        data: u32,
        installed: String,
    },
    /// Root cannot run Postgres, and there is no other user to run it.
    #[error(
        "Postgres refuses to run as root, and there is no user `{0}` to run it: install it with \
         `apt-get install postgresql`, which makes that user, or name another one with --postgres-user"
    )]
    NoUser(String),
    /// The user cannot enter a parent folder of its own folder.
    #[error(
        "the user `{user}`, who runs Postgres, cannot enter `{}`: run `chmod o+x {}`, or choose another --data-dir",
        folder.display(), folder.display()
    )]
    Barred {
        user: String,
        /// The first folder that it cannot enter.
        folder: PathBuf,
    },
    /// The user cannot run the program.
    #[error("the user `{user}` cannot run `{}`: install PostgreSQL where everybody can", program.display())]
    NotRunnable { user: String, program: PathBuf },
    /// A file or folder could not be created or read.
    #[error("cannot {what} `{}`: {why}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// A program of Postgres failed.
    #[error("{what} failed: {why}")]
    Failed {
        /// The program.
        what: &'static str,
        /// The end of its own output.
        why: String,
    },
    /// It takes longer than the limit.
    #[error("Postgres was not ready within {} s", .0.as_secs())]
    Slow(Duration),
}

/// The state of the supervised Postgres.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being started.
    Starting,
    /// It accepts connections.
    Ready,
    /// It is not running; it will be tried again.
    Down(Error),
}

/// A supervised Postgres.
#[derive(Debug)]
pub struct Postgres {
    connection: String,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Postgres {
    /// Starts Postgres and keeps it running; [`Postgres::settled`] tells the result of the first start.
    ///
    /// # Errors
    /// If its folders cannot be created, or no thread can be started.
    pub fn start(config: Config) -> Result<Self, Error> {
        let layout = Layout::make(&config.folder)?;
        let connection = layout.connection();
        let (sender, state) = watch::channel(State::Starting);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let no_thread =
            |error: io::Error| Error::Failed { what: "starting a thread for Postgres", why: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let thread = thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || runtime.block_on(keep_running(&config, &layout, &sender, &stopping)))
            .map_err(no_thread)?;
        Ok(Self { connection, state, stop, thread: Some(thread) })
    }

    /// How to connect once it is ready, in the form for tokio-postgres.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    /// Its state, with all changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until it is ready for the first time.
    ///
    /// # Errors
    /// If the first start failed, or takes longer than `limit`. Further attempts follow in any case.
    pub async fn settled(&self, limit: Duration) -> Result<(), Error> {
        let mut state = self.state();
        let settled = state.wait_for(|state| !matches!(state, State::Starting));
        match tokio::time::timeout(limit, settled).await {
            Ok(Ok(state)) => match &*state {
                State::Ready => Ok(()),
                State::Down(error) => Err(error.clone()),
                State::Starting => Err(Error::Slow(limit)),
            },
            Ok(Err(_)) | Err(_) => Err(Error::Slow(limit)),
        }
    }

    /// Stops it for good, within a limited time, and by force in the end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // The thread's own waits are limited; a panic in it was printed.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn keep_running(config: &Config, layout: &Layout, state: &watch::Sender<State>, stop: &CancellationToken) {
    let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    while !stop.is_cancelled() {
        let started = tokio::time::Instant::now();
        match run_once(config, layout, state, stop).await {
            Ok(()) => return,
            Err(error) => {
                warn!(%error, "the embedded Postgres is down; it is started again soon");
                state.send_replace(State::Down(error));
            }
        }
        if started.elapsed() >= STABLE {
            backoff.reset();
        }
        if stop.run_until_cancelled(backoff.wait()).await.is_none() {
            return;
        }
    }
}

/// Runs Postgres until it is stopped. If it ends in any other way, that is an error.
async fn run_once(
    config: &Config,
    layout: &Layout,
    state: &watch::Sender<State>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let account = Account::of(&config.user).await?;
    layout.hand_over(&account)?;
    let installed = binaries::find(&config.path).await?;
    account.take_on()?;
    let binaries = binaries::choose(installed, &layout.data)?;
    account.check_can_use(&binaries, layout).await?;
    if layout.needs_initdb() {
        info!(postgres.version = %binaries.version, "creating a database in `{}`", layout.data.display());
        server::initdb(&binaries, &account, layout).await?;
    }
    let server = server::Server::start(&binaries, &account, layout).await?;
    server.run(state, stop).await
}
