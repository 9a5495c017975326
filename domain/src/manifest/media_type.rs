//! What kind a manifest is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How long each half of a media type may be (RFC 6838).
const HALF_BYTES: usize = 127;
/// What is said of anything at all, error pages among it, says nothing of a manifest.
const GENERIC: [&str; 11] = [
    "json",
    "octet-stream",
    "binary",
    "xml",
    "problem+json",
    "problem+xml",
    "xhtml+xml",
    "soap+xml",
    "javascript",
    "x-javascript",
    "x-www-form-urlencoded",
];
/// How the names of Docker's first schema begin, which carries no digests of its content.
const SCHEMA_ONE: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The name of an OCI index on the wire.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What kind a manifest is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MediaType {
    /// An OCI index: a list of manifests, one per platform.
    OciIndex,
    /// Docker's form of an index.
    DockerList,
    /// An OCI image manifest.
    OciManifest,
    /// Docker's form of an image manifest.
    DockerManifest,
    /// Any other: what it holds means nothing here, and is kept and served all the same.
    Other(Other),
}

/// The name of a media type that is none of the four.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Other(Box<str>);

impl MediaType {
    /// Those that are known here, in the order in which upstreams are asked for them.
    pub const KNOWN: [Self; 4] = [Self::OciIndex, Self::DockerList, Self::OciManifest, Self::DockerManifest];

    /// Reads a `Content-Type` as one of those that are known here; parameters do not matter.
    pub fn known(text: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(essence(text)))
    }

    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::OciIndex => OCI_INDEX,
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::Other(Other(name)) => name,
        }
    }

    /// Whether it lists other manifests.
    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    /// Whether it is Docker's first schema.
    pub(super) fn is_schema_one(&self) -> bool {
        self.as_str().get(..SCHEMA_ONE.len()).is_some_and(|start| start.eq_ignore_ascii_case(SCHEMA_ONE))
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No media type that a manifest has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the media type of a manifest")]
pub struct MediaTypeError;

impl FromStr for MediaType {
    type Err = MediaTypeError;

    /// Reads a `Content-Type`; parameters do not matter.
    fn from_str(text: &str) -> Result<Self, MediaTypeError> {
        if let Some(known) = Self::known(text) {
            return Ok(known);
        }
        let name = essence(text);
        let (top, subtype) = name.split_once('/').ok_or(MediaTypeError)?;
        let is_special = !GENERIC.iter().any(|generic| generic.eq_ignore_ascii_case(subtype));
        let is_legal = (1..=HALF_BYTES).contains(&subtype.len())
            && subtype.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte));
        if top.eq_ignore_ascii_case("application") && is_special && is_legal {
            return Ok(Self::Other(Other(name.into())));
        }
        Err(MediaTypeError)
    }
}

impl TryFrom<String> for MediaType {
    type Error = MediaTypeError;

    fn try_from(text: String) -> Result<Self, MediaTypeError> {
        text.parse()
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> Self {
        media_type.as_str().to_owned()
    }
}

/// A media type without its parameters.
fn essence(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_anything_is_no_type_of_a_manifest() {
        for text in [
            "application/json",
            "Application/Octet-Stream; x",
            "text/html",
            "text/x-manifest",
            "image/png",
            "json",
            "application/",
            "application/a b",
            "application/a/b",
            "application/a\u{e9}",
            "application/x\0",
            "",
        ] {
            assert_eq!(text.parse::<MediaType>(), Err(MediaTypeError), "{text:?}");
        }
        assert!(format!("application/{}", "x".repeat(HALF_BYTES + 1)).parse::<MediaType>().is_err());
    }

    #[test]
    fn a_type_is_written_and_read_as_it_was() {
        let other = "application/vnd.example.thing.v1+json";
        for text in MediaType::KNOWN.iter().map(MediaType::as_str).chain([other]) {
            let media_type: MediaType = format!("{text}; charset=utf-8").parse().unwrap();
            let written = serde_json::to_value(&media_type).unwrap();
            assert_eq!(written, text);
            assert_eq!(serde_json::from_value::<MediaType>(written).unwrap(), media_type);
            assert_eq!(MediaType::known(text).is_none(), text == other);
        }
        assert!(serde_json::from_str::<MediaType>(r#""text/html""#).is_err());
    }
}
