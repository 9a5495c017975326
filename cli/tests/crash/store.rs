//! Checks of a store's folder that must succeed at any moment, even after a crash.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use entrepot_domain::{Digest, Manifest, RepositoryName};
use entrepot_proto::node::v1::ReportEventsRequest;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{
    BlobLink, ManifestLink, PointerRecord, PointerState, ReferrerRecord, RepositoryRecord, SnapshotHead, State,
    TagRecord,
};
use entrepot_store::Key;
use prost::Message as _;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// The folder of a store, seen from outside.
pub(crate) struct StoreFolder(pub(crate) PathBuf);

impl StoreFolder {
    /// Checks that every object is complete, and that everything referred to exists.
    pub(crate) fn assert_whole(&self) {
        for key in self.keys("") {
            match layout::parse(&key).unwrap_or_else(|| panic!("{key} is not in the drawing")) {
                Parsed::Version => {}
                Parsed::Content { .. } => {
                    self.read(&key);
                }
                Parsed::Pointer { digest } => {
                    let pointer: PointerRecord = self.record(&key);
                    assert_eq!(pointer.state, PointerState::Live, "{key}");
                    let object = pointer.object.unwrap();
                    self.assert_object(&object, &digest);
                    assert_eq!(self.read(&object).len() as u64, pointer.size_bytes, "{key}");
                }
                Parsed::Repository { .. } => assert_eq!(self.record::<RepositoryRecord>(&key).state, State::Live),
                Parsed::ManifestLink { name, incarnation, digest } => {
                    self.assert_incarnation(&name, incarnation);
                    self.assert_manifest_link(&self.record(&key), &digest);
                }
                Parsed::BlobLink { name, incarnation, digest } => {
                    self.assert_incarnation(&name, incarnation);
                    let link: BlobLink = self.record(&key);
                    self.assert_object(&link.object, &digest);
                    assert_eq!(self.read(&link.object).len() as u64, link.size_bytes, "{key}");
                }
                Parsed::Tag { name, incarnation, .. } => {
                    let digest = self.record::<TagRecord>(&key).digest.unwrap();
                    self.record::<ManifestLink>(&layout::manifest_link(&name, incarnation, &digest));
                }
                Parsed::TagList { name, incarnation } | Parsed::ReferrerList { name, incarnation, .. } => {
                    self.assert_incarnation(&name, incarnation);
                    self.record::<serde_json::Value>(&key);
                }
                Parsed::Referrer { name, incarnation, digest, .. } => {
                    self.assert_incarnation(&name, incarnation);
                    self.record::<ManifestLink>(&layout::manifest_link(&name, incarnation, &digest));
                    self.record::<ReferrerRecord>(&key);
                }
                Parsed::SnapshotHead => {
                    let head: SnapshotHead = self.record(&key);
                    assert_eq!(Digest::sha256(&self.read(&head.key)).hex(), head.sha256);
                }
                Parsed::Event { .. } => {
                    assert!(!ReportEventsRequest::decode(&*self.read(&key)).unwrap().events.is_empty())
                }
                Parsed::Snapshot { .. } | Parsed::Node { .. } => {}
                Parsed::Upload { .. } => panic!("{key}: uploads to a folder need no record"),
                Parsed::Damage { .. } => panic!("{key}: nothing is damaged"),
                Parsed::Probe { .. } => panic!("{key}: a folder is not probed"),
                Parsed::PushSession { .. } | Parsed::PushTail { .. } => panic!("{key}: nothing is pushed"),
            }
        }
    }

    /// Files that are useful only to the process that created them.
    pub(crate) fn temporary_files(&self) -> BTreeSet<PathBuf> {
        fs::read_dir(self.0.join(".tmp")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn assert_manifest_link(&self, link: &ManifestLink, digest: &Digest) {
        self.assert_object(&link.object, digest);
        let bytes = self.read(&link.object);
        assert_eq!(bytes.len() as u64, link.size_bytes, "{digest}");
        let manifest = Manifest::parse(Some(link.media_type.as_str()), &bytes).unwrap();
        let config = link.config.as_ref().map(|config| config.digest.clone());
        assert_eq!(manifest.config.and_then(|config| config.digest), config, "{digest}");
        let children: Vec<_> = manifest.children.into_iter().filter_map(|child| child.digest).collect();
        assert_eq!(children, link.children.iter().map(|child| child.digest.clone()).collect::<Vec<_>>(), "{digest}");
    }

    /// The object under the key is content, and hashes to the digest.
    fn assert_object(&self, key: &Key, digest: &Digest) {
        assert!(matches!(layout::parse(key), Some(Parsed::Content { .. })), "{key}");
        assert_eq!(Digest::of(digest.algorithm(), &self.read(key)), *digest, "{key}");
    }

    fn assert_incarnation(&self, name: &RepositoryName, incarnation: Uuid) {
        let record: RepositoryRecord = self.record(&layout::repository(name));
        assert_eq!(record.incarnation, incarnation, "{name}");
    }

    fn record<T: DeserializeOwned>(&self, key: &Key) -> T {
        serde_json::from_slice(&self.read(key)).unwrap_or_else(|error| panic!("{key}: {error}"))
    }

    fn read(&self, key: &Key) -> Vec<u8> {
        fs::read(self.0.join(key.as_str())).unwrap_or_else(|error| panic!("{key}: {error}"))
    }

    /// All keys below `folder`, in no particular order.
    pub(crate) fn keys(&self, folder: &str) -> Vec<Key> {
        let entries = match fs::read_dir(self.0.join(folder)) {
            Ok(entries) => entries,
            // The last file in it was deleted a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return vec![],
            Err(error) => panic!("{folder}: {error}"),
        };
        let mut keys = vec![];
        for entry in entries {
            let entry = entry.unwrap();
            let path = entry.path();
            let name = path.strip_prefix(&self.0).unwrap().to_str().unwrap();
            match entry.file_type().unwrap().is_dir() {
                _ if name.starts_with('.') => {}
                true => keys.extend(self.keys(name)),
                false => keys.push(Key::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"))),
            }
        }
        keys
    }
}
