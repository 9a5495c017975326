//! The data plane: stateless nodes that serve pulls and fill what they lack.
//!
//! Read it in this order: `control.rs` is the line to the control plane, and `peers.rs` knows the other nodes; `http.rs`
//! is the edge for clients, `peer_api.rs` the one for other nodes; `pull.rs` is the walk of a pull: it asks `auth` who the
//! caller is, `place` what the name is here, `auth` whether the caller may pull there, and `resolve` for what the store
//! has; what is missing `resolve` gets by `fill`; `respond` makes the answer. What `inspect` and `questions` tell operators
//! is beside it, and so are `jobs`, which sync and warm.
//!
//! `tests/architecture.rs` holds the floors: a module names only those below it.

#![allow(
    missing_docs,
    reason = "nobody outside of this repository uses this crate; a comment stands where it says more than the name"
)]

mod app;
mod auth;
mod body;
mod budget;
mod capacity;
pub mod config;
mod connection;
mod control;
mod error;
pub mod failpoint;
mod fill;
mod flight;
mod http;
mod inspect;
mod jitter;
mod jobs;
pub mod lease;
mod measured;
mod memory;
mod metrics;
mod outcome;
mod peer_api;
mod peers;
mod place;
pub mod program;
mod pull;
mod questions;
mod repository;
mod resolve;
mod respond;
pub mod settings;
mod target;
mod trail;
mod upstream;

pub use app::{DataPlane, Deps, StartError};
pub use capacity::Capacity;
pub use config::Config;
pub use entrepot_upstream::Limits as UpstreamLimits;
pub use error::{Asked, LoginFault, PullError, RouteError};
pub use lease::Leases;
pub use peers::PeerTlsError;
pub use settings::Settings;
