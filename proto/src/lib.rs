//! The wire contract: what Entrepot's users, planes and nodes say to each other over gRPC.
//!
//! Generated types stay behind this crate and the API edges; [`convert`] turns them into the domain's values and back.

pub mod convert;

/// The API for operators, SDKs and the `entrepot` command.
#[allow(clippy::all, clippy::pedantic, clippy::restriction, missing_docs, rustdoc::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("entrepot.v1");
}

/// What nodes and the control plane say to each other.
pub mod node {
    /// Version 1.
    #[allow(clippy::all, clippy::pedantic, clippy::restriction, missing_docs, rustdoc::all, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("entrepot.node.v1");
    }
}

/// All .proto files, compiled, with their comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Those of them that are for operators, and the types of error details: what reflection serves.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
