//! The version of the layout, which every program looks at before it touches a store.
//!
//! A release that does not know how a store is laid out would take what it does not understand for absent. So the version
//! is put once into an empty store, and a store with another one, or with keys and none, is refused.

use entrepot_store::{BlobStore, Error, Key, Object, Prefix};
use serde::{Deserialize, Serialize};

use crate::{encode, layout};

/// The layout that this release reads and writes.
const VERSION: u64 = 1;
/// How many keys are listed at once.
const PAGE: usize = 100;

/// What stands at [`layout::version`].
#[derive(Debug, Serialize, Deserialize)]
struct LayoutRecord {
    version: u64,
}

/// Why a store is not used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Another release has laid it out.
    #[error(
        "the store has {found}, and this release knows layout version {VERSION} alone: run the release that wrote it, or choose an empty bucket, prefix or folder"
    )]
    Unknown {
        /// What its `layout` says.
        found: String,
    },
    /// Somebody else's things are there, or the version was deleted.
    #[error(
        "the store holds `{key}` and no `layout`, so it is not this registry's, or it was restored by halves: choose an empty bucket, prefix or folder, or restore all of it"
    )]
    Missing {
        /// A key that is there.
        key: Key,
    },
    /// The store did not say.
    #[error("the store's layout version could not be looked at")]
    Store(#[from] Error),
}

impl LayoutError {
    /// Whether the same look may succeed later.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::Missing { .. } => false,
            Self::Store(error) => error.retry(),
        }
    }
}

/// Checks that a store is laid out as this release knows it, and notes that in an empty one. What whoever opens a bucket
/// tries out in it does not count.
///
/// # Errors
/// If it is not, or the store cannot be looked at.
pub async fn check_layout(store: &dyn BlobStore) -> Result<(), LayoutError> {
    if let Some(object) = store.get(&layout::version()).await? {
        return known(&object);
    }
    if let Some(key) = first_key(store).await? {
        // Another program may have noted it since, and begun to write.
        return match store.get(&layout::version()).await? {
            Some(object) => known(&object),
            None => Err(LayoutError::Missing { key }),
        };
    }
    match store.put_once(&layout::version(), encode(&LayoutRecord { version: VERSION })).await {
        Ok(_) => Ok(()),
        // Whoever was faster may be of another release.
        Err(Error::AlreadyExists) => match store.get(&layout::version()).await? {
            Some(object) => known(&object),
            None => Err(LayoutError::Missing { key: layout::version() }),
        },
        Err(error) => Err(error.into()),
    }
}

fn known(object: &Object) -> Result<(), LayoutError> {
    match serde_json::from_slice::<LayoutRecord>(&object.bytes) {
        Ok(LayoutRecord { version: VERSION }) => Ok(()),
        Ok(LayoutRecord { version }) => Err(LayoutError::Unknown { found: format!("layout version {version}") }),
        Err(_) => Err(LayoutError::Unknown { found: "a `layout` that cannot be read".to_owned() }),
    }
}

/// A key that is not a probe's.
async fn first_key(store: &dyn BlobStore) -> Result<Option<Key>, Error> {
    let mut after = None;
    loop {
        let entries = store.list(&Prefix::all(), after.as_ref(), PAGE).await?;
        let is_last = entries.len() < PAGE;
        after = entries.last().map(|entry| entry.key.clone());
        let found = entries.into_iter().find(|entry| !entry.key.as_str().starts_with(layout::probes_prefix().as_str()));
        if found.is_some() || is_last {
            return Ok(found.map(|entry| entry.key));
        }
    }
}
