//! Fixtures for Entrepot's tests. This crate uses no other crate of Entrepot, so that its view of the outside world is
//! independent.
//!
//! - [`FakeUpstream`] is a real HTTP server that behaves like a registry, and misbehaves as its script says.
//! - [`Postgres`] starts the Postgres of this machine and provides fresh databases.
//! - [`Redis`] starts the Redis of this machine: one server, with Sentinels, or a cluster.
//! - [`Seaweed`] is a bucket with S3's protocol, from a Python package.
//! - [`Program`] runs programs as processes, [`HaProxy`] the load balancer, [`Nginx`] another proxy; [`OtlpCollector`]
//!   receives telemetry.
//! - [`Link`] stands between two of them and slows, stalls or cuts their connections; [`Partition`] drops packets.
//! - [`images`] makes content, [`tls`] certificates.
//! - [`cache()`] is the folder for downloads.
//! - [`wait_until`] waits for a condition, with a limit.
//!
//! Fixtures panic like tests do, since they are useless without what they start.

mod cache;
pub mod haproxy;
pub mod images;
pub mod link;
pub mod nginx;
pub mod otlp;
pub mod partition;
pub mod postgres;
pub mod program;
pub mod redis;
pub mod seaweed;
pub mod tls;
pub mod upstream;
mod wait;

pub use cache::cache;
pub use haproxy::HaProxy;
pub use images::{Image, Index};
pub use link::Link;
pub use nginx::Nginx;
pub use otlp::OtlpCollector;
pub use partition::Partition;
pub use postgres::Postgres;
pub use program::Program;
pub use redis::{Redis, RedisCluster, RedisSentinels};
pub use seaweed::Seaweed;
pub use upstream::{Auth, FakeUpstream, Fault, Gate, LogEntry};
pub use wait::{wait_until, wait_until_blocking};
