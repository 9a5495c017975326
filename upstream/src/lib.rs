//! The only client for other registries: every request to an upstream is sent here.
//!
//! `client` asks the upstream's endpoint, or its fallbacks while that is away; `site` has the requests for one of them.
//! `request` is the walk of a request: it is sent, follows redirects, logs in where a host asks for it, and is repeated
//! where that may help. A blob that breaks off continues in `resume`. `circuit` knows whether an endpoint may be asked
//! at all, and [`Account`] whether its budget has a request left.
//!
//! Three guards stand on the way. [`egress`] decides to which addresses requests may go; `login` decides which host may
//! get the credential (the upstream's own, and its known or configured realms) and keeps every token with the host that
//! asked for it; [`Limits`] bound every wait and every body. Each request lists in `Via` the registries that it comes
//! from. Nothing that an upstream says is trusted: manifests requested by digest are verified here, and blobs by the
//! caller, who sees every byte of them.

mod account;
mod body;
mod challenge;
mod circuit;
mod client;
pub mod egress;
mod error;
mod limits;
mod link;
mod login;
mod metrics;
mod pages;
mod probe;
mod referrers;
mod request;
mod resume;
mod scan;
mod site;
mod tags;
mod token;
mod transport;

pub use account::Account;
pub use circuit::{Health, State};
pub use client::{Client, Disagreement, EndpointHealth};
pub use error::{BuildError, Error, Fault, Login, RealmFault, Refuser, Trouble};
pub use limits::Limits;
pub use metrics::RequestMetrics;
pub use probe::{ProbeKind, ProbeState, ProbeStep};
pub use site::{BlobBody, BlobStream, DescribedManifest, FetchedManifest};
