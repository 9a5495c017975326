//! What the records say: JSON, whose unknown fields are left to releases that know them.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::template::{RepositorySettings, TagMutability};
use entrepot_domain::{Digest, MediaType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{BlobStore, Error, Key, Version};

/// A repository, at [`crate::layout::repository`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// Under which the links and tags are; a repository that is deleted and created again gets another one.
    pub incarnation: Uuid,
    /// Whether there is a repository.
    pub state: State,
    /// The rule that fills it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// When this incarnation was created.
    pub create_time: DateTime<Utc>,
    /// When this record was last changed.
    pub update_time: DateTime<Utc>,
    /// What this incarnation was created with.
    #[serde(default, skip_serializing_if = "SettingsRecord::is_default")]
    pub settings: SettingsRecord,
    /// Whether its tags are synced by themselves; `None` is as its rule says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic_sync: Option<bool>,
}

/// What a repository was created with, as text: a record of another release must not be unreadable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsRecord {
    /// The id of the template that said so; empty if there was none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Whether tags may move, in ECR's words; empty is that they may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag_mutability: String,
    /// Patterns of tags that are excluded from that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tag_mutability_exclusions: Vec<String>,
    /// What it is marked with.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_tags: BTreeMap<String, String>,
}

impl SettingsRecord {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// As they are meant.
    pub fn settings(&self) -> RepositorySettings {
        let tags = self.resource_tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        RepositorySettings::lenient(&self.template, &self.tag_mutability, &self.tag_mutability_exclusions, tags)
    }
}

impl From<&RepositorySettings> for SettingsRecord {
    fn from(settings: &RepositorySettings) -> Self {
        let mutability = &settings.tag_mutability;
        let is_default = *mutability == TagMutability::default();
        Self {
            template: settings.template.as_ref().map(ToString::to_string).unwrap_or_default(),
            tag_mutability: if is_default { String::new() } else { mutability.as_str().to_owned() },
            tag_mutability_exclusions: mutability.exclusions().iter().map(ToString::to_string).collect(),
            resource_tags: settings
                .resource_tags
                .iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }
}

/// Whether a repository exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does.
    Live,
    /// It did: a tombstone.
    Deleted,
}

/// Lets a repository show a manifest, at [`crate::layout::manifest_link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestLink {
    /// The object that holds the manifest.
    pub object: Key,
    /// What kind of manifest.
    #[serde(with = "media_type")]
    pub media_type: MediaType,
    /// The manifest's size.
    pub size_bytes: u64,
    /// The configuration that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
    /// The manifests that it names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Digest>,
    /// The platforms that it offers, as far as the manifest says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// The size of the config and layers that it names.
    pub content_size_bytes: u64,
    /// When it was cached.
    pub cache_time: DateTime<Utc>,
    /// The origin (see [`entrepot_domain::Rule::origin`]) that it landed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Uuid>,
    /// Whether this is a tombstone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// Lets a repository show a blob, at [`crate::layout::blob_link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobLink {
    /// The object that holds the blob.
    pub object: Key,
    /// The blob's size.
    pub size_bytes: u64,
    /// The origin (see [`entrepot_domain::Rule::origin`]) that it landed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Uuid>,
    /// When it was cached.
    pub cache_time: DateTime<Utc>,
    /// For which platform the image is, if the blob is an image's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Whether this is a tombstone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// What a tag means, at [`crate::layout::tag`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The digest that it means; `None` is a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Grows with every change, deletions too.
    pub revision: i64,
    /// When the upstream last confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_time: Option<DateTime<Utc>>,
    /// The origin (see [`entrepot_domain::Rule::origin`]) that it was resolved under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Uuid>,
}

/// What an upstream has listed, at [`crate::layout::tag_list`] and [`crate::layout::referrer_list`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// The origin (see [`entrepot_domain::Rule::origin`]) whose upstream it was.
    pub origin: Uuid,
    /// When it did.
    pub list_time: DateTime<Utc>,
    /// Tags, or descriptors of manifests.
    pub entries: Vec<String>,
}

/// A cached manifest that refers to another one, at [`crate::layout::referrer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrerRecord {
    /// Its descriptor.
    pub descriptor: String,
}

/// Which snapshot is published, at [`crate::layout::snapshot_head`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The object that holds the snapshot.
    pub key: Key,
    /// The snapshot's epoch.
    pub epoch: i64,
    /// The snapshot's revision.
    pub revision: i64,
    /// The hash of the snapshot's bytes, in hex.
    pub sha256: String,
    /// Which key signed it.
    pub key_id: String,
    /// The signature, in Base64.
    pub signature: String,
}

/// Reads a record.
///
/// # Errors
/// [`Error::BadRecord`] if what is there is not such a record.
pub async fn read<T: DeserializeOwned>(store: &dyn BlobStore, key: &Key) -> Result<Option<(T, Version)>, Error> {
    let Some(object) = store.get(key).await? else { return Ok(None) };
    match serde_json::from_slice(&object.bytes) {
        Ok(record) => Ok(Some((record, object.version))),
        Err(source) => Err(Error::BadRecord { key: key.clone(), source }),
    }
}

/// Replaces a record that is still at `expected`; `None` creates it.
///
/// # Errors
/// [`Error::Conflict`] if it was changed or created meanwhile.
pub async fn replace<T: Serialize + Sync>(
    store: &dyn BlobStore,
    key: &Key,
    expected: Option<&Version>,
    record: &T,
) -> Result<Version, Error> {
    store.replace_if(key, expected, encode(record)).await
}

/// A record as it is written.
pub fn encode<T: Serialize>(record: &T) -> Bytes {
    serde_json::to_vec(record).expect("records are plain values with text keys").into()
}

mod media_type {
    use super::MediaType;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &MediaType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MediaType, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalStore;

    #[tokio::test]
    async fn a_record_is_read_as_it_was_written_and_replaced_by_version() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        let key = Key::parse("repositories/a/_repository").unwrap();
        let mut record = RepositoryRecord {
            incarnation: Uuid::nil(),
            state: State::Live,
            rule_uid: None,
            create_time: DateTime::UNIX_EPOCH,
            update_time: DateTime::UNIX_EPOCH,
            settings: SettingsRecord::default(),
            automatic_sync: None,
        };
        assert!(read::<RepositoryRecord>(&store, &key).await.unwrap().is_none());
        let version = replace(&store, &key, None, &record).await.unwrap();
        assert_eq!(read(&store, &key).await.unwrap(), Some((record.clone(), version.clone())));
        record.state = State::Deleted;
        replace(&store, &key, Some(&version), &record).await.unwrap();
        assert!(matches!(replace(&store, &key, Some(&version), &record).await, Err(Error::Conflict)));
        let error = read::<TagRecord>(&store, &key).await.unwrap_err();
        assert!(matches!(error, Error::BadRecord { .. }), "{error}");
    }

    #[test]
    fn what_a_repository_was_created_with_is_read_back_and_absent_where_it_is_nothing() {
        let settings =
            RepositorySettings::lenient("hub", "IMMUTABLE_WITH_EXCLUSION", &["edge*".to_owned()], [("a", "1")]);
        let record = SettingsRecord::from(&settings);
        let text = encode(&record);
        assert_eq!(serde_json::from_slice::<SettingsRecord>(&text).unwrap().settings(), settings);
        let none = SettingsRecord::from(&RepositorySettings::default());
        assert_eq!((none.is_default(), none.settings()), (true, RepositorySettings::default()));
    }

    #[test]
    fn fields_of_other_releases_do_not_matter() {
        let digest = Digest::sha256(b"");
        let tag: TagRecord =
            serde_json::from_str(&format!(r#"{{"digest":"{digest}","revision":3,"color":"red"}}"#)).unwrap();
        assert_eq!(tag, TagRecord { digest: Some(digest), revision: 3, validate_time: None, origin: None });
        let tombstone: TagRecord = serde_json::from_slice(&encode(&TagRecord { digest: None, ..tag })).unwrap();
        assert_eq!(tombstone.digest, None);
    }

    #[test]
    fn links_survive_their_text_and_keep_to_legal_objects() {
        let link = ManifestLink {
            object: Key::parse("blobs/sha256/00/1").unwrap(),
            media_type: MediaType::OciIndex,
            size_bytes: 7,
            config: None,
            children: vec![Digest::sha256(b"x")],
            platforms: vec!["linux/amd64".to_owned()],
            content_size_bytes: 0,
            cache_time: DateTime::UNIX_EPOCH,
            origin: Some(Uuid::nil()),
            deleted: false,
        };
        let text = String::from_utf8(encode(&link).to_vec()).unwrap();
        assert_eq!(serde_json::from_str::<ManifestLink>(&text).unwrap(), link);
        let escaping = text.replace("blobs/sha256/00/1", "../../etc/passwd");
        assert!(serde_json::from_str::<ManifestLink>(&escaping).is_err());
    }
}
