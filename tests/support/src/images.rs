//! Content for registries: manifests, and bytes that look random and depend only on a seed.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of Docker's image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The media type of Docker's list of manifests.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The configuration of artifacts that have none.
pub const EMPTY: &[u8] = b"{}";

/// A published image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest.
    pub manifest: String,
    pub manifest_bytes: Bytes,
    /// The media type of its manifest.
    pub media_type: String,
    /// The digest of its configuration.
    pub config: String,
    /// The digests of its layers, in order.
    pub layers: Vec<String>,
}

impl Image {
    /// The digests of all its blobs: the configuration and the layers.
    pub fn blobs(&self) -> Vec<&str> {
        std::iter::once(&self.config).chain(&self.layers).map(String::as_str).collect()
    }
}

/// A published index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub digest: String,
    pub bytes: Bytes,
    /// The images that it lists, in order.
    pub children: Vec<Image>,
}

/// `sha256:…` of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that do not compress, and depend only on the seed.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    // SplitMix64.
    let mut state = seed;
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// An image's configuration for a platform such as `linux/amd64`; `layers` are its uncompressed layers.
pub fn config(platform: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256(layer)).collect();
    let mut config = platform_of(platform);
    config["config"] = json!({});
    config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    bytes_of(&config)
}

/// An OCI image manifest.
pub fn manifest(config: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
    let layers: Vec<_> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    bytes_of(&json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers,
    }))
}

/// An OCI index of images, each for its platform.
pub fn index(platforms: &[&str], children: &[Image]) -> Vec<u8> {
    let children: Vec<_> = platforms
        .iter()
        .zip(children)
        .map(|(platform, image)| {
            let mut child = descriptor(&image.media_type, &image.manifest_bytes);
            child["platform"] = platform_of(platform);
            child
        })
        .collect();
    bytes_of(&json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }))
}

/// The manifest of an artifact that refers to another manifest, such as its signature.
pub fn referrer(subject: &[u8], artifact_type: &str, layer: &[u8]) -> Vec<u8> {
    bytes_of(&json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor("application/vnd.oci.empty.v1+json", EMPTY),
        "layers": [descriptor("application/octet-stream", layer)],
        "subject": descriptor(OCI_MANIFEST, subject),
        "annotations": { "org.example.made-by": "a test" },
    }))
}

/// A descriptor of `content`.
pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(content), "size": content.len() })
}

fn platform_of(platform: &str) -> Value {
    let mut parts = platform.split('/');
    let mut value = json!({ "os": parts.next(), "architecture": parts.next() });
    if let Some(variant) = parts.next() {
        value["variant"] = variant.into();
    }
    value
}

fn bytes_of(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value can be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_are_the_same_for_the_same_seed_and_others_for_another() {
        assert_eq!(random_bytes(1, 1000), random_bytes(1, 1000));
        assert_ne!(random_bytes(1, 1000), random_bytes(2, 1000));
        assert_eq!(random_bytes(7, 13).len(), 13);
        assert_eq!(random_bytes(7, 100)[..13], random_bytes(7, 13));
    }
}
