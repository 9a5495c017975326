//! The registry's edge for clients: it reads requests, gets answers for them, and sends errors in the form that clients
//! expect.

mod error;
mod forwarded;
mod route;
pub(crate) mod server;
