//! The `entrepot` command. Everything is in the library, so that tests can use it.

use std::process::ExitCode;

use entrepot_cli::{Cli, Environment};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // An error means that somebody was faster, so the provider is installed anyway.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    entrepot_cli::run(cli, Environment::read())
}
