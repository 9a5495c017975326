//! The walk through an image that is fetched in advance: which manifests are read next, and which blobs are needed.
//!
//! An index of 4 MiB can name 40,000 manifests of 4 MiB, or one of them 40,000 times, and these can be indexes again.
//! So each digest is read once, the queue holds digests instead of bodies, and everything has a limit. Whatever exceeds
//! a limit is left out: a pull that wants it asks the upstream, as for any missing content.

use std::collections::{HashMap, HashSet};

use super::Platforms;
use crate::digest::Digest;
use crate::manifest::{Descriptor, Manifest};

/// How much of an image is fetched in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The number of manifests and indexes.
    pub manifests: usize,
    /// The number of configurations and layers.
    pub blobs: usize,
    /// The size of all of them, according to the manifests.
    pub bytes: u64,
    /// How deep indexes may nest below the first one.
    pub depth: usize,
}

/// A manifest to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    pub digest: Digest,
    depth: usize,
}

/// A walk that is under way.
#[derive(Clone, Debug)]
pub struct Walk {
    platforms: Platforms,
    bounds: Bounds,
    seen: HashSet<Digest>,
    waiting: Vec<Visit>,
    blobs: HashMap<Digest, u64>,
    bytes: u64,
    left_out_count: usize,
}

impl Walk {
    /// Begins at the manifest or index with this digest.
    pub fn begin(digest: Digest, platforms: Platforms, bounds: Bounds) -> Self {
        Self {
            platforms,
            bounds,
            seen: HashSet::from([digest.clone()]),
            waiting: vec![Visit { digest, depth: 0 }],
            blobs: HashMap::new(),
            bytes: 0,
            left_out_count: 0,
        }
    }

    /// The manifest to read next; `None` once all have been read.
    pub fn next_manifest(&mut self) -> Option<Visit> {
        self.waiting.pop()
    }

    /// Notes what a manifest of `size_bytes` names. Returns the size of those blobs that no manifest has named before.
    pub fn note(&mut self, visit: &Visit, size_bytes: u64, manifest: &Manifest) -> u64 {
        self.bytes = self.bytes.saturating_add(size_bytes);
        let before = self.bytes;
        let platforms = self.platforms.clone();
        let (manifests, blobs): (Vec<_>, Vec<_>) =
            platforms.children(manifest).filter(|child| !child.is_foreign).partition(|child| child.is_manifest);
        manifests.into_iter().for_each(|child| self.note_manifest(child, visit.depth + 1));
        let named = manifest.config.iter().chain(&manifest.layers).filter(|blob| !blob.is_foreign);
        named.chain(blobs).for_each(|blob| self.note_blob(blob));
        self.bytes - before
    }

    fn note_manifest(&mut self, child: &Descriptor, depth: usize) {
        let Some(digest) = child.digest.as_ref().filter(|digest| !self.seen.contains(*digest)) else { return };
        let is_within = depth <= self.bounds.depth && self.seen.len() < self.bounds.manifests;
        if !is_within || self.bytes >= self.bounds.bytes {
            self.left_out_count += 1;
            return;
        }
        self.seen.insert(digest.clone());
        self.waiting.push(Visit { digest: digest.clone(), depth });
    }

    fn note_blob(&mut self, blob: &Descriptor) {
        let Some(digest) = blob.digest.as_ref().filter(|digest| !self.blobs.contains_key(*digest)) else { return };
        let bytes = self.bytes.saturating_add(blob.size_bytes);
        if self.blobs.len() >= self.bounds.blobs || bytes > self.bounds.bytes {
            self.left_out_count += 1;
            return;
        }
        self.bytes = bytes;
        self.blobs.insert(digest.clone(), blob.size_bytes);
    }

    /// How many times something was named that exceeds a limit.
    pub fn left_out_count(&self) -> usize {
        self.left_out_count
    }

    /// The blobs that the manifests read so far need.
    pub fn into_blobs(self) -> impl Iterator<Item = Digest> {
        self.blobs.into_keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MediaType;

    const BOUNDS: Bounds = Bounds { manifests: 100, blobs: 50, bytes: 1_000_000, depth: 4 };

    fn digest(n: usize) -> Digest {
        Digest::sha256(n.to_string().as_bytes())
    }

    fn child(n: usize, is_manifest: bool) -> Descriptor {
        Descriptor { digest: Some(digest(n)), size_bytes: 10, platform: None, is_foreign: false, is_manifest }
    }

    fn index(children: Vec<Descriptor>) -> Manifest {
        let media_type = MediaType::OciIndex;
        Manifest { media_type, config: None, layers: Vec::new(), children, subject: None }
    }

    fn image(layers: Vec<Descriptor>) -> Manifest {
        let media_type = MediaType::OciManifest;
        Manifest { media_type, config: None, layers, children: Vec::new(), subject: None }
    }

    /// Walks through the manifests that `manifest` makes for each digest. Returns how many were read, and the longest
    /// queue.
    fn walk(bounds: Bounds, mut manifest: impl FnMut(&Visit) -> Manifest) -> (usize, usize, Walk) {
        let mut walk = Walk::begin(digest(0), Platforms::All, bounds);
        let (mut read_count, mut most_waiting) = (0, 0);
        while let Some(visit) = walk.next_manifest() {
            read_count += 1;
            walk.note(&visit, 100, &manifest(&visit));
            most_waiting = most_waiting.max(walk.waiting.len());
        }
        (read_count, most_waiting, walk)
    }

    #[test]
    fn what_is_named_forty_thousand_times_is_read_once() {
        let (read_count, most_waiting, walk) = walk(BOUNDS, |visit| match visit.depth {
            0 => index((0..40_000).map(|_| child(1, true)).collect()),
            _ => image((0..40_000).map(|_| child(2, false)).collect()),
        });
        assert_eq!((read_count, most_waiting, walk.left_out_count()), (2, 1, 0));
        assert_eq!(walk.into_blobs().collect::<Vec<_>>(), [digest(2)]);
    }

    #[test]
    fn a_wide_index_of_wide_indexes_has_an_end() {
        let mut next = 0;
        let (read_count, most_waiting, walk) = walk(BOUNDS, |_| {
            next += 1000;
            index((next..next + 1000).map(|n| child(n, true)).collect())
        });
        assert_eq!(read_count, BOUNDS.manifests);
        assert!(most_waiting < BOUNDS.manifests, "{most_waiting} digests waited");
        assert!(walk.left_out_count() > 0);
    }

    #[test]
    fn indexes_that_nest_without_end_are_read_down_to_a_depth() {
        let mut next = 0;
        let (read_count, _, walk) = walk(BOUNDS, |_| {
            next += 1;
            index(vec![child(next, true)])
        });
        assert_eq!((read_count, walk.left_out_count()), (BOUNDS.depth + 1, 1));
    }

    #[test]
    fn blobs_beyond_the_number_or_the_size_are_left_out() {
        let layers = || (1..=60).map(|n| child(n, false)).collect();
        let (_, _, many) = walk(BOUNDS, |_| image(layers()));
        assert_eq!((many.left_out_count(), many.into_blobs().count()), (10, 50));
        let (_, _, large) = walk(Bounds { bytes: 300, ..BOUNDS }, |_| image(layers()));
        assert_eq!((large.left_out_count(), large.into_blobs().count()), (40, 20));
    }

    #[test]
    fn what_an_index_lists_and_is_no_manifest_is_a_blob() {
        let (read_count, _, walk) = walk(BOUNDS, |visit| match visit.depth {
            0 => index(vec![child(1, true), child(2, false)]),
            _ => image(vec![child(3, false)]),
        });
        let blobs: HashSet<Digest> = walk.into_blobs().collect();
        assert_eq!((read_count, blobs), (2, HashSet::from([digest(2), digest(3)])));
    }
}
