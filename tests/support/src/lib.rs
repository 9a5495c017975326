//! Fixtures of Entrepot's tests. It knows no crate of Entrepot, so that what it says about the outside world is not
//! what Entrepot thinks of it.
//!
//! - [`FakeUpstream`] is a real HTTP server that behaves as registries do, and misbehaves as its script says.
//! - [`Postgres`] starts the Postgres of this machine and hands out fresh databases.
//! - [`images`] makes content, [`tls`] certificates.
//! - [`wait_until`] waits for a condition, with a limit.
//!
//! Fixtures panic where a test would: they are of no use without what they start.

pub mod images;
pub mod postgres;
pub mod tls;
pub mod upstream;
mod wait;

pub use images::{Image, Index};
pub use postgres::Postgres;
pub use upstream::{Auth, FakeUpstream, Fault, Gate, LogEntry};
pub use wait::wait_until;
