//! `entrepot completions`.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::error::Error;
use crate::output;

pub(crate) fn run(shell: Shell) -> Result<ExitCode, Error> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "entrepot", &mut script);
    output::print(|out| out.write_all(&script))?;
    Ok(ExitCode::SUCCESS)
}
