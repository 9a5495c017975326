//! The data plane: stateless nodes that serve pulls and fetch what is missing.
//!
//! Read it in this order. `control.rs` is the connection to the control plane, and `peers.rs` knows the other nodes.
//! `http.rs` is the edge for clients, and `peer_api.rs` the one for other nodes. `pull.rs` is the walk of a pull: it
//! asks `auth` who the caller is, `place` what the name is here, `auth` whether the caller may pull there, and
//! `resolve` what the store has; `resolve` gets missing content through `fill`; `respond` makes the answer. Beside this
//! walk, `inspect` and `questions` answer operators, and `jobs` sync and warm.
//!
//! `tests/architecture.rs` checks the layers: a module uses only those below it.

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
mod jobs;
pub mod lease;
mod measured;
mod memory;
mod metrics;
mod moment;
mod outcome;
mod peer_api;
mod peers;
mod place;
pub mod program;
mod pull;
mod questions;
mod readers;
mod repository;
mod resolve;
mod respond;
pub mod settings;
mod target;
mod trail;
mod turns;
mod upstream;

pub use app::{DataPlane, Deps, StartError};
pub use capacity::Capacity;
pub use config::{Config, DamageTimes};
pub use entrepot_upstream::Limits as UpstreamLimits;
pub use error::{Asked, LoginFault, PullError, RouteError};
pub use lease::Leases;
pub use peers::PeerTlsError;
pub use settings::Settings;
