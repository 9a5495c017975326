//! Referrers: manifests that refer to another one, such as signatures, attestations and lists of parts.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers". A referrer's descriptor is passed on unchanged,
//! since clients read its annotations and other fields.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::manifest::MediaType;
use crate::reference::Tag;

/// The media type of an empty configuration.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A manifest that refers to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// The manifest's digest; `None` if its algorithm is not known here, so that it can be neither fetched nor
    /// verified.
    pub digest: Option<Digest>,
    /// The artifact type, such as that of a signature, if the descriptor has one.
    pub artifact_type: Option<Box<str>>,
    /// The descriptor, byte for byte.
    pub descriptor: Arc<str>,
}

/// The error for a document that is not a list of referrers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a list of referrers")]
pub struct ReferrerError;

/// The list of manifests in an index. Some registries write `null` for an empty list; a document without the list is no
/// index.
#[derive(Deserialize)]
struct WireIndex<'a> {
    #[serde(borrow)]
    manifests: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireReferrer {
    digest: String,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireManifest {
    artifact_type: Option<String>,
    config: Option<WireConfig>,
    annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireConfig {
    media_type: Option<String>,
}

/// A descriptor that Entrepot writes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

impl Referrer {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// If it is not one.
    pub fn read(descriptor: &str) -> Result<Self, ReferrerError> {
        let wire: WireReferrer = serde_json::from_str(descriptor).map_err(|_| ReferrerError)?;
        Ok(Self {
            digest: wire.digest.parse().ok(),
            artifact_type: wire.artifact_type.filter(|text| !text.is_empty()).map(Into::into),
            descriptor: descriptor.into(),
        })
    }

    /// The artifact type, if it is known: that of an empty configuration says nothing.
    pub fn known_type(&self) -> Option<&str> {
        self.artifact_type.as_deref().filter(|known| *known != EMPTY)
    }

    /// The same referrer, with this artifact type in its descriptor.
    #[must_use]
    pub fn with_type(self, artifact_type: &str) -> Self {
        let said = || {
            let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&self.descriptor).ok()?;
            fields.insert("artifactType".to_owned(), serde_json::value::to_raw_value(artifact_type).ok()?);
            serde_json::to_string(&fields).ok()
        };
        match said() {
            Some(descriptor) => {
                Self { artifact_type: Some(artifact_type.into()), descriptor: descriptor.into(), ..self }
            }
            None => self,
        }
    }

    /// Reads an index of referrers.
    ///
    /// # Errors
    /// If it is not one.
    pub fn read_index(bytes: &[u8]) -> Result<Vec<Self>, ReferrerError> {
        let index: WireIndex<'_> = serde_json::from_slice(bytes).map_err(|_| ReferrerError)?;
        let list: Option<Vec<&RawValue>> = serde_json::from_str(index.manifests.get()).map_err(|_| ReferrerError)?;
        list.unwrap_or_default().into_iter().map(|descriptor| Self::read(descriptor.get())).collect()
    }

    /// The descriptor of a manifest that refers to another one, with its annotations, and with its configuration's type
    /// if it has no artifact type of its own.
    ///
    /// # Errors
    /// If the bytes are not a manifest.
    pub fn of_manifest(digest: &Digest, media_type: &MediaType, bytes: &[u8]) -> Result<Self, ReferrerError> {
        let wire: WireManifest = serde_json::from_slice(bytes).map_err(|_| ReferrerError)?;
        let own = wire.artifact_type.filter(|text| !text.is_empty());
        let config = wire.config.and_then(|config| config.media_type).filter(|_| !media_type.is_index());
        let artifact_type = own.or(config);
        let descriptor = Descriptor {
            media_type: media_type.as_str(),
            digest: digest.to_string(),
            size: bytes.len(),
            artifact_type: artifact_type.as_deref(),
            annotations: wire.annotations.as_ref(),
        };
        let descriptor = serde_json::to_string(&descriptor).map_err(|_| ReferrerError)?;
        Ok(Self {
            digest: Some(digest.clone()),
            artifact_type: artifact_type.map(Into::into),
            descriptor: descriptor.into(),
        })
    }
}

/// The listed referrers, and then the others that are known.
pub fn merged(listed: &[Referrer], known: Vec<Referrer>) -> Vec<Referrer> {
    let digests: BTreeSet<&Digest> = listed.iter().filter_map(|referrer| referrer.digest.as_ref()).collect();
    let besides =
        known.into_iter().filter(|known| known.digest.as_ref().is_none_or(|digest| !digests.contains(digest)));
    listed.iter().cloned().chain(besides.collect::<Vec<_>>()).collect()
}

/// The tag under which registries that do not know the API keep the index of what refers to a digest.
///
/// # Panics
/// Never: the parts of a digest are legal in tags.
pub fn fallback_tag(digest: &Digest) -> Tag {
    let hex = digest.hex();
    format!("{}-{}", digest.algorithm(), &hex[..hex.len().min(64)]).parse().expect("letters, digits and a hyphen")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn referrer(number: u8) -> Referrer {
        let digest = Digest::sha256(&[number]);
        Referrer::read(&format!(r#"{{"digest":"{digest}","size":1}}"#)).unwrap()
    }

    #[test]
    fn descriptors_are_kept_as_they_came() {
        let descriptor = format!(r#"{{"size":1, "digest":"{DIGEST}","artifactType":"sig","annotations":{{"b":"2"}}}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor},{{"digest":"md5:1"}}]}}"#);
        let [first, second] = &Referrer::read_index(index.as_bytes()).unwrap()[..] else { panic!("two") };
        assert_eq!((&*first.descriptor, first.artifact_type.as_deref()), (descriptor.as_str(), Some("sig")));
        assert_eq!(first.digest, Some(DIGEST.parse().unwrap()));
        assert_eq!((&second.digest, &second.artifact_type), (&None, &None), "of an algorithm that is not known");
        assert_eq!(Referrer::read_index(br#"{"manifests":null}"#), Ok(vec![]));
    }

    #[test]
    fn what_a_referrer_is_can_be_added_to_what_was_said_of_it() {
        let read = |kind: &str| Referrer::read(&format!(r#"{{"size":1,"digest":"{DIGEST}"{kind},"x":1.50}}"#)).unwrap();
        for kind in ["", r#","artifactType":"""#, r#","artifactType":"application/vnd.oci.empty.v1+json""#] {
            let unknown = read(kind);
            assert_eq!(unknown.known_type(), None, "{kind}");
            let typed = unknown.with_type("sig");
            assert_eq!(typed.known_type(), Some("sig"));
            assert_eq!(
                &*typed.descriptor,
                format!(r#"{{"artifactType":"sig","digest":"{DIGEST}","size":1,"x":1.50}}"#)
            );
            assert_eq!(Referrer::read(&typed.descriptor), Ok(typed));
        }
        assert_eq!(read(r#","artifactType":"sbom""#).known_type(), Some("sbom"));
    }

    #[test]
    fn what_is_no_list_of_descriptors_is_refused() {
        for bad in ["", "[]", "{}", "3", r#"{"manifests":3}"#, r#"{"manifests":[3]}"#, r#"{"manifests":[{"size":1}]}"#]
        {
            assert_eq!(Referrer::read_index(bad.as_bytes()), Err(ReferrerError), "{bad}");
        }
    }

    #[test]
    fn r_ref_02_a_manifest_is_told_of_by_its_type_or_that_of_its_configuration() {
        let of = |media_type, text: &str| {
            let referrer = Referrer::of_manifest(&DIGEST.parse().unwrap(), &media_type, text.as_bytes()).unwrap();
            (referrer.artifact_type.clone(), serde_json::from_str::<serde_json::Value>(&referrer.descriptor).unwrap())
        };
        let text = r#"{"artifactType":"sig","config":{"mediaType":"conf"},"annotations":{"a":"1"}}"#;
        let (artifact_type, json) = of(MediaType::OciManifest, text);
        assert_eq!(artifact_type.as_deref(), Some("sig"));
        assert_eq!(
            json,
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": DIGEST, "size": text.len(),
                "artifactType": "sig", "annotations": { "a": "1" },
            })
        );
        let without = r#"{"config":{"mediaType":"conf"}}"#;
        assert_eq!(of(MediaType::OciManifest, without).0.as_deref(), Some("conf"));
        let (artifact_type, json) = of(MediaType::OciIndex, r#"{"manifests":[]}"#);
        assert_eq!((artifact_type, json.get("artifactType"), json.get("annotations")), (None, None, None));
        // What was made here is read as it was meant.
        let made = Referrer::of_manifest(&DIGEST.parse().unwrap(), &MediaType::OciManifest, text.as_bytes()).unwrap();
        assert_eq!(Referrer::read(&made.descriptor), Ok(made));
    }

    #[test]
    fn what_is_known_besides_comes_behind_what_was_listed_and_once() {
        let [a, b, c] = [1, 2, 3].map(referrer);
        assert_eq!(merged(&[a.clone(), b.clone()], vec![b.clone(), c.clone()]), [a, b, c.clone()]);
        assert_eq!(merged(&[], vec![c.clone()]), [c]);
    }

    #[test]
    fn r_ref_08_the_tag_of_a_digest_is_a_legal_one() {
        assert_eq!(fallback_tag(&DIGEST.parse().unwrap()).as_str(), DIGEST.replace(':', "-"));
        let long = Digest::of(Algorithm::Sha512, b"");
        assert_eq!(fallback_tag(&long).as_str(), format!("sha512-{}", &long.hex()[..64]));
    }
}
