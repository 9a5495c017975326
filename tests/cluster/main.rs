//! The programs as processes: control planes, nodes, HAProxy, Postgres, Redis and a bucket, and what goes wrong with
//! each of them.
//!
//! Every test has a cluster of its own. What a test measures it says on standard error, in lines that begin with
//! `measured:`; `cargo test --test cluster -- --nocapture` shows them.

#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn, and are told by the environment")]

mod api;
mod bucket;
mod chaos;
mod checker;
mod client;
mod cluster;
mod coalescing;
mod dice;
mod drain;
mod failover;
mod fetches;
mod forget;
mod idle;
mod inspector;
mod links;
mod memory;
mod proxies;
mod reader;
mod redis;
mod releases;
mod replicas;
mod report;
mod restore;
mod secrets;
mod settings;
mod snapshots;
mod stability;
mod suspension;
mod sync;
mod telemetry;
mod upgrade;
