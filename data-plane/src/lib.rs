//! The data plane: stateless nodes that serve pulls and fill what they lack.
//!
//! Read it in this order: `control.rs` is the line to the control plane; `peers.rs` knows the other nodes; [`http`] is
//! the edge; `inspect.rs` tells operators what goes on; `pull.rs` is the walk of a pull, which calls `auth`, `resolve`, the store and `fill` in this order.

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
mod metrics;
mod outcome;
mod peer_api;
mod peers;
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
