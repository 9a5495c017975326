//! The registry's edge: it reads requests, has them answered, and writes failures the way clients expect them.

mod error;
mod forwarded;
pub(crate) mod readers;
mod route;
pub(crate) mod server;
