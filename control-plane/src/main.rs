//! `entrepot-control-plane`: a replica of the control plane.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use entrepot_control_plane::{Settings, program};
use entrepot_runtime::config::{Reader, environment};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The control plane of an Entrepot registry: rules, upstreams, who may call, and what there is.
#[derive(Debug, Parser)]
#[command(
    name = "entrepot-control-plane",
    version,
    max_term_width = 100,
    after_help = "\
Every key can be overridden as ENTREPOT__SECTION__KEY; config.example.toml has them all.

Environment:
  ENTREPOT_BOOTSTRAP_KEY       an administrator's key that works after each start, as `<key id>:<secret>`
  ENTREPOT_BOOTSTRAP_KEY_FILE  a file that holds it"
)]
struct Args {
    /// The configuration file; without it, the environment alone configures.
    #[arg(long, value_name = "FILE", env = "ENTREPOT_CONFIG")]
    config: Option<PathBuf>,

    /// Read the configuration, say what is wrong with it, and exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let environment = environment();
    let bootstrap_key = program::bootstrap_key(&environment);
    let read = Reader::load(args.config.as_deref(), environment).and_then(|mut reader| Settings::read(&mut reader));
    let (settings, bootstrap_key) = match (read, bootstrap_key) {
        (Ok(settings), Ok(bootstrap_key)) => (settings, bootstrap_key),
        (Err(problems), Ok(_)) => return entrepot_runtime::program::refused(&problems),
        (read, Err(problem)) => {
            eprintln!("{problem}");
            return read.map_or_else(|problems| entrepot_runtime::program::refused(&problems), |_| ExitCode::from(2));
        }
    };
    if args.check {
        eprintln!("the configuration can be used");
        return ExitCode::SUCCESS;
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(program::run(settings, bootstrap_key)),
        Err(error) => {
            eprintln!("no threads can be started: {error}");
            ExitCode::FAILURE
        }
    }
}
