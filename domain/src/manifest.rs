//! Manifests: what they are and what they point to. They are read here, and never written again.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::digest::Digest;

/// The largest manifest that is taken from an upstream; the largest that common clients accept.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The kinds of manifest that registries serve today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// An OCI index: a list of manifests, one per platform.
    OciIndex,
    /// Docker's form of an index.
    DockerList,
    /// An OCI image manifest.
    OciManifest,
    /// Docker's form of an image manifest.
    DockerManifest,
}

impl MediaType {
    /// All of them, in the order in which upstreams are asked for them.
    pub const ALL: [Self; 4] = [Self::OciIndex, Self::DockerList, Self::OciManifest, Self::DockerManifest];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    /// Whether it lists other manifests.
    pub fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A media type that is none of the four.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the media type of a manifest")]
pub struct MediaTypeError;

impl FromStr for MediaType {
    type Err = MediaTypeError;

    /// Reads a `Content-Type`; parameters do not matter.
    fn from_str(text: &str) -> Result<Self, MediaTypeError> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        Self::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(essence)).ok_or(MediaTypeError)
    }
}

/// What a manifest says, as far as anybody here needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What kind it is.
    pub media_type: MediaType,
    /// The configuration of an image.
    pub config: Option<Descriptor>,
    /// The layers of an image; those that live elsewhere (`urls`) are marked.
    pub layers: Vec<Descriptor>,
    /// The manifests that an index lists.
    pub children: Vec<Descriptor>,
    /// What it says something about, which it does not contain.
    pub subject: Option<Descriptor>,
}

/// Points to content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Which content; `None` if the algorithm is not known here, so that it can be neither fetched nor verified.
    pub digest: Option<Digest>,
    /// How large it is.
    pub size_bytes: u64,
    /// For which platform, as `os/architecture[/variant]`.
    pub platform: Option<String>,
    /// Whether the content is kept elsewhere, so that registries need not have it.
    pub is_foreign: bool,
    /// Whether its media type is that of a manifest, or is not said. What an index lists and is none is a blob.
    pub is_manifest: bool,
}

/// Why bytes are not a manifest that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_BYTES`].
    #[error("the manifest is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not JSON of a manifest's shape.
    #[error("the manifest is malformed")]
    Malformed,
    /// Docker's first schema, which carries no digests of its content.
    #[error("the manifest is of Docker's schema 1, which is not supported")]
    SchemaOne,
    /// Both an index and an image, which clients read differently.
    #[error("the manifest is both an index and an image")]
    Ambiguous,
}

impl Manifest {
    /// Reads a manifest that came with `content_type`.
    ///
    /// A specific content type decides what it is; a generic one (or none) leaves it to the body's `mediaType` and
    /// then to its shape. Unknown fields, configurations, layers and artifact types never matter.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge);
        }
        let wire: WireManifest = serde_json::from_slice(bytes).map_err(|_| ManifestError::Malformed)?;
        if wire.schema_version == 1 {
            return Err(ManifestError::SchemaOne);
        }
        let media_type = wire.media_type(content_type)?;
        let descriptors =
            |list: Option<Vec<WireDescriptor>>| list.unwrap_or_default().into_iter().map(Into::into).collect();
        Ok(Self {
            media_type,
            config: wire.config.map(Into::into),
            layers: descriptors(wire.layers),
            children: descriptors(wire.manifests),
            subject: wire.subject.map(Into::into),
        })
    }

    /// Keeps the first `most` children of an index, each once for each platform: no more are linked, reported and
    /// fetched ahead. The others are asked of the upstream when they are wanted.
    #[must_use]
    pub fn with_first_children(mut self, most: usize) -> Self {
        let mut seen = HashSet::new();
        self.children.retain(|child| {
            seen.len() < most && seen.insert((child.digest.clone(), child.platform.clone(), child.is_foreign))
        });
        self
    }

    /// The content that a repository may show because it has this manifest: configuration, layers and children, but
    /// neither the subject nor layers that live elsewhere.
    pub fn contents(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers).chain(&self.children).filter(|content| !content.is_foreign)
    }

    /// The platforms that an index offers; attestations, which have none, left out.
    pub fn platforms(&self) -> Vec<String> {
        let known = self.children.iter().filter_map(|child| child.platform.clone());
        known.filter(|platform| !platform.starts_with("unknown/")).collect()
    }

    /// The size of the configuration and the layers.
    pub fn content_size_bytes(&self) -> u64 {
        self.config.iter().chain(&self.layers).fold(0, |sum, content| sum.saturating_add(content.size_bytes))
    }
}

/// For which platform an image is, by its configuration: `os/architecture[/variant]`, or `None` if it does not say.
pub fn platform_of_config(config: &[u8]) -> Option<String> {
    serde_json::from_slice::<WirePlatform>(config).ok()?.name()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireManifest {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
    subject: Option<WireDescriptor>,
}

impl WireManifest {
    fn media_type(&self, content_type: Option<&str>) -> Result<MediaType, ManifestError> {
        let (is_index, is_image) = (self.manifests.is_some(), self.config.is_some() || self.layers.is_some());
        if is_index && is_image {
            return Err(ManifestError::Ambiguous);
        }
        let said = content_type.and_then(|text| text.parse::<MediaType>().ok());
        let own = self.media_type.as_deref().and_then(|text| text.parse::<MediaType>().ok());
        if let Some(media_type) = said.or(own) {
            // A type that the shape contradicts would have clients look for what is not there.
            let contradicted = if media_type.is_index() { is_image } else { is_index };
            return if contradicted { Err(ManifestError::Ambiguous) } else { Ok(media_type) };
        }
        let is_docker =
            self.layers.iter().flatten().any(|layer| {
                layer.media_type.as_deref().is_some_and(|text| text.starts_with("application/vnd.docker."))
            });
        match (is_index, is_image, is_docker) {
            (true, false, _) => Ok(MediaType::OciIndex),
            (false, true, true) => Ok(MediaType::DockerManifest),
            (false, true, false) => Ok(MediaType::OciManifest),
            _ => Err(ManifestError::Malformed),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<WirePlatform>,
    urls: Option<Vec<String>>,
}

impl From<WireDescriptor> for Descriptor {
    fn from(wire: WireDescriptor) -> Self {
        Self {
            digest: wire.digest.parse().ok(),
            size_bytes: wire.size,
            platform: wire.platform.and_then(|platform| platform.name()),
            is_foreign: wire.urls.is_some_and(|urls| !urls.is_empty()),
            is_manifest: wire.media_type.is_none_or(|text| text.parse::<MediaType>().is_ok()),
        }
    }
}

#[derive(Deserialize)]
struct WirePlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl WirePlatform {
    /// A platform is shown to people: parts that are no plain words are as good as absent.
    fn name(self) -> Option<String> {
        let word = |part: &String| {
            (1..=32).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let (os, architecture) = (self.os.filter(word)?, self.architecture.filter(word)?);
        Some(match self.variant.filter(word) {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn descriptor(content: &[u8]) -> serde_json::Value {
        json!({ "mediaType": "application/octet-stream", "digest": Digest::sha256(content).to_string(), "size": content.len() })
    }

    fn parse(content_type: Option<&str>, manifest: &serde_json::Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(content_type, manifest.to_string().as_bytes())
    }

    #[test]
    fn r_mt_05_the_type_comes_from_the_header_then_the_body_then_the_shape() {
        let image = json!({ "schemaVersion": 2, "config": descriptor(b"c"), "layers": [descriptor(b"l")] });
        let index = json!({ "schemaVersion": 2, "manifests": [] });
        let media_type = |content_type: Option<&str>, manifest: &_| parse(content_type, manifest).map(|m| m.media_type);
        assert_eq!(media_type(None, &image), Ok(MediaType::OciManifest));
        assert_eq!(media_type(Some("application/json"), &index), Ok(MediaType::OciIndex));
        let docker = MediaType::DockerManifest.as_str();
        assert_eq!(media_type(Some(&format!("{docker}; charset=utf-8")), &image), Ok(MediaType::DockerManifest));
        let mut named = image.clone();
        named["mediaType"] = docker.into();
        assert_eq!(media_type(Some("text/plain"), &named), Ok(MediaType::DockerManifest));
        let mut layered = image.clone();
        layered["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
        assert_eq!(media_type(None, &layered), Ok(MediaType::DockerManifest));
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let both = json!({ "schemaVersion": 2, "config": descriptor(b""), "manifests": [] });
        assert_eq!(parse(None, &both), Err(ManifestError::Ambiguous));
        let index = json!({ "schemaVersion": 2, "manifests": [] });
        assert_eq!(parse(Some(MediaType::OciManifest.as_str()), &index), Err(ManifestError::Ambiguous));
        assert_eq!(parse(None, &json!({ "schemaVersion": 1, "fsLayers": [] })), Err(ManifestError::SchemaOne));
        assert_eq!(parse(None, &json!({ "schemaVersion": 2 })), Err(ManifestError::Malformed));
        assert_eq!(Manifest::parse(None, b"<html>"), Err(ManifestError::Malformed));
        assert_eq!(Manifest::parse(None, &vec![b' '; MAX_BYTES + 1]), Err(ManifestError::TooLarge));
    }

    #[test]
    fn a_repository_shows_what_its_manifest_contains_but_not_subjects_nor_foreign_layers() {
        let mut foreign = descriptor(b"foreign");
        foreign["urls"] = json!(["https://elsewhere.example/layer"]);
        let image = json!({
            "schemaVersion": 2, "config": descriptor(b"c"), "layers": [descriptor(b"l"), foreign],
            "subject": descriptor(b"s"), "annotations": { "a": "b" }, "unknown": [1],
        });
        let manifest = parse(None, &image).unwrap();
        let shown: Vec<_> = manifest.contents().filter_map(|content| content.digest.clone()).collect();
        assert_eq!(shown, [Digest::sha256(b"c"), Digest::sha256(b"l")]);
        assert_eq!(manifest.content_size_bytes(), 9);
        assert!(manifest.subject.is_some());
    }

    #[test]
    fn only_the_first_children_count_and_what_is_repeated_counts_once() {
        let child = |content: &[u8]| json!({ "mediaType": MediaType::OciManifest.as_str(), "digest": Digest::sha256(content).to_string(), "size": 1 });
        let repeated: Vec<_> = (0..5000).map(|_| child(b"same")).chain([child(b"other")]).collect();
        let index = |children: Vec<_>| parse(None, &json!({ "schemaVersion": 2, "manifests": children })).unwrap();
        let shown: Vec<_> = index(repeated).with_first_children(1000).children;
        assert_eq!(
            shown.iter().filter_map(|child| child.digest.clone()).collect::<Vec<_>>(),
            [Digest::sha256(b"same"), Digest::sha256(b"other")]
        );
        let many: Vec<_> = (0..5000_u32).map(|n| child(&n.to_be_bytes())).collect();
        assert_eq!(index(many).with_first_children(1000).children.len(), 1000);
        let listed = index(vec![child(b"manifest"), descriptor(b"blob")]);
        assert_eq!(listed.children.iter().map(|child| child.is_manifest).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn platforms_are_those_that_an_index_names_and_attestations_have_none() {
        let child = |os: &str, architecture: &str| {
            let mut child = descriptor(os.as_bytes());
            child["platform"] = json!({ "os": os, "architecture": architecture });
            child
        };
        let mut arm = child("linux", "arm64");
        arm["platform"]["variant"] = "v8".into();
        let index =
            json!({ "schemaVersion": 2, "manifests": [child("linux", "amd64"), arm, child("unknown", "unknown")] });
        assert_eq!(parse(None, &index).unwrap().platforms(), ["linux/amd64", "linux/arm64/v8"]);
        assert_eq!(platform_of_config(br#"{"os":"linux","architecture":"amd64"}"#).as_deref(), Some("linux/amd64"));
        assert_eq!(platform_of_config(b"{}"), None);
        assert_eq!(platform_of_config(br#"{"os":"a b","architecture":"c"}"#), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_manifest_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
            let _ = Manifest::parse(Some(&text), &bytes);
            let _ = Manifest::parse(None, text.as_bytes());
            let _ = platform_of_config(&bytes);
        }
    }
}
