//! The one guarded client for other registries: everything that leaves for an upstream leaves through here.
//!
//! `client` asks the upstream's endpoint, and its fallbacks where that is away; `site` is what can be asked of one of them.
//! A request is walked in `request`: it goes out, follows redirects by hand, logs in where a host asks for it, and is
//! tried again where that may help; a blob that breaks off is gone on with in `resume`. `circuit` knows whether an
//! endpoint may be asked at all, and [`Account`] whether its budget has one request left. Three guards stand on the way.
//! [`egress`] decides to which addresses anything may go; `login` decides which host may learn the credential (the
//! upstream's own, and the realms that it is known or said to have) and keeps every token with the host that asked for
//! it; [`Limits`] bound every wait and every body.
//! Nothing that an upstream says is trusted: manifests asked for by digest are verified here, blobs by the caller,
//! who sees every byte of them.

mod account;
mod body;
mod challenge;
mod circuit;
mod client;
pub mod egress;
mod error;
mod limits;
mod login;
mod metrics;
mod probe;
mod referrers;
mod request;
mod resume;
mod site;
mod tags;
mod token;
mod transport;

pub use account::Account;
pub use circuit::{Health, State};
pub use client::{Client, Disagreement, EndpointHealth};
pub use error::{BuildError, Error, Fault, Login, Refuser, Trouble};
pub use limits::Limits;
pub use metrics::RequestMetrics;
pub use probe::{ProbeKind, ProbeState, ProbeStep};
pub use site::{BlobBody, BlobStream, DescribedManifest, FetchedManifest};
