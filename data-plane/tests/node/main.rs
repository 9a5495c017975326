//! A node among what it lives with: a store, other nodes, proxies, clients of HTTP/1 and HTTP/2, and nobody to help it
//! when one of them misbehaves.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

mod drain;
mod edge;
mod events;
mod ground;
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
