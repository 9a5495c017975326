//! The data plane: stateless nodes that serve pulls and fill what they lack.
//!
//! Read it in this order: `control.rs` is the line to the control plane; `peers.rs` knows the other nodes; [`http`] is
//! the edge; `inspect.rs` tells operators what goes on; `pull.rs` is the walk of a pull, which calls `auth`, `resolve`, the store and `fill` in this order.

mod app;
mod auth;
mod budget;
mod capacity;
pub mod config;
mod control;
mod error;
pub mod failpoint;
mod fill;
mod flight;
pub mod http;
mod inspect;
mod jitter;
pub mod lease;
mod measured;
mod metrics;
mod peers;
pub mod program;
mod pull;
mod repository;
mod resolve;
pub mod settings;

pub use app::{DataPlane, Deps, StartError};
pub use capacity::Capacity;
pub use config::Config;
pub use entrepot_upstream::Limits as UpstreamLimits;
pub use error::{LoginFault, PullError};
pub use lease::Leases;
pub use peers::PeerTlsError;
pub use settings::Settings;
