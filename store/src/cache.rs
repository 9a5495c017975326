//! What a node keeps at hand of the store: blobs on its disk, and the last it has heard of each record.
//!
//! **Blobs** are objects of which a reader says what they hash to. They never change, and whether somebody may see one is decided by records.
//! So a blob that is on the disk is read from there, without asking the store. It gets there beside the first read of
//! it that is whole, or beside its upload, and only once it was verified. All of it may be lost at any time: whatever
//! goes wrong with the disk, the store is read instead.
//!
//! **Records** and the presence of objects are asked of the store each time, since others change them. Only while it is
//! away, or too slow, is what it said last believed; what it was never asked is not known then, which is an error and
//! never "there is none". Writes always need the store.

mod breaker;
mod disk;
mod index;
mod landing;
mod read;
mod records;

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
use tokio::time::timeout;
use tracing::warn;

use crate::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, GET_LIMIT_BYTES, Key, Object, Prefix, Store, Upload,
    Version,
};
pub use breaker::{Breaker, SLOW};
use disk::{Counts, Disk};
use landing::Tee;
use read::Reading;
use records::Records;

/// Of how many blobs the size is remembered, so that it is known which reads are whole.
const SIZES: u64 = 10_000;

/// What a node may keep.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The folder for blobs. It belongs to one process.
    pub dir: PathBuf,
    /// What blobs may take there, in bytes; 0 keeps none. One blob may take half of it.
    pub size_bytes: u64,
    /// What records may take in memory, in bytes.
    pub memory_bytes: u64,
    /// Below which folders the records are that are remembered.
    pub records: Vec<Prefix>,
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
    /// Records in memory.
    pub records: u64,
    /// What they take there.
    pub record_bytes: u64,
    /// Questions that were answered with what the store had said before, since it was away.
    pub answers_while_away: u64,
}

/// A store with a node's cache in front of it.
pub struct NodeCache {
    inner: Store,
    disk: Option<Arc<Disk>>,
    records: Records,
    record_folders: Vec<Prefix>,
    breaker: Breaker,
    sizes: moka::future::Cache<Key, u64>,
    answers_while_away: AtomicU64,
}

/// What came of a question for which there is another answer at hand.
enum Asked<T> {
    Answered(Result<T, Error>),
    Away(Error),
}

/// Why the store was not heard.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("it did not answer within {SLOW:?}")]
    Slow,
    #[error("it did not answer a moment ago")]
    LeftAlone,
}

impl NodeCache {
    /// Puts a cache in front of `inner`. What an earlier process has cached in the folder is used.
    ///
    /// # Errors
    /// If the folder cannot be used, unless it is not to be.
    pub async fn open(inner: Store, config: CacheConfig) -> Result<Self, OpenError> {
        let CacheConfig { dir, size_bytes, memory_bytes, records } = config;
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
            records: Records::new(memory_bytes),
            record_folders: records,
            breaker: Breaker::default(),
            sizes: moka::future::Cache::new(SIZES),
            answers_while_away: AtomicU64::default(),
        })
    }

    /// What it has done, and what it holds now.
    pub fn stats(&self) -> Stats {
        let (records, record_bytes) = self.records.held();
        let answers_while_away = self.answers_while_away.load(Ordering::Relaxed);
        let stats = Stats { records, record_bytes, answers_while_away, ..Stats::default() };
        let Some(disk) = &self.disk else { return stats };
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
            ..stats
        }
    }

    /// Whether this is a record that is remembered.
    fn is_record(&self, key: &Key) -> bool {
        self.record_folders.iter().any(|folder| key.as_str().starts_with(folder.as_str()))
    }

    /// Asks the store what can be answered otherwise, and does not wait for long.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Asked<T> {
        if !self.breaker.lets_ask() {
            return Asked::Away(Error::Away(Box::new(Unheard::LeftAlone)));
        }
        match timeout(SLOW, question).await {
            Ok(Err(error @ Error::Away(_))) => {
                self.breaker.trip();
                Asked::Away(error)
            }
            Ok(answer) => {
                self.breaker.reset();
                Asked::Answered(answer)
            }
            Err(_) => {
                self.breaker.trip();
                Asked::Away(Error::Away(Box::new(Unheard::Slow)))
            }
        }
    }

    /// Asks the store what it alone knows.
    async fn ask_patiently<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let answer = question.await;
        match &answer {
            Err(Error::Away(_)) => self.breaker.trip(),
            Ok(_) | Err(_) => self.breaker.reset(),
        }
        answer
    }

    async fn get_record(&self, key: &Key) -> Result<Option<Object>, Error> {
        let ticket = self.records.ticket();
        let answer = if self.records.get(key).await.is_none() {
            self.ask_patiently(self.inner.get(key)).await
        } else {
            match self.ask(self.inner.get(key)).await {
                Asked::Answered(answer) => answer,
                // It may have been forgotten while the store was asked.
                Asked::Away(error) => {
                    let known = self.records.get(key).await.ok_or(error)?;
                    self.answers_while_away.fetch_add(1, Ordering::Relaxed);
                    return Ok(Some(known));
                }
            }
        };
        match &answer {
            Ok(Some(object)) => self.records.remember(key, ticket, &object.bytes, &object.version).await,
            Ok(None) => self.records.forget_if_known(key, ticket).await,
            Err(_) => {}
        }
        answer
    }

    async fn get_blob(&self, disk: &Arc<Disk>, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let size_bytes = disk.index().size_bytes(key);
        if let Some(size_bytes) = size_bytes.filter(|size_bytes| *size_bytes > GET_LIMIT_BYTES) {
            return Err(Error::TooLarge { key: key.clone(), size_bytes });
        }
        if let Some(bytes) = disk.get(key, digest).await {
            Counts::add(&disk.counts.hits, 1);
            return Ok(Some(bytes));
        }
        Counts::add(&disk.counts.misses, 1);
        let answer = self.ask_patiently(self.inner.get_content(key, digest)).await;
        if let Ok(Some(bytes)) = &answer {
            disk.offer(key, digest, bytes);
        }
        answer
    }

    /// What is held of an object does not count any more, whatever comes of its change.
    async fn before_change(&self, key: &Key) {
        if let Some(disk) = &self.disk {
            disk.forget(key).await;
            self.sizes.invalidate(key).await;
        }
    }

    /// Takes note of what this node has written.
    async fn after_write(&self, key: &Key, bytes: &Bytes, written: &Result<Version, Error>) {
        // A read that began before it may have brought the old ones here.
        self.before_change(key).await;
        if self.is_record(key) {
            let ticket = self.records.ticket();
            match written {
                Ok(version) => self.records.remember(key, ticket, bytes, version).await,
                Err(error) if error.is_conflict() => self.records.forget(key, ticket).await,
                // It is as it was, or it is not; until the store says so, the last that it said is what is known.
                Err(_) => {}
            }
        }
    }
}

#[async_trait]
impl BlobStore for NodeCache {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        let written = self.inner.put_once(key, bytes.clone()).await;
        self.after_write(key, &bytes, &written).await;
        written
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.inner.put_content(key, digest, bytes.clone()).await?;
        if let Some(disk) = &self.disk {
            disk.offer(key, digest, &bytes);
        }
        Ok(())
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.before_change(key).await;
        let written = self.inner.put(key, bytes.clone()).await;
        self.after_write(key, &bytes, &written).await;
        written
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.before_change(key).await;
        let written = self.inner.replace_if(key, expected, bytes.clone()).await;
        self.after_write(key, &bytes, &written).await;
        written
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        if self.is_record(key) { self.get_record(key).await } else { self.inner.get(key).await }
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        match &self.disk {
            Some(disk) => self.get_blob(disk, key, digest).await,
            None => self.inner.get_content(key, digest).await,
        }
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        let Some(disk) = &self.disk else { return self.inner.head(key).await };
        let held = |disk: &Disk| disk.index().size_bytes(key);
        let answer = if held(disk).is_none() {
            self.ask_patiently(self.inner.head(key)).await
        } else {
            match self.ask(self.inner.head(key)).await {
                Asked::Answered(answer) => answer,
                Asked::Away(error) => {
                    let size_bytes = held(disk).ok_or(error)?;
                    self.answers_while_away.fetch_add(1, Ordering::Relaxed);
                    return Ok(Some(size_bytes));
                }
            }
        };
        match &answer {
            Ok(Some(size_bytes)) => self.sizes.insert(key.clone(), *size_bytes).await,
            // It was deleted elsewhere.
            Ok(None) => self.before_change(key).await,
            Err(_) => {}
        }
        answer
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        let (Some(disk), Some(digest)) = (&self.disk, digest) else { return self.inner.read(key, range, digest).await };
        if let Some(opened) = disk.find(key).await {
            Counts::add(&disk.counts.hits, 1);
            return Ok(Some(Reading::new(disk, &self.inner, key, digest, opened, range).stream()));
        }
        Counts::add(&disk.counts.misses, 1);
        let size_bytes = self.sizes.get(key).await;
        let end = size_bytes.map_or(range.end, |size_bytes| range.end.min(size_bytes));
        // Without a known size, the hash says in the end whether it was all.
        let is_whole = range.start == 0 && size_bytes.is_none_or(|size_bytes| size_bytes == end);
        let Some(stream) = self.ask_patiently(self.inner.read(key, range, Some(digest))).await? else {
            return Ok(None);
        };
        let tee = if is_whole { disk.tee(key, digest.algorithm(), size_bytes) } else { None };
        Ok(Some(match tee {
            Some(tee) => read::teed(stream, tee, digest.clone(), end),
            None => stream,
        }))
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.inner.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.before_change(key).await;
        self.inner.delete(key).await?;
        // A read that began before it may have brought it here.
        self.before_change(key).await;
        if self.is_record(key) {
            self.records.forget(key, self.records.ticket()).await;
        }
        Ok(())
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.before_change(key).await;
        let deleted = self.inner.delete_if(key, version).await?;
        self.before_change(key).await;
        // Where it was not deleted, it is at another version than the one that may be remembered.
        if self.is_record(key) && deleted != Deleted::Unsupported {
            self.records.forget(key, self.records.ticket()).await;
        }
        Ok(deleted)
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        let inner = self.inner.begin_upload(key).await?;
        // What the bytes hash to is said in the end, and nearly everything is named by this.
        let tee = self.disk.as_ref().and_then(|disk| disk.tee(key, Algorithm::Sha256, None));
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
