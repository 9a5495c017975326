//! What a node keeps at hand of the store: blobs, on its disk.
//!
//! Blobs are objects of which a reader says what they hash to. They never change, and whether somebody may see one is
//! decided by records. So a blob that is on the disk is read from there, without asking the store. It gets there beside
//! the first read of it that is whole, or beside its upload, and only once it was verified. All of it may be lost at any
//! time: whatever goes wrong with the disk, the store is read instead.
//!
//! Records, and whether an object is there, are asked of the store each time, since others change them. Who may go by
//! what is at hand, since the store is away, asks for that by [`BlobStore::size_at_hand`].

mod disk;
mod index;
mod landing;
mod read;

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::digest::Algorithm;
use entrepot_domain::{Digest, ResourceId};
use futures_util::future::join;
use tracing::warn;

use crate::verify::{self, SMALL_BYTES};
use crate::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, GET_LIMIT_BYTES, Key, Object, Prefix, Store, Upload,
    Version,
};
use disk::{Counts, Disk};
use landing::Tee;
use read::Reading;

/// Of how many blobs the size is remembered, so that it is known which reads are whole.
const SIZES: u64 = 10_000;

/// What a node may keep.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The folder for blobs. It belongs to one process.
    pub dir: PathBuf,
    /// What blobs may take there, in bytes; 0 keeps none. One blob may take half of it.
    pub size_bytes: u64,
}

/// Why a folder cannot be a cache.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another process uses the cache in {}: stop it first, or give each its own folder", .path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// It cannot be made, read or written.
    #[error("the cache in {} cannot be used: give the user that runs this a folder that it may write", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a cache has done since it was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads of blobs that were answered from the disk.
    pub hits: u64,
    /// Reads of blobs for which the store was asked.
    pub misses: u64,
    /// Blobs that were removed to make room.
    pub evictions: u64,
    /// Blobs that were not kept, since their bytes were not theirs.
    pub rejected: u64,
    /// Blobs on the disk.
    pub blobs: u64,
    /// What they take there.
    pub blob_bytes: u64,
}

/// A store with a node's cache in front of it.
pub struct NodeCache {
    inner: Store,
    disk: Option<Arc<Disk>>,
    sizes: moka::future::Cache<Key, u64>,
}

impl NodeCache {
    /// Puts a cache in front of `inner`. What an earlier process has cached in the folder is used.
    ///
    /// # Errors
    /// If the folder cannot be used, unless it is not to be.
    pub async fn open(inner: Store, config: CacheConfig) -> Result<Self, OpenError> {
        let CacheConfig { dir, size_bytes } = config;
        let opening = tokio::task::spawn_blocking(move || match size_bytes {
            0 => {
                if dir.exists()
                    && let Err(error) = disk::clear(&dir)
                {
                    warn!("left what was cached in {}: {error}", dir.display());
                }
                Ok(None)
            }
            _ => Disk::open(&dir, size_bytes).map(|disk| Some(Arc::new(disk))),
        });
        Ok(Self {
            inner,
            disk: opening.await.expect("opening a folder does not panic")?,
            sizes: moka::future::Cache::new(SIZES),
        })
    }

    /// What it has done, and what it holds now.
    pub fn stats(&self) -> Stats {
        let Some(disk) = &self.disk else { return Stats::default() };
        let (blobs, blob_bytes) = {
            let index = disk.index();
            (index.blobs() as u64, index.taken_bytes())
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { hits, misses, evictions, rejected } = &disk.counts;
        Stats {
            hits: count(hits),
            misses: count(misses),
            evictions: count(evictions),
            rejected: count(rejected),
            blobs,
            blob_bytes,
        }
    }

    async fn get_blob(&self, disk: &Arc<Disk>, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let size_bytes = disk.index().size_bytes(key);
        if let Some(size_bytes) = size_bytes.filter(|size_bytes| *size_bytes > GET_LIMIT_BYTES) {
            return Err(Error::TooLarge { key: key.clone(), size_bytes, version: None });
        }
        if let Some(bytes) = disk.get(key, digest).await {
            Counts::add(&disk.counts.hits, 1);
            return Ok(Some(bytes));
        }
        Counts::add(&disk.counts.misses, 1);
        let answer = self.inner.get_content(key, digest).await;
        if let Ok(Some(bytes)) = &answer {
            disk.offer(key, digest, bytes, None);
        }
        answer
    }

    /// Changes an object. Nothing is held of it from before the change, whatever comes of that, nor what a read that began
    /// before it brings here meanwhile.
    async fn change<T>(&self, key: &Key, change: impl Future<Output = T>) -> T {
        self.forget(key).await;
        let done = change.await;
        self.forget(key).await;
        done
    }

    async fn forget(&self, key: &Key) {
        if let Some(disk) = &self.disk {
            disk.forget(key).await;
            self.sizes.invalidate(key).await;
        }
    }
}

#[async_trait]
impl BlobStore for NodeCache {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.change(key, self.inner.put_once(key, bytes)).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.inner.put_content(key, digest, bytes.clone()).await?;
        if let Some(disk) = &self.disk {
            disk.offer(key, digest, &bytes, Some(digest.algorithm()));
        }
        Ok(())
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.change(key, self.inner.put(key, bytes)).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.change(key, self.inner.replace_if(key, expected, bytes)).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.inner.get(key).await
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        match &self.disk {
            Some(disk) => self.get_blob(disk, key, digest).await,
            None => self.inner.get_content(key, digest).await,
        }
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        let answer = self.inner.head(key).await;
        match &answer {
            Ok(Some(size_bytes)) => self.sizes.insert(key.clone(), *size_bytes).await,
            // It was deleted elsewhere.
            Ok(None) => self.forget(key).await,
            Err(_) => {}
        }
        answer
    }

    fn size_at_hand(&self, key: &Key) -> Option<u64> {
        self.disk.as_ref()?.index().size_bytes(key)
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        let (Some(disk), Some(digest)) = (&self.disk, digest) else { return self.inner.read(key, range, digest).await };
        if let Some(opened) = disk.find(key).await {
            Counts::add(&disk.counts.hits, 1);
            if opened.size_bytes > SMALL_BYTES {
                if let Ok(reading) = Reading::new(disk, &self.inner, key, digest, opened, range.clone()) {
                    return Ok(Some(reading.stream()));
                }
            } else if let Some(bytes) = disk.get(key, digest).await {
                return Ok(Some(verify::part(bytes, range)));
            }
        }
        Counts::add(&disk.counts.misses, 1);
        let size_bytes = self.sizes.get(key).await;
        let end = size_bytes.map_or(range.end, |size_bytes| range.end.min(size_bytes));
        // Without a known size, the hash says in the end whether it was all.
        let is_whole = range.start == 0 && size_bytes.is_none_or(|size_bytes| size_bytes == end);
        let Some(stream) = self.inner.read(key, range, Some(digest)).await? else {
            return Ok(None);
        };
        // What is known to be whole comes verified.
        let hashed_as = size_bytes.is_none().then(|| digest.algorithm());
        let tee = if is_whole { disk.tee(key, hashed_as, size_bytes) } else { None };
        Ok(Some(match tee {
            Some(tee) => read::tee_stream(stream, tee, digest.clone(), end),
            None => stream,
        }))
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.inner.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.change(key, self.inner.delete(key)).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.change(key, self.inner.delete_if(key, version)).await
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        let inner = self.inner.begin_upload(key).await?;
        // What the bytes hash to is said in the end, and nearly everything is named by this.
        let tee = self.disk.as_ref().and_then(|disk| disk.tee(key, Some(Algorithm::Sha256), None));
        Ok(match tee {
            Some(tee) => Box::new(CachedUpload { inner, tee }),
            None => inner,
        })
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.inner.abort_uploads(owner).await
    }
}

/// An upload whose bytes are cached as they pass.
struct CachedUpload {
    inner: Box<dyn Upload>,
    tee: Tee,
}

#[async_trait]
impl Upload for CachedUpload {
    async fn part(&mut self, bytes: Bytes) -> Result<(), Error> {
        join(self.inner.part(bytes.clone()), self.tee.write_through(bytes)).await.0
    }

    async fn complete(self: Box<Self>, digest: Option<&Digest>) -> Result<(), Error> {
        self.inner.complete(digest).await?;
        if let Some(digest) = digest {
            self.tee.finish(digest.clone()).await;
        }
        Ok(())
    }

    async fn abort(self: Box<Self>) -> Result<(), Error> {
        self.inner.abort().await
    }
}
