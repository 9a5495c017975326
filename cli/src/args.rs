//! The command line.

use std::ffi::OsString;

use clap::{Parser, Subcommand};
use entrepot_domain::Secret;

use crate::commands::{self, Administration};
use crate::output::Output;
use crate::tls::TlsArgs;
use crate::up;

/// A container registry whose repositories fill themselves.
///
/// `entrepot up` runs a whole registry on this machine. All other commands administer a registry: set its address in
/// ENTREPOT_API and your access key in ENTREPOT_KEY.
#[derive(Debug, Parser)]
#[command(name = "entrepot", version, max_term_width = 100, args_override_self = true, after_help = EXAMPLES)]
pub struct Cli {
    /// The API's address.
    #[arg(long, global = true, env = "ENTREPOT_API", value_name = "URL", default_value = "http://127.0.0.1:5001")]
    pub(crate) api: String,

    #[command(flatten)]
    pub(crate) tls: TlsArgs,

    /// How to show results: a table for people, or one JSON document for programs.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Environment:
  ENTREPOT_API            the API's address, as --api
  ENTREPOT_KEY            the access key to call with, as `<key id>:<secret>`
  ENTREPOT_CA             whose certificates to trust at https:// addresses, as --ca
  ENTREPOT_BOOTSTRAP_KEY  for `up`: an administrator's key to begin with

Examples:
  entrepot up
  export ENTREPOT_KEY=<the key that `up` shows>
  entrepot upstream create quay --kind quay
  entrepot rule create quay --upstream quay
  entrepot login-password | docker login --username AWS --password-stdin 127.0.0.1:5000
  docker pull 127.0.0.1:5000/quay/prometheus/busybox:latest";

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    /// Run a whole registry on this machine.
    Up(Box<up::Args>),

    #[command(flatten)]
    Administer(Box<Administration>),

    /// Keys: the files that programs of one cluster share.
    #[command(subcommand)]
    Keys(commands::keys::Command),

    /// Check whether a registry process is ready; exit 1 if it is not.
    Health(commands::health::Args),

    /// For emergencies: changes to a registry's database.
    #[command(subcommand)]
    Admin(commands::admin::Command),

    /// Print completions for a shell.
    #[command(after_help = "Example:\n  entrepot completions bash > /etc/bash_completion.d/entrepot")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Reads the command line. The error prints help or what is wrong, and knows its exit code.
    ///
    /// # Errors
    /// If the command line asks for help or is invalid.
    pub fn read() -> Result<Self, clap::Error> {
        Self::try_parse()
    }
}

/// What the command reads from its environment, apart from values of arguments.
#[derive(Debug, Default)]
pub struct Environment {
    /// ENTREPOT_KEY.
    pub key: Option<Secret<OsString>>,
    /// ENTREPOT_BOOTSTRAP_KEY.
    pub bootstrap_key: Option<Secret<OsString>>,
    /// PATH, to find Postgres.
    pub path: OsString,
    /// XDG_DATA_HOME, for the data folder.
    pub data_home: Option<OsString>,
    /// HOME, for the data folder.
    pub home: Option<OsString>,
}

impl Environment {
    /// Reads the environment. An empty variable counts as unset.
    pub fn read() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            key: get("ENTREPOT_KEY").map(Secret::new),
            bootstrap_key: get("ENTREPOT_BOOTSTRAP_KEY").map(Secret::new),
            path: get("PATH").unwrap_or_default(),
            data_home: get("XDG_DATA_HOME"),
            home: get("HOME"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_every_command_and_argument_is_explained() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                // Names of resources need no explanation.
                let explained = argument.get_help().is_some() || argument.is_positional();
                assert!(explained, "{} of {}", argument.get_id(), command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        command.debug_assert();
        check(&Cli::command());
    }

    #[test]
    fn the_lines_that_scripts_rely_on_are_understood() {
        for line in [
            "entrepot up --data-dir DIR --registry-listen 127.0.0.1:5000 --api-listen 127.0.0.1:5001",
            "entrepot upstream create local --kind oci --endpoint http://127.0.0.1:5100 --allow-plain-http --allow-private-addresses",
            "entrepot rule create demo --upstream local",
            "entrepot rule create demo --upstream local --prefix P --upstream-prefix P",
            "entrepot rule explain demo/team/app:v1",
            "entrepot template create hub --prefix ROOT --tag-mutability immutable-with-exclusion --exclude latest --resource-tag a=b",
            "entrepot login-password",
            "entrepot login-password --api https://127.0.0.1:5001 --ca ca.pem --tls-name registry.example",
            "entrepot keys generate --out /keys --if-missing",
            "entrepot admin restore --data-dir DIR",
            "entrepot admin restore --config",
            "entrepot admin reindex --config control-plane.toml",
            "entrepot repository list --output json",
            "entrepot node list --output json",
            "entrepot fills --once --output json",
            "entrepot why node-1-0193a7c2d4f07b118e5d3a6b9c0d1e2f",
            "entrepot image list demo/team/app --output json",
            "entrepot image delete demo/team/app:v1",
            "entrepot sync demo/team/app --tag v1 --tag v2 --detach",
            "entrepot warm hub/library/nginx:1.27 hub/library/redis:7 --platform linux/amd64 --file list.txt",
            "entrepot operation list --output json",
            "entrepot operation cancel 0193a7c2-d4f0-7b11-8e5d-3a6b9c0d1e2f",
            "entrepot repository update demo/team/app --automatic-sync off",
            "entrepot rule update demo --automatic-sync off",
            "entrepot upstream update local --allow-host a --allow-host b:1 --password-stdin --etag \"x\"",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
