//! The control plane: owns Postgres, answers operators and nodes, moves no blob bytes.
//!
//! Read `app` to see what it is made of and how it starts. `api` has a file per gRPC service, `db` the only SQL.
//! `snapshot` builds what nodes need to know, signs and publishes it; `index` takes in what nodes have learnt;
//! `recurring` work keeps that index true to the records in object storage.

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
