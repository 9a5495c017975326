//! `entrepot-data-plane`: a node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use entrepot_data_plane::{Settings, program};
use entrepot_runtime::config::{Reader, environment};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A node of an Entrepot registry: serves pulls, and fills what it lacks.
#[derive(Debug, Parser)]
#[command(
    name = "entrepot-data-plane",
    version,
    max_term_width = 100,
    after_help = "\
Every key can be overridden as ENTREPOT__SECTION__KEY; config.example.toml has them all."
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
    let read = Reader::load(args.config.as_deref(), environment()).and_then(|mut reader| Settings::read(&mut reader));
    let settings = match read {
        Ok(settings) => settings,
        Err(problems) => return entrepot_runtime::program::refused(&problems),
    };
    if args.check {
        eprintln!("the configuration can be used");
        return ExitCode::SUCCESS;
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(program::run(settings)),
        Err(error) => {
            eprintln!("no threads can be started: {error}");
            ExitCode::FAILURE
        }
    }
}
