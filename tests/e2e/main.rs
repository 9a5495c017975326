//! Tests that need both planes together: a control plane with a real Postgres, a node over real HTTP, and an upstream
//! whose script says what goes wrong.

#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

mod bad_input;
mod budgets;
mod coalescing;
mod configuration;
mod deletes;
mod edge;
mod fallbacks;
mod freshness;
mod health;
mod herd;
mod inspector;
mod logins;
mod odd_upstreams;
mod other_types;
mod outages;
mod permission;
mod proxies;
mod pulls;
mod ranges;
mod refusals;
#[expect(dead_code, reason = "other tests need more of it")]
mod registry;
mod report;
mod spools;
mod sync;
mod sync_due;
mod templates;
mod tools;
