//! The sizes of blobs according to manifests. If an upstream does not tell a blob's size, this size is promised to
//! clients, and no more than this is accepted. A node knows the manifests that it has served; of the others it asks the
//! other nodes.

use std::sync::Arc;

use entrepot_domain::{Digest, RepositoryName};
use moka::sync::Cache;
use uuid::Uuid;

use crate::control::FillFrom;

/// How many blobs are remembered.
const BLOBS: u64 = 50_000;

/// The blob sizes in manifests that this node has served recently, per repository. Clones share them.
#[derive(Clone)]
pub(crate) struct Promises(Cache<(Uuid, Arc<RepositoryName>, Digest), u64>);

impl Promises {
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(BLOBS).build())
    }

    /// Notes that a manifest of the repository that `fill` fills names these blobs.
    pub(crate) fn note<'n>(&self, fill: &FillFrom, named: impl DoubleEndedIterator<Item = (&'n Digest, u64)>) {
        let name = Arc::new(fill.name.clone());
        // The last blob is noted first: a manifest that is served again is recognised by it.
        for (digest, size_bytes) in named.rev() {
            let key = (fill.origin, Arc::clone(&name), digest.clone());
            if self.0.get(&key) == Some(size_bytes) {
                break;
            }
            self.0.insert(key, size_bytes);
        }
    }

    /// The size of the blob, according to a manifest of the repository that this node has served.
    pub(crate) fn of(&self, origin: Uuid, repository: &RepositoryName, digest: &Digest) -> Option<u64> {
        self.0.get(&(origin, Arc::new(repository.clone()), digest.clone()))
    }
}
