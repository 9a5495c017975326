//! The control plane: it owns Postgres, answers operators and nodes, and moves no blob bytes.
//!
//! Read `app` to see its parts and how it starts. `api` has a file per gRPC service, and `db` has all SQL. `snapshot`
//! builds, signs and publishes what nodes need to know; `index` takes in what nodes have learned; `recurring` work
//! keeps the index consistent with the records in object storage.

mod api;
mod app;
mod at_once;
mod bootstrap;
mod config;
mod db;
mod error;
mod index;
mod inquiries;
mod live_nodes;
mod metrics;
mod plane;
pub mod program;
mod reconcile;
mod recurring;
mod restore;
mod session;
mod settings;
mod snapshot;
mod version;
mod words;

pub use api::ServeError;
pub use app::{ControlPlane, Deps, StartError};
pub use config::{Config, ConfigError, Login};
pub use plane::{FirstKey, Ready, Reflection};
pub use reconcile::{Reindexed, Repaired};
pub use restore::{Foreign, RestoreError, Restored, reindex, restore};
pub use settings::{ApiSettings, FOREIGN, Settings};
pub use version::Version;
