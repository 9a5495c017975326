//! What every program of ours does around its job: telemetry, signals, probes, and an end that loses nothing.

#[cfg(test)]
mod tests;

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::Problems;
use crate::telemetry::{self, Telemetry, TelemetryError};
use crate::{Clock, Health, Listener, Metrics, Tasks, chain, operations};

/// How long connections for operators may stay after all else has ended.
const OPERATIONS_LIMIT: Duration = Duration::from_secs(1);
/// How long the last traces and metrics may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// The exit code of a program whose configuration is refused; no restart mends that.
const REFUSED: u8 = 2;

/// A program, from its start to its end.
#[derive(Debug)]
pub struct Program {
    telemetry: Telemetry,
    signals: Signals,
    clock: Clock,
    health: Health,
    tasks: Tasks,
    /// Those that answer probes, which shall see the end of the others.
    operations: Tasks,
}

/// How long a program may take to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it goes on as before while it says that it is not ready, so that load balancers look away.
    pub notice: Duration,
    /// How long open work may go on after that.
    pub limit: Duration,
}

/// Why a program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Logs, traces and metrics cannot be set up.
    #[error("telemetry cannot be set up")]
    Telemetry(#[from] TelemetryError),
    /// Signals cannot be listened for.
    #[error("signals cannot be listened for")]
    Signals(#[source] io::Error),
}

/// Tells an operator on standard error why a configuration is refused, and gives the exit code for that.
pub fn refused(problems: &Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(REFUSED)
}

impl Program {
    /// Sets up what the process has once. From now on, SIGTERM and SIGINT do not end it by themselves.
    ///
    /// # Errors
    /// If it has been set up before, or the configuration cannot be used.
    pub fn start(config: telemetry::Config) -> Result<Self, StartError> {
        crate::tls::install_provider();
        Self::assemble(Telemetry::init(config)?).map_err(StartError::Signals)
    }

    fn assemble(telemetry: Telemetry) -> io::Result<Self> {
        Ok(Self {
            telemetry,
            signals: Signals::new()?,
            clock: Clock::system(),
            health: Health::new(),
            tasks: Tasks::new(),
            operations: Tasks::new(),
        })
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The conditions that make it ready.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// The tasks that do its work. They are told to stop when the notice is over.
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Its metrics.
    pub fn metrics(&self) -> Metrics {
        self.telemetry.metrics()
    }

    /// Answers probes and Prometheus on `listener` until the very end.
    pub async fn serve_operations(&self, listener: Listener) {
        operations::serve(listener, self.health(), self.metrics(), &self.operations).await;
    }

    /// Does `work` until a signal comes, then ends in order: it says that it is not ready and goes on for a while, unless
    /// it was not ready before; then it tells its tasks to stop and waits for them, and for `work`. Each further signal
    /// cuts short what it waits for.
    ///
    /// `work` is to end soon after the program's [`Tasks::stopping`] is cancelled, and not before: that it ends by
    /// itself is a failure.
    pub async fn run<E>(mut self, drain: Drain, work: impl Future<Output = Result<(), E>>) -> ExitCode
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut work = pin!(work);
        let mut ended = tokio::select! {
            biased;
            () = self.signals.received() => None,
            ended = &mut work => Some(ended),
        };
        let asked = ended.is_none();
        // Who is not ready is looked away from already.
        let was_ready = self.health.is_ready();
        self.health.drain();
        if asked && was_ready {
            info!("stopping: this serves on for {:?}, not ready, then open work may finish", drain.notice);
            tokio::select! {
                () = tokio::time::sleep(drain.notice) => {}
                () = self.signals.received() => warn!("the notice is cut short"),
                result = &mut work => ended = Some(result),
            }
        }
        let finish = async {
            // Tasks are told to stop by this too, so both go on together.
            let rest = async {
                if ended.is_none() {
                    ended = tokio::time::timeout(drain.limit, work).await.ok();
                }
            };
            tokio::join!(self.tasks.drain(drain.limit), rest);
        };
        tokio::select! {
            () = finish => {}
            () = self.signals.received() => warn!("open work is cut off"),
        }
        let code = outcome(asked, ended);
        self.operations.drain(OPERATIONS_LIMIT).await;
        self.telemetry.shutdown(FLUSH_LIMIT).await;
        code
    }
}

fn outcome<E: Into<Box<dyn Error + Send + Sync>>>(asked: bool, ended: Option<Result<(), E>>) -> ExitCode {
    match ended {
        Some(Err(failure)) => {
            let failure = failure.into();
            error!(error = %chain(&*failure), "the program has failed");
            ExitCode::FAILURE
        }
        Some(Ok(())) if !asked => {
            error!("ended although nobody asked for it");
            ExitCode::FAILURE
        }
        Some(Ok(())) | None => {
            info!("stopped");
            ExitCode::SUCCESS
        }
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Asks those that read certificates to look at them again; it must not end a program that has none.
    _hangup: Signal,
}

impl Signals {
    /// From now on, these signals do not end the process by themselves, nor does SIGHUP.
    ///
    /// # Errors
    /// If the system does not let them be listened for.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the next one comes.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
