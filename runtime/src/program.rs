//! What every program does around its job: telemetry, signals, probes, and an orderly shutdown.

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

/// How long connections of operators may stay after everything else has ended.
const OPERATIONS_LIMIT: Duration = Duration::from_secs(1);
/// How long sending the last traces and metrics may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// The exit code for a refused configuration, which no restart can fix.
const REFUSED: u8 = 2;

/// A program, from its start to its end.
#[derive(Debug)]
pub struct Program {
    telemetry: Telemetry,
    signals: Signals,
    clock: Clock,
    health: Health,
    tasks: Tasks,
    /// The tasks that answer probes, which must be able to report the end of the others.
    operations: Tasks,
}

/// How a program shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it keeps serving while it reports that it is not ready, so that load balancers stop using it.
    pub notice: Duration,
    /// How long open work may continue after that.
    pub limit: Duration,
}

/// Why a program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Logs, traces and metrics cannot be set up.
    #[error("telemetry cannot be set up")]
    Telemetry(#[from] TelemetryError),
    /// Signal handlers cannot be installed.
    #[error("signal handlers cannot be installed")]
    Signals(#[source] io::Error),
}

/// Prints on standard error why a configuration is refused, and returns the exit code for that.
pub fn refused(problems: &Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(REFUSED)
}

impl Program {
    /// Sets up what a process has only once. From now on, SIGTERM and SIGINT do not end it by themselves.
    ///
    /// # Errors
    /// If it has been set up before, or the configuration cannot be used.
    pub fn start(config: telemetry::Config) -> Result<Self, StartError> {
        crate::tls::install_provider();
        let telemetry = Telemetry::init(config)?;
        crate::descriptors::raise();
        crate::allocator::give_back_in_background();
        Self::assemble(telemetry).map_err(StartError::Signals)
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

    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The conditions for readiness.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// The tasks that do its work. They are told to stop when the notice period is over.
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    pub fn metrics(&self) -> Metrics {
        self.telemetry.metrics()
    }

    /// Answers probes and Prometheus on `listener` until the very end.
    pub async fn serve_operations(&self, listener: Listener) {
        operations::serve(listener, self.health(), self.metrics(), &self.operations).await;
    }

    /// Runs `work` until a signal comes, then shuts down in order. It reports that it is not ready and keeps serving
    /// for the notice period, unless it was not ready before; then it tells its tasks to stop, and waits for them and
    /// for `work`. Each further signal cuts the current wait short.
    ///
    /// `work` should end soon after the program's [`Tasks::stopping`] is cancelled, but not before: ending on its own
    /// is a failure.
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
        // A program that is not ready gets no requests anyway.
        let was_ready = self.health.is_ready();
        self.health.drain();
        if asked && was_ready {
            info!("stopping: serving goes on for {:?}, reported as not ready, then open work may finish", drain.notice);
            tokio::select! {
                () = tokio::time::sleep(drain.notice) => {}
                () = self.signals.received() => warn!("the notice period is cut short"),
                result = &mut work => ended = Some(result),
            }
        }
        let finish = async {
            // This tells the tasks to stop as well, so both continue together.
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
            error!("the program ended although nobody asked it to");
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
    /// SIGHUP makes the code that reads certificates look at them again. It must not end a program without
    /// certificates.
    _hangup: Signal,
}

impl Signals {
    /// From now on, these signals do not end the process by themselves, nor does SIGHUP.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
