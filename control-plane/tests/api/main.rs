//! The control plane as its callers see it: over gRPC, on a real Postgres and a real folder.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

mod access;
mod configuration;
mod content;
mod fixture;
mod outage;
mod reconcile;
mod snapshot;
