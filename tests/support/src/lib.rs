//! Fixtures of Entrepot's tests. It knows no crate of Entrepot, so that what it says about the outside world is not
//! what Entrepot thinks of it.
//!
//! - [`FakeUpstream`] is a real HTTP server that behaves as registries do, and misbehaves as its script says.
//! - [`Postgres`] starts the Postgres of this machine and hands out fresh databases.
//! - [`Redis`] starts the Redis of this machine: one, with Sentinels, or a cluster.
//! - [`Seaweed`] is a bucket that speaks S3's protocol, from the Python registry.
//! - [`Program`] runs programs as processes, [`HaProxy`] the load balancer; [`OtlpCollector`] takes telemetry.
//! - [`Link`] stands between two of them and slows, stalls or cuts; [`Partition`] loses packets.
//! - [`images`] makes content, [`tls`] certificates.
//! - [`cache()`] is where they keep what they fetch.
//! - [`wait_until`] waits for a condition, with a limit.
//!
//! Fixtures panic where a test would: they are of no use without what they start.

mod cache;
pub mod haproxy;
pub mod images;
pub mod link;
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
pub use otlp::OtlpCollector;
pub use partition::Partition;
pub use postgres::Postgres;
pub use program::Program;
pub use redis::{Redis, RedisCluster, RedisSentinels};
pub use seaweed::Seaweed;
pub use upstream::{Auth, FakeUpstream, Fault, Gate, LogEntry};
pub use wait::wait_until;
