//! The control plane as its callers see it: over gRPC, on a real Postgres and a real folder.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

mod access;
mod configuration;
mod content;
mod counts;
mod damaged_objects;
mod deaf_store;
mod fills;
mod fixture;
mod freshness;
mod health;
mod lagging;
mod live_nodes;
mod node;
mod operations;
mod outage;
mod reconcile;
mod releases;
mod replicas;
mod restore;
mod schema;
mod snapshot;
mod templates;
mod text;
