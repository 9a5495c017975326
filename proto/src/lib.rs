//! The wire contract between Entrepot's users, planes and nodes, over gRPC.
//!
//! Generated types are used only in this crate and at the API edges; [`convert`] turns them into the domain's values
//! and back.

pub mod codec;
pub mod convert;

/// The API for operators, SDKs and the `entrepot` command.
#[allow(clippy::all, clippy::pedantic, clippy::restriction, rustdoc::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("entrepot.v1");
}

/// The protocol between nodes and the control plane.
pub mod node {
    /// Version 1.
    #[allow(clippy::all, clippy::pedantic, clippy::restriction, rustdoc::all, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("entrepot.node.v1");
    }
}

/// The domain of the reasons in our errors.
pub const ERROR_DOMAIN: &str = "entrepot.dev";

/// All .proto files, compiled, with their comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The part of them that reflection serves: the files for operators, and the types of error details.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
