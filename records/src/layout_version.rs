//! The version of the layout, which every program checks before it uses a store.
//!
//! A release that does not know the layout of a store would believe that things are missing. So the version is written
//! once into an empty store. A store with another version, or with keys but without a version, is refused.

use entrepot_store::{BlobStore, Error, Key, Object, Prefix};
use serde::{Deserialize, Serialize};

use crate::{encode, layout};

/// The layout version of this release.
const VERSION: u64 = 1;
/// How many keys are listed at a time.
const PAGE: usize = 100;

/// The record at [`layout::version`].
#[derive(Debug, Serialize, Deserialize)]
struct LayoutRecord {
    version: u64,
}

/// Why a store is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It has the layout of another release.
    #[error(
        "the store has {found}, but this release knows only layout version {VERSION}: run the release that wrote it, or choose an empty bucket, prefix or folder"
    )]
    Unknown {
        /// What its `layout` record says.
        found: String,
    },
    /// It holds something else, or the version was deleted.
    #[error(
        "the store holds `{key}` and no `layout`, so it is not this registry's, or it was only partly restored: choose an empty bucket, prefix or folder, or restore all of it"
    )]
    Missing { key: Key },
    /// The store did not answer.
    #[error("the store's layout version could not be read")]
    Store(#[from] Error),
}

impl LayoutError {
    /// Whether trying again later may succeed.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::Missing { .. } => false,
            Self::Store(error) => error.retry(),
        }
    }
}

/// Checks that a store has the layout that this release knows, and writes the version into an empty store. Probes of
/// programs that open the bucket do not count.
///
/// # Errors
/// If the layout is another one, or the store cannot be read.
pub async fn check_layout(store: &dyn BlobStore) -> Result<(), LayoutError> {
    if let Some(object) = store.get(&layout::version()).await? {
        return known(&object);
    }
    if let Some(key) = first_key(store).await? {
        // Another program may have written the version meanwhile, and begun to use the store.
        return match store.get(&layout::version()).await? {
            Some(object) => known(&object),
            None => Err(LayoutError::Missing { key }),
        };
    }
    match store.put_once(&layout::version(), encode(&LayoutRecord { version: VERSION })).await {
        Ok(_) => Ok(()),
        // The faster program may be of another release.
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

/// The first key that does not belong to a probe.
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
