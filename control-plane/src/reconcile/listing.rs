//! What a page of the store's list contains, grouped for queries to the index.

use std::collections::{BTreeMap, BTreeSet};

use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_records::layout::{self, Parsed};
use entrepot_store::{Entry, Key, Prefix};
use uuid::Uuid;

use crate::db::comparison::Part;

/// Sorts after every digest and every tag.
const LAST: &str = "~";

/// A listed record of a manifest or tag.
#[derive(Clone, Debug)]
pub(super) struct Listed<T> {
    pub(super) name: RepositoryName,
    pub(super) incarnation: Uuid,
    pub(super) id: T,
    pub(super) version: String,
}

impl<T: ToString> Listed<T> {
    /// The key of its row in the index.
    pub(super) fn row(&self) -> (Uuid, String) {
        (self.incarnation, self.id.to_string())
    }
}

/// A page of the list of `repositories/`.
pub(super) struct Listing {
    after: Option<Key>,
    /// The last key; `None` if nothing comes after this page.
    pub(super) last: Option<Key>,
    /// The repositories that appear on this page or the previous one.
    pub(super) names: BTreeSet<RepositoryName>,
    /// The versions of repositories' own records.
    pub(super) repositories: BTreeMap<RepositoryName, String>,
    pub(super) images: Vec<Listed<Digest>>,
    pub(super) tags: Vec<Listed<Tag>>,
}

impl Listing {
    /// The page of entries after `after`. If there are `limit` entries, there may be more.
    pub(super) fn of(entries: Vec<Entry>, after: Option<&Key>, limit: usize) -> Self {
        let last = entries.last().map(|entry| entry.key.clone()).filter(|_| entries.len() >= limit);
        let mut listing = Self {
            after: after.cloned(),
            last,
            names: after.and_then(layout::parse).as_ref().and_then(name).cloned().into_iter().collect(),
            repositories: BTreeMap::new(),
            images: Vec::new(),
            tags: Vec::new(),
        };
        for entry in entries {
            let Some(parsed) = layout::parse(&entry.key) else { continue };
            listing.names.extend(name(&parsed).cloned());
            let version = entry.mark();
            if let Parsed::Repository { name } = parsed {
                listing.repositories.insert(name, version);
            } else if let Parsed::ManifestLink { name, incarnation, digest } = parsed {
                listing.images.push(Listed { name, incarnation, id: digest, version });
            } else if let Parsed::Tag { name, incarnation, tag } = parsed {
                listing.tags.push(Listed { name, incarnation, id: tag, version });
            }
        }
        listing
    }

    /// The incarnations whose manifests and tags are listed, by name.
    pub(super) fn incarnations(&self) -> BTreeSet<(RepositoryName, Uuid)> {
        let images = self.images.iter().map(|listed| (listed.name.clone(), listed.incarnation));
        images.chain(self.tags.iter().map(|listed| (listed.name.clone(), listed.incarnation))).collect()
    }

    /// The range of an incarnation's images that this page covers.
    pub(super) fn images_of(&self, name: &RepositoryName, incarnation: Uuid) -> Option<Part> {
        let digest = |parsed| {
            let Parsed::ManifestLink { digest, .. } = parsed else { return None };
            Some(digest.to_string())
        };
        self.part(&layout::manifest_links_prefix(name, incarnation), incarnation, digest)
    }

    /// The range of an incarnation's tags that this page covers.
    pub(super) fn tags_of(&self, name: &RepositoryName, incarnation: Uuid) -> Option<Part> {
        let tag = |parsed| {
            let Parsed::Tag { tag, .. } = parsed else { return None };
            Some(tag.to_string())
        };
        self.part(&layout::tags_prefix(name, incarnation), incarnation, tag)
    }

    /// Rows have the same order as the keys of their records. `id` returns the id for a key below `folder`.
    fn part(&self, folder: &Prefix, incarnation: Uuid, id: impl Fn(Parsed) -> Option<String>) -> Option<Part> {
        let folder = folder.as_str();
        // The id of a key in the folder. A key of an unknown form sorts before all others.
        let id = |key: &Key| layout::parse(key).and_then(&id).unwrap_or_default();
        let above = match &self.after {
            Some(after) if after.as_str().starts_with(folder) => id(after),
            Some(after) if after.as_str() > folder => return None,
            Some(_) | None => String::new(),
        };
        let until = match &self.last {
            Some(last) if last.as_str().starts_with(folder) => id(last),
            Some(last) if last.as_str() < folder => return None,
            Some(_) | None => LAST.to_owned(),
        };
        Some(Part { incarnation, above, until })
    }
}

/// The repository of a key.
fn name(parsed: &Parsed) -> Option<&RepositoryName> {
    match parsed {
        Parsed::Repository { name }
        | Parsed::ManifestLink { name, .. }
        | Parsed::BlobLink { name, .. }
        | Parsed::Tag { name, .. }
        | Parsed::TagList { name, .. }
        | Parsed::ReferrerList { name, .. }
        | Parsed::Referrer { name, .. } => Some(name),
        Parsed::Version
        | Parsed::Content { .. }
        | Parsed::Damage { .. }
        | Parsed::Pointer { .. }
        | Parsed::PushSession { .. }
        | Parsed::PushTail { .. }
        | Parsed::Upload { .. }
        | Parsed::SnapshotHead
        | Parsed::Snapshot { .. }
        | Parsed::Node { .. }
        | Parsed::Event { .. }
        | Parsed::Probe { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn entry(key: &Key) -> Entry {
        Entry { key: key.clone(), size_bytes: 1, modify_time: DateTime::UNIX_EPOCH, version: None }
    }

    #[test]
    fn pages_cover_every_row_of_a_listed_repository_once() {
        let name: RepositoryName = "demo/app".parse().unwrap();
        let incarnation = Uuid::from_u128(7);
        let mut digests: Vec<Digest> = [b"a", b"b", b"c"].iter().map(|content| Digest::sha256(*content)).collect();
        digests.sort_by_key(ToString::to_string);
        let mut keys: Vec<Key> =
            digests.iter().map(|digest| layout::manifest_link(&name, incarnation, digest)).collect();
        keys.extend(["v1", "v2"].map(|tag| layout::tag(&name, incarnation, &tag.parse().unwrap())));
        keys.push(layout::repository(&name));
        // A repository nested below this name, which comes before it in the order of keys.
        keys.push(layout::repository(&"demo/app/0".parse().unwrap()));
        keys.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        for limit in 1..=keys.len() + 1 {
            let (mut after, mut images, mut tags) = (None, Vec::new(), Vec::new());
            loop {
                let rest =
                    keys.iter().filter(|key| after.as_ref().is_none_or(|after: &Key| key.as_str() > after.as_str()));
                let listing = Listing::of(rest.take(limit).map(entry).collect(), after.as_ref(), limit);
                if listing.names.contains(&name) {
                    images.extend(listing.images_of(&name, incarnation).map(|part| (part.above, part.until)));
                    tags.extend(listing.tags_of(&name, incarnation).map(|part| (part.above, part.until)));
                }
                let Some(last) = listing.last else { break };
                after = Some(last);
            }
            for parts in [images, tags] {
                let parts: Vec<_> = parts.into_iter().filter(|(above, until)| above != until).collect();
                assert_eq!(parts.first().map(|part| part.0.as_str()), Some(""), "{limit}");
                assert_eq!(parts.last().map(|part| part.1.as_str()), Some(LAST), "{limit}");
                assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0), "{limit}: {parts:?}");
            }
        }
    }
}
