//! What is published, according to `snapshot/head`, or as far as it can be known without it.

use bytes::Bytes;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, SnapshotHead};
use entrepot_runtime::chain;
use entrepot_store::{BlobStore, Error, Key};
use tracing::error;

use crate::version::Version;

/// How many keys are listed at a time.
const PAGE: usize = 1000;

/// What was read at `snapshot/head`.
pub(crate) enum Head {
    Absent,
    /// A head with its bytes, and the version that a conditional write expects.
    Readable(SnapshotHead, Bytes, entrepot_store::Version),
    /// Something else, which the next published head replaces. Without a version, it is too large to be read.
    Unreadable(Option<entrepot_store::Version>),
}

impl Head {
    /// Reads the head. If it cannot be read, this is logged at ERROR.
    pub(crate) async fn read(store: &dyn BlobStore) -> Result<Self, Error> {
        let key = layout::snapshot_head();
        let object = match store.get(&key).await {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(Self::Absent),
            Err(error @ Error::TooLarge { .. }) => return Ok(Self::unreadable(&error, None)),
            Err(error) => return Err(error),
        };
        Ok(match records::decode(&key, &object.bytes) {
            Ok(head) => Self::Readable(head, object.bytes, object.version),
            Err(error) => Self::unreadable(&error, Some(object.version)),
        })
    }

    fn unreadable(error: &Error, version: Option<entrepot_store::Version>) -> Self {
        error!("{}; it is published anew unless this database is behind it", chain(error));
        Self::Unreadable(version)
    }

    /// The published version. If the head cannot be read, it is the newest snapshot in the store: that one may have
    /// been published, and nothing newer was.
    pub(crate) async fn version(&self, store: &dyn BlobStore) -> Result<Option<Version>, Error> {
        Ok(self.published(store).await?.map(|(version, _)| version))
    }

    /// The same, with the key of the snapshot.
    pub(crate) async fn published(&self, store: &dyn BlobStore) -> Result<Option<(Version, Key)>, Error> {
        match self {
            Self::Absent => Ok(None),
            Self::Readable(head, ..) => Ok(Some((version(head), head.key.clone()))),
            Self::Unreadable(_) => newest(store).await,
        }
    }
}

/// The version that a head names.
pub(super) fn version(head: &SnapshotHead) -> Version {
    Version { epoch: head.epoch, revision: head.revision }
}

async fn newest(store: &dyn BlobStore) -> Result<Option<(Version, Key)>, Error> {
    let (mut newest, mut after) = (None, None);
    loop {
        let entries = store.list(&layout::snapshots_prefix(), after.as_ref(), PAGE).await?;
        let is_last = entries.len() < PAGE;
        for entry in entries {
            if let Some(Parsed::Snapshot { epoch, revision, .. }) = layout::parse(&entry.key) {
                newest = newest.max(Some((Version { epoch, revision }, entry.key.clone())));
            }
            after = Some(entry.key);
        }
        if is_last {
            return Ok(newest);
        }
    }
}
