//! The commands that administer a registry, one file for each noun.

mod access_key;
pub(crate) mod admin;
pub(crate) mod completions;
mod damaged;
mod fills;
pub(crate) mod health;
mod image;
pub(crate) mod keys;
mod login_password;
mod mask;
mod node;
mod operation;
mod principal;
mod repository;
mod rule;
mod sync;
mod template;
mod upstream;
mod warm;
mod why;

use std::process::ExitCode;

use clap::Subcommand;

use crate::client::Session;
use crate::error::Error;

/// What needs the API.
#[derive(Debug, Subcommand)]
pub(crate) enum Administration {
    /// Print a password for registry clients, good for 12 hours under any user name.
    #[command(after_help = login_password::EXAMPLE)]
    LoginPassword,

    /// Rules: which names fill from which upstream.
    #[command(subcommand)]
    Rule(rule::Command),

    /// Templates: what repositories are created with.
    #[command(subcommand)]
    Template(template::Command),

    /// Upstreams: the registries that rules pull from.
    #[command(subcommand)]
    Upstream(upstream::Command),

    /// Repositories; cached ones appear by themselves with their first pull.
    #[command(subcommand)]
    Repository(repository::Command),

    /// Images: what repositories hold, with tags, platforms and sizes.
    #[command(subcommand)]
    Image(image::Command),

    /// Bring the tags of a cached repository up to date, whatever their window says.
    #[command(after_help = sync::EXAMPLES)]
    Sync(sync::Args),

    /// Fetch images ahead of their first pull.
    #[command(after_help = warm::EXAMPLES)]
    Warm(warm::Args),

    /// Operations: syncs, and images that are fetched ahead.
    #[command(subcommand)]
    Operation(operation::Command),

    /// Nodes: what serves pulls. They appear by themselves when they start.
    #[command(subcommand)]
    Node(node::Command),

    /// Damaged objects of the store: what nodes have found that does not hash to its digest.
    #[command(subcommand)]
    Damaged(damaged::Command),

    /// Show the fills that run: what nodes are fetching from upstreams right now.
    #[command(after_help = fills::EXAMPLES)]
    Fills(fills::Args),

    /// Tell why a request was answered as it was, such as why it was a miss.
    #[command(after_help = why::EXAMPLE)]
    Why(why::Args),

    /// Principals: who may call.
    #[command(subcommand)]
    Principal(principal::Command),

    /// Access keys: what principals call with.
    #[command(subcommand)]
    AccessKey(access_key::Command),
}

impl Administration {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Error> {
        match self {
            Self::LoginPassword => login_password::run(session).await?,
            Self::Rule(command) => return command.run(session).await,
            Self::Template(command) => command.run(session).await?,
            Self::Upstream(command) => command.run(session).await?,
            Self::Repository(command) => command.run(session).await?,
            Self::Image(command) => command.run(session).await?,
            Self::Sync(args) => return args.run(session).await,
            Self::Warm(args) => return args.run(session).await,
            Self::Operation(command) => return command.run(session).await,
            Self::Node(command) => command.run(session).await?,
            Self::Damaged(command) => command.run(session).await?,
            Self::Fills(args) => args.run(session).await?,
            Self::Why(args) => args.run(session).await?,
            Self::Principal(command) => command.run(session).await?,
            Self::AccessKey(command) => command.run(session).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
