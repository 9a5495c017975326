//! The content of the registry.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::images::sha256;

/// All repositories.
#[derive(Clone, Default)]
pub(super) struct Content {
    repositories: HashMap<String, Repository>,
    /// How many tags a page has at most, whatever is requested; 0 is no limit.
    pub(super) tags_page: usize,
    /// Whether it does not support the referrers API.
    pub(super) hides_referrers: bool,
}

#[derive(Clone, Default)]
struct Repository {
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, (String, Bytes)>,
    tags: HashMap<String, String>,
}

/// A manifest or blob that was found.
pub(super) struct Found {
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

impl Content {
    pub(super) fn put_blob(&mut self, repository: &str, bytes: Bytes) -> String {
        let digest = sha256(&bytes);
        self.repository(repository).blobs.insert(digest.clone(), bytes);
        digest
    }

    pub(super) fn put_manifest(&mut self, name: &str, tag: Option<&str>, media_type: &str, bytes: Bytes) -> String {
        let digest = sha256(&bytes);
        let repository = self.repository(name);
        repository.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest.clone());
        }
        digest
    }

    pub(super) fn remove(&mut self, name: &str, content: &str) {
        let repository = self.repository(name);
        repository.tags.remove(content);
        repository.manifests.remove(content);
        repository.blobs.remove(content);
    }

    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<Found> {
        let repository = self.repositories.get(repository)?;
        let digest = repository.tags.get(reference).map_or(reference, String::as_str);
        let (media_type, bytes) = repository.manifests.get(digest)?.clone();
        Some(Found { digest: digest.to_owned(), media_type, bytes })
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Found> {
        let bytes = self.repositories.get(repository)?.blobs.get(digest)?.clone();
        Some(Found { digest: digest.to_owned(), media_type: "application/octet-stream".to_owned(), bytes })
    }

    /// The tags of a repository, in byte order.
    pub(super) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        let mut tags: Vec<String> = self.repositories.get(repository)?.tags.keys().cloned().collect();
        tags.sort();
        Some(tags)
    }

    /// The descriptors of a digest's referrers, in the order of their own digests.
    pub(super) fn referrers(&self, repository: &str, subject: &str) -> Vec<Value> {
        let manifests = self.repositories.get(repository).map(|repository| &repository.manifests);
        let refers = |(digest, (media_type, bytes)): (&String, &(String, Bytes))| {
            let manifest: Value = serde_json::from_slice(bytes).ok()?;
            (manifest["subject"]["digest"] == *subject).then(|| {
                let mut descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
                for field in ["artifactType", "annotations"] {
                    if let Some(value) = manifest.get(field) {
                        descriptor[field] = value.clone();
                    }
                }
                descriptor
            })
        };
        let mut found: Vec<Value> = manifests.into_iter().flatten().filter_map(refers).collect();
        found.sort_by_key(|descriptor| descriptor["digest"].to_string());
        found
    }

    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }
}
