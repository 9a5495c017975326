//! The `entrepot` command: `up` runs both planes in one process, and all other commands administer a registry over
//! gRPC.
//!
//! Each file below `commands/` is one noun with its arguments and calls. `output` shows results, as a table for people
//! or as proto JSON for programs; `error` says what went wrong and what to do next.

mod args;
mod client;
mod commands;
mod error;
mod names;
mod output;
mod tls;
pub mod up;

use std::process::ExitCode;

pub use args::{Cli, Environment};

use crate::args::Command;
use crate::client::Session;
use crate::error::Error;

/// Runs one command to its end.
pub fn run(cli: Cli, environment: Environment) -> ExitCode {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, Command::Up(_)) {
        // The first thread does this later, once it has bound its ports.
        threads.on_thread_start(up::drop_most_privileges);
    }
    let runtime = match threads.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::Failed(format!("cannot start threads: {error}"))),
    };
    match runtime.block_on(Box::pin(dispatch(cli, environment))) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn dispatch(cli: Cli, environment: Environment) -> Result<ExitCode, Error> {
    match cli.command {
        Command::Up(args) => up::run(args, environment).await,
        Command::Keys(command) => command.run(),
        Command::Health(args) => commands::health::run(args, &cli.tls).await,
        Command::Admin(command) => Box::pin(command.run(environment)).await,
        Command::Completions { shell } => commands::completions::run(shell),
        Command::Administer(command) => {
            let session = Session::open(&cli.api, &cli.tls, environment.key, cli.output).await?;
            command.run(&session).await
        }
    }
}

fn fail(error: &Error) -> ExitCode {
    output::note(&format!("error: {error}"));
    error.exit_code()
}
