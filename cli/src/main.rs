//! The `entrepot` command; all of it is in the library, so that tests reach it.

use std::process::ExitCode;

use entrepot_cli::{Cli, Environment};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // An error only says that somebody was faster; the provider is then installed as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    entrepot_cli::run(cli, Environment::read())
}
