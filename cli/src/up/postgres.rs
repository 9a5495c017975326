//! The embedded Postgres: finds the `postgres` that this machine has, and runs it for as long as we run.
//!
//! It listens on a socket in a private folder only, and belongs to one data folder; whoever starts it must be the only
//! one that uses that folder. It is started from a thread that lives as long as the process, since the signal that
//! ends it with us is sent when that thread ends. A Postgres that dies, or that cannot be started yet, is tried again.

mod binaries;
mod folder;
mod server;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::folder::{Account, Layout};

/// The user that Postgres runs as when we run as root.
pub const DEFAULT_USER: &str = "postgres";
/// The longest pause between two starts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A Postgres that ran this long was not broken from the start.
const STABLE: Duration = Duration::from_secs(30);

/// What is needed to run one.
#[derive(Clone, Debug)]
pub struct Config {
    /// A folder of its own; made if it is missing, in a folder that must exist.
    pub folder: PathBuf,
    /// Whom it runs as if we run as root.
    pub user: String,
    /// Where to look for `postgres` first, in the form of PATH.
    pub path: OsString,
}

/// Why there is no Postgres.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable Postgres on this machine.
    #[error(
        "no PostgreSQL server {} or newer on PATH, in /usr/lib/postgresql or in /usr/pgsql-*: install one with \
         `apt-get install postgresql` (the service that it starts is not needed), or give --database-url",
        binaries::OLDEST
    )]
    NotInstalled,
    /// The data was made by another major version than any that is installed.
    #[error(
        "the database in `{}` was made by PostgreSQL {data}, and this machine has {installed}: install PostgreSQL \
         {data} again (`apt-get install postgresql-{data}`), or move the data with pg_upgrade", folder.display()
    )]
    OtherMajor {
        /// The data folder.
        folder: PathBuf,
        /// The version that made the data.
        data: u32,
        /// The versions that are installed.
        installed: String,
    },
    /// Root cannot run Postgres, and there is nobody to run it instead.
    #[error(
        "Postgres refuses to run as root, and there is no user `{0}` to run it: install it with \
         `apt-get install postgresql`, which makes that user, or name another one with --postgres-user"
    )]
    NoUser(String),
    /// The user cannot enter a folder on the way to its own.
    #[error(
        "the user `{user}`, who runs Postgres, cannot enter `{}`: run `chmod o+x {}`, or choose another --data-dir",
        folder.display(), folder.display()
    )]
    Barred {
        /// Who.
        user: String,
        /// The first folder that it cannot enter.
        folder: PathBuf,
    },
    /// The user cannot run the program.
    #[error("the user `{user}` cannot run `{}`: install PostgreSQL where everybody can", program.display())]
    NotRunnable {
        /// Who.
        user: String,
        /// Which.
        program: PathBuf,
    },
    /// A file or folder could not be made or read.
    #[error("cannot {what} `{}`: {why}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// A program of Postgres failed.
    #[error("{what} failed: {why}")]
    Failed {
        /// Which program.
        what: &'static str,
        /// Its own last words.
        why: String,
    },
    /// It takes longer than it may.
    #[error("Postgres was not ready within {} s", .0.as_secs())]
    Slow(Duration),
}

/// What the supervised Postgres does now.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being started.
    Starting,
    /// It takes connections.
    Ready,
    /// It does not run; it will be tried again.
    Down(Error),
}

/// A Postgres that is kept running.
#[derive(Debug)]
pub struct Postgres {
    connection: String,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Postgres {
    /// Starts to keep a Postgres running; [`Postgres::settled`] tells what came of it.
    ///
    /// # Errors
    /// If its folders cannot be made, or there cannot be another thread.
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

    /// How to connect once it is ready, as tokio-postgres reads it.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    /// What it does now, and every change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until it is ready for the first time.
    ///
    /// # Errors
    /// If the first start failed, or takes longer than `limit`. It is tried again all the same.
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

    /// Stops it for good; bounded, by force in the end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // The thread's own waits are bounded; a panic in it was printed.
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
    let mut pause = PAUSE_MIN;
    while !stop.is_cancelled() {
        let started = tokio::time::Instant::now();
        match run_once(config, layout, state, stop).await {
            Ok(()) => return,
            Err(error) => {
                warn!(%error, "the embedded Postgres is down; it is started again in {} ms", pause.as_millis());
                state.send_replace(State::Down(error));
            }
        }
        if started.elapsed() >= STABLE {
            pause = PAUSE_MIN;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Runs Postgres until it is stopped, or until it ends otherwise, which is an error.
async fn run_once(
    config: &Config,
    layout: &Layout,
    state: &watch::Sender<State>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let account = Account::of(&config.user).await?;
    layout.hand_over(&account)?;
    let installed = binaries::find(&config.path).await?;
    let binaries = binaries::choose(installed, &layout.data)?;
    account.check_can_use(&binaries, layout).await?;
    if layout.needs_initdb() {
        info!(postgres.version = %binaries.version, "making a database in `{}`", layout.data.display());
        server::initdb(&binaries, &account, layout).await?;
    }
    let server = server::Server::start(&binaries, &account, layout).await?;
    server.run(state, stop).await
}
