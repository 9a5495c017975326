//! Links: what a repository may show, and all that it names.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Manifest, MediaType};
use entrepot_store::Key;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::repository::{Origin, State};
use crate::word::{Rest, Word, rest_of_new};

/// How many of an index's manifests its link lists.
pub const LISTED_CHILDREN: usize = 1000;

/// Lets a repository show a manifest, at [`crate::layout::manifest_link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestLink {
    /// The object that holds the manifest. It saves a read of the pointer, which decides.
    pub object: Key,
    /// The manifest's media type.
    pub media_type: MediaType,
    /// The manifest's size.
    pub size_bytes: u64,
    /// The manifest's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Named>,
    /// The manifest's layers, without those that are fetched from other places by their `urls`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Named>,
    /// The index's manifests, the first [`LISTED_CHILDREN`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Named>,
    /// The manifest's subject: the image that it describes and does not contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// The artifact type, if it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The platforms that an index names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// The total size of the configuration and layers.
    pub content_size_bytes: u64,
    /// When it was cached.
    pub cache_time: DateTime<Utc>,
    /// The rule by which it was cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// Where that rule fetches from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether it is a link, or a tombstone.
    pub state: Word<State>,
    /// Grows with every change, deletions too.
    pub revision: i64,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Content that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its digest.
    pub digest: Digest,
    /// Its size, as the manifest says.
    pub size_bytes: u64,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl Named {
    /// Content with this size.
    pub fn new(digest: Digest, size_bytes: u64) -> Self {
        Self { digest, size_bytes, rest: Rest::new() }
    }
}

/// Copies the fields of other releases from the old entries to the new ones.
fn keep_rest<'n>(named: impl IntoIterator<Item = &'n mut Named>, old: impl IntoIterator<Item = &'n Named>) {
    let noted = old.into_iter().filter(|old| !old.rest.is_empty());
    let noted: HashMap<&Digest, &Rest> = noted.map(|old| (&old.digest, &old.rest)).collect();
    for one in named {
        if let Some(rest) = noted.get(&one.digest) {
            one.rest = (*rest).clone();
        }
    }
}

impl ManifestLink {
    /// A link to a manifest that names nothing.
    pub fn new(object: Key, media_type: MediaType, size_bytes: u64, cache_time: DateTime<Utc>) -> Self {
        Self {
            object,
            media_type,
            size_bytes,
            config: None,
            layers: Vec::new(),
            children: Vec::new(),
            subject: None,
            artifact_type: None,
            platforms: Vec::new(),
            content_size_bytes: 0,
            cache_time,
            rule_uid: None,
            origin: None,
            state: State::Live.into(),
            revision: 0,
            write: Uuid::nil(),
            rest: rest_of_new(),
        }
    }

    /// A link to `manifest`, whose bytes are these.
    pub fn of(manifest: &Manifest, bytes: &[u8], object: Key, cache_time: DateTime<Utc>) -> Self {
        let named = |content: &entrepot_domain::manifest::Descriptor| {
            content.digest.clone().map(|digest| Named::new(digest, content.size_bytes))
        };
        Self {
            config: manifest.config.as_ref().and_then(named),
            layers: manifest.layers.iter().filter(|layer| !layer.is_foreign).filter_map(named).collect(),
            children: manifest.children.iter().filter_map(named).take(LISTED_CHILDREN).collect(),
            subject: manifest.subject.as_ref().and_then(|subject| subject.digest.clone()),
            artifact_type: artifact_type(bytes),
            platforms: manifest.platforms(),
            content_size_bytes: manifest.content_size_bytes(),
            ..Self::new(object, manifest.media_type.clone(), bytes.len() as u64, cache_time)
        }
    }

    /// The same link as the replacement of `old`, whose fields of other releases it keeps.
    #[must_use]
    pub(crate) fn in_place_of(mut self, old: &Self) -> Self {
        keep_rest(&mut self.config, &old.config);
        keep_rest(&mut self.layers, &old.layers);
        keep_rest(&mut self.children, &old.children);
        self.origin = self.origin.map(|origin| origin.in_place_of(old.origin.as_ref()));
        self.rest = old.rest.clone();
        self
    }

    /// Whether the manifest may be shown.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }
}

/// Lets a repository show a blob, at [`crate::layout::blob_link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobLink {
    /// The object that holds the blob. It saves a read of the pointer, which decides.
    pub object: Key,
    /// The blob's size.
    pub size_bytes: u64,
    /// When it was cached.
    pub cache_time: DateTime<Utc>,
    /// The image's platform, if the blob is an image's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The rule by which it was cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// Where that rule fetches from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether it is a link, or a tombstone.
    pub state: Word<State>,
    /// Grows with every change, deletions too.
    pub revision: i64,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl BlobLink {
    /// A link to a blob.
    pub fn new(object: Key, size_bytes: u64, cache_time: DateTime<Utc>) -> Self {
        Self {
            object,
            size_bytes,
            cache_time,
            platform: None,
            rule_uid: None,
            origin: None,
            state: State::Live.into(),
            revision: 0,
            write: Uuid::nil(),
            rest: rest_of_new(),
        }
    }

    /// Whether the blob may be shown.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireManifest {
    artifact_type: Option<String>,
}

fn artifact_type(manifest: &[u8]) -> Option<String> {
    let wire: WireManifest = serde_json::from_slice(manifest).ok()?;
    wire.artifact_type.filter(|text| !text.is_empty())
}
