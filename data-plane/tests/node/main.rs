//! A node among a store, other nodes, proxies, and clients of HTTP/1 and HTTP/2, and what happens when one of them
//! misbehaves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

mod drain;
mod edge;
mod events;
mod fixture;
mod guesses;
mod outages;
mod peers;
mod permissions;
mod program;
#[path = "../several/published.rs"]
mod published;
mod records;
mod releases;
mod replica;
mod snapshots;
mod switch;
