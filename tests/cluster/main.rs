//! The programs as processes: control planes, nodes, HAProxy, Postgres, Redis and a bucket, and what goes wrong with
//! each of them.
//!
//! Every test has a cluster of its own. What a test measures it says on standard error, in lines that begin with
//! `measured:`; `cargo test --test cluster -- --nocapture` shows them.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn, and are told by the environment")]

mod api;
mod bucket;
mod chaos;
mod client;
mod cluster;
mod coalescing;
mod drain;
mod failover;
mod fetches;
mod forget;
mod inspector;
mod links;
mod memory;
mod reader;
mod redis;
mod replicas;
mod report;
mod restore;
mod secrets;
mod settings;
mod snapshots;
mod stability;
mod sync;
mod telemetry;
mod upgrade;
