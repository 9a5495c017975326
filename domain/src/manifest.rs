//! Manifests: their types, and the content that they name. They are only read here, never written.

mod media_type;

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::digest::Digest;

pub use media_type::{MediaType, MediaTypeError, OCI_INDEX};

/// The largest manifest that is accepted; common clients accept no larger one.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The parts of a manifest that Entrepot uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The manifest's media type.
    pub media_type: MediaType,
    /// The configuration of an image.
    pub config: Option<Descriptor>,
    /// The layers of an image; those that live elsewhere (`urls`) are marked.
    pub layers: Vec<Descriptor>,
    /// The manifests that an index lists.
    pub children: Vec<Descriptor>,
    /// The image that it describes and does not contain.
    pub subject: Option<Descriptor>,
}

/// A descriptor: it names content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The content's digest; `None` if its algorithm is not known here, so that the content can be neither fetched nor
    /// verified.
    pub digest: Option<Digest>,
    /// The content's size.
    pub size_bytes: u64,
    /// The platform, as `os/architecture[/variant]`.
    pub platform: Option<String>,
    /// Whether clients fetch the content from other places (`urls`), so that registries need not have it.
    pub is_foreign: bool,
    /// Whether its media type is one of manifests, or is missing. Anything else in an index is treated as a blob.
    pub is_manifest: bool,
}

/// Why bytes cannot be served as a manifest.
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
    /// Its type is its own `mediaType`, which its digest covers; without that, a specific content type; and without
    /// that, the type that its shape shows. Unknown fields, configurations, layers and artifact types never matter. A
    /// manifest of an unknown type may contain anything, and names no content.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge);
        }
        let said = content_type.and_then(|text| text.parse().ok());
        // If it is not JSON, or has another shape, it has no `mediaType` of its own.
        let shape: Shape<'_> = serde_json::from_slice(bytes).unwrap_or_default();
        let media_type = shape.media_type().or(said);
        if shape.is_index() && shape.is_image() {
            return Err(ManifestError::Ambiguous);
        }
        match media_type {
            Some(media_type) if media_type.is_schema_one() => Err(ManifestError::SchemaOne),
            Some(media_type @ MediaType::Other(_)) => Ok(Self::unread(media_type)),
            known => Self::read(known, &shape, bytes),
        }
    }

    /// A manifest of an unknown type.
    fn unread(media_type: MediaType) -> Self {
        Self { media_type, config: None, layers: Vec::new(), children: Vec::new(), subject: None }
    }

    /// Reads a manifest of a known type, or of the type that its shape shows.
    fn read(known: Option<MediaType>, shape: &Shape<'_>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let wire: WireManifest = serde_json::from_slice(bytes).map_err(|_| ManifestError::Malformed)?;
        if wire.schema_version == 1 {
            return Err(ManifestError::SchemaOne);
        }
        let media_type = match known {
            // If type and shape contradict each other, clients would look for fields that do not exist.
            Some(index) if index.is_index() && shape.is_image() => return Err(ManifestError::Ambiguous),
            Some(image) if !image.is_index() && shape.is_index() => return Err(ManifestError::Ambiguous),
            Some(known) => known,
            None if shape.is_index() => MediaType::OciIndex,
            None if shape.is_image() && wire.has_docker_layers() => MediaType::DockerManifest,
            None if shape.is_image() => MediaType::OciManifest,
            None => return Err(ManifestError::Malformed),
        };
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

    /// Keeps the first `most` children of an index, each once for each platform. No more are linked, reported and
    /// fetched in advance; the others are fetched when somebody pulls them.
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

    /// The platforms of an index's manifests, without those of attestations, which have none.
    pub fn platforms(&self) -> Vec<String> {
        let known = self.children.iter().filter_map(|child| child.platform.clone());
        known.filter(|platform| !platform.starts_with("unknown/")).collect()
    }

    /// The size of the configuration and the layers.
    pub fn content_size_bytes(&self) -> u64 {
        self.config.iter().chain(&self.layers).fold(0, |sum, content| sum.saturating_add(content.size_bytes))
    }
}

/// An image's platform according to its configuration, as `os/architecture[/variant]`; `None` if it names none.
pub fn platform_of_config(config: &[u8]) -> Option<String> {
    serde_json::from_slice::<WirePlatform>(config).ok()?.name()
}

/// The fields that show a manifest's type.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape<'a> {
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

impl Shape<'_> {
    /// The type that it names, unless that is one which says nothing, such as `application/json`.
    fn media_type(&self) -> Option<MediaType> {
        let text: String = serde_json::from_str(self.media_type?.get()).ok()?;
        text.parse().ok()
    }

    fn is_index(&self) -> bool {
        self.manifests.is_some()
    }

    fn is_image(&self) -> bool {
        self.config.is_some() || self.layers.is_some()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireManifest {
    schema_version: u32,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
    subject: Option<WireDescriptor>,
}

impl WireManifest {
    fn has_docker_layers(&self) -> bool {
        let types = self.layers.iter().flatten().filter_map(|layer| layer.media_type.as_deref());
        types.into_iter().any(|text| text.starts_with("application/vnd.docker."))
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
            is_manifest: wire.media_type.is_none_or(|text| MediaType::known(&text).is_some()),
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
    /// Platforms are shown to people, so a part that is not a plain word counts as absent.
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
    fn r_mt_05_the_type_comes_from_the_body_then_the_header_then_the_shape() {
        let image = json!({ "schemaVersion": 2, "config": descriptor(b"c"), "layers": [descriptor(b"l")] });
        let index = json!({ "schemaVersion": 2, "manifests": [] });
        let media_type = |content_type: Option<&str>, manifest: &_| parse(content_type, manifest).map(|m| m.media_type);
        assert_eq!(media_type(None, &image), Ok(MediaType::OciManifest));
        assert_eq!(media_type(Some("application/json"), &index), Ok(MediaType::OciIndex));
        let docker = MediaType::DockerManifest.as_str();
        assert_eq!(media_type(Some(&format!("{docker}; charset=utf-8")), &image), Ok(MediaType::DockerManifest));
        let mut named = image.clone();
        named["mediaType"] = docker.into();
        for header in ["text/plain", MediaType::OciManifest.as_str(), MediaType::OciIndex.as_str()] {
            assert_eq!(media_type(Some(header), &named), Ok(MediaType::DockerManifest), "{header}");
        }
        for empty in ["", "application/json", "text/html"] {
            named["mediaType"] = empty.into();
            assert_eq!(media_type(Some(docker), &named), Ok(MediaType::DockerManifest), "{empty}");
        }
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
    fn r_mt_05_what_is_of_a_type_that_is_not_known_may_hold_anything_and_names_nothing() {
        let other = "application/vnd.example.thing.v1+json";
        let is_kept = |content_type: Option<&str>, bytes: &[u8]| {
            let kept = Manifest::parse(content_type, bytes).unwrap();
            assert_eq!(kept, Manifest::unread(other.parse().unwrap()), "{}", String::from_utf8_lossy(bytes));
        };
        let image =
            json!({ "schemaVersion": 2, "config": descriptor(b"c"), "layers": [], "subject": descriptor(b"s") });
        let deep = format!(r#"{{"deep":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        for bytes in
            [image.to_string().as_str(), r#"{"schemaVersion":1}"#, r#"{"layers":"three"}"#, "[]", "7", "", &deep]
        {
            is_kept(Some(other), bytes.as_bytes());
        }
        is_kept(Some(other), b"\x84\xffno text");
        // Its own type counts, whatever the header says.
        let mut named = image.clone();
        named["mediaType"] = other.into();
        named["schemaVersion"] = "two".into();
        for header in [None, Some("application/json"), Some(MediaType::OciManifest.as_str())] {
            is_kept(header, named.to_string().as_bytes());
        }
        let mut known = image;
        known["mediaType"] = MediaType::OciManifest.as_str().into();
        assert_eq!(parse(Some(other), &known).map(|manifest| manifest.media_type), Ok(MediaType::OciManifest));
        // A document with both shapes is refused whatever its type, and one with neither type nor shape is no manifest.
        let both = json!({ "mediaType": other, "layers": 1, "manifests": [] });
        assert_eq!(parse(Some(other), &both), Err(ManifestError::Ambiguous));
        assert_eq!(Manifest::parse(Some("text/html"), b"<html>"), Err(ManifestError::Malformed));
        for schema_one in ["v1+prettyjws", "V1+json"] {
            let header = format!("application/vnd.docker.distribution.manifest.{schema_one}");
            assert_eq!(Manifest::parse(Some(&header), br#"{"schemaVersion":1}"#), Err(ManifestError::SchemaOne));
        }
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
