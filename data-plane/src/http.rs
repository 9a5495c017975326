//! The edge: connections, requests, answers.

pub(crate) mod answers;
pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod forwarded;
pub(crate) mod head_limit;
pub(crate) mod readers;
pub(crate) mod referrers;
pub(crate) mod respond;
pub mod route;
pub(crate) mod server;
pub(crate) mod tags;
