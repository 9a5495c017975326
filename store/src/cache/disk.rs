//! The folder with cached blobs, each in a file that is named by its object: its key with `,` for `/`, then `.cached`, and
//! `.tmp` behind that while it is written.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use entrepot_domain::Digest;
use entrepot_domain::digest::Algorithm;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::OpenError;
use super::index::Index;
use super::landing::{Landing, Tee};
use crate::Key;
use crate::verify::{Stamp, Verifications};

/// How long the disk may take for one thing, when the store could do it instead.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// How long a disk that failed is left alone.
const REST: Duration = Duration::from_secs(10);
/// How many blobs are brought here at once. Those beyond are just served.
const LANDINGS: usize = 64;
/// How long a use that was noted in a file's own times is recent enough.
const NOTED_USE: Duration = Duration::from_secs(60);
/// How often, and how long apart, a folder is tried that a process has which may be about to end.
const LOCK_TRIES: (u32, Duration) = (20, Duration::from_millis(100));

const LOCK: &str = ".lock";
/// Ends the name of a file that is whole.
const WHOLE: &str = ".cached";
/// Comes behind that while it is not.
const TEMPORARY: &str = ".tmp";
/// Stands for the `/` of keys, which have none of their own.
const SLASH: &str = ",";
/// The longest key that still makes a file's name.
const LONGEST_KEY_BYTES: usize = 255 - WHOLE.len() - TEMPORARY.len();

/// Blobs in a folder that belongs to this process.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    index: Mutex<Index>,
    pub(super) landings: Arc<Semaphore>,
    pub(super) counts: Counts,
    pub(super) verifications: Verifications,
    reading: Pause,
    writing: Pause,
    /// Locked until the last user of the folder is gone.
    _lock: File,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) rejected: AtomicU64,
}

/// A cached blob, open. It outlives its name.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size_bytes: u64,
}

impl Disk {
    /// Takes a folder, which is made if it is not there. Blocks.
    pub(super) fn open(root: &Path, limit_bytes: u64) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: root.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        // Relative paths must not follow a change of the working folder.
        let root = root.canonicalize().map_err(failed)?;
        let lock = lock(&root)?;
        let mut index = Index::new(limit_bytes);
        let mut found = scan(&root).map_err(failed)?;
        found.sort_by_key(|found| found.used);
        for Found { key, size_bytes, .. } in found {
            index.add(key, size_bytes);
        }
        let surplus = index.evict();
        let disk = Self {
            root,
            index: Mutex::new(index),
            landings: Arc::new(Semaphore::new(LANDINGS)),
            counts: Counts::default(),
            verifications: Verifications::default(),
            reading: Pause::default(),
            writing: Pause::default(),
            _lock: lock,
        };
        disk.remove_files(&surplus);
        Ok(disk)
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str().replace('/', SLASH) + WHOLE)
    }

    pub(super) fn temporary_path(&self, key: &Key) -> PathBuf {
        let mut path = self.path(key).into_os_string();
        path.push(TEMPORARY);
        path.into()
    }

    /// Opens a cached blob; `None` means that the store must be asked.
    pub(super) async fn find(self: &Arc<Self>, key: &Key) -> Option<Opened> {
        if self.index().size_bytes(key).is_none() || self.reading.is_on() {
            return None;
        }
        let (disk, key) = (Arc::clone(self), key.clone());
        self.within_limit(move || disk.open_file(&key)).await.flatten()
    }

    /// Reads a cached blob that is known to be small, and verifies it.
    pub(super) async fn get(self: &Arc<Self>, key: &Key, digest: &Digest) -> Option<Bytes> {
        let Opened { mut file, size_bytes } = self.find(key).await?;
        let (disk, key, digest) = (Arc::clone(self), key.clone(), digest.clone());
        let read = move || {
            let mut bytes = Vec::with_capacity(size_bytes as usize);
            let read = io::Read::read_to_end(&mut file, &mut bytes);
            let is_known = || disk.verifications.knows(&key, &digest, &file);
            if read.is_err() || !is_known() && Digest::of(digest.algorithm(), &bytes) != digest {
                disk.discard(&key, "it cannot be read as what it should be");
                return None;
            }
            if let Ok(stamp) = Stamp::of(&file) {
                disk.verifications.wrote(&key, &digest, stamp);
            }
            Some(Bytes::from(bytes))
        };
        self.within_limit(read).await.flatten()
    }

    /// Begins to bring a blob here, unless it is here, on its way, or there is no way now. Without an algorithm its bytes
    /// are those that they should be if they come to their end.
    pub(super) fn tee(
        self: &Arc<Self>,
        key: &Key,
        hashed_as: Option<Algorithm>,
        size_bytes: Option<u64>,
    ) -> Option<Tee> {
        let is_nameless = key.as_str().len() > LONGEST_KEY_BYTES;
        if is_nameless
            || self.writing.is_on()
            || size_bytes.is_some_and(|size| size > self.index().largest_blob_bytes())
        {
            return None;
        }
        Landing::begin(self, key, hashed_as).map(Tee::new)
    }

    /// Brings a blob here that is in hand, in the background. For the algorithm see [`Self::tee`].
    pub(super) fn offer(self: &Arc<Self>, key: &Key, digest: &Digest, bytes: &Bytes, hashed_as: Option<Algorithm>) {
        if let Some(tee) = self.tee(key, hashed_as, Some(bytes.len() as u64)) {
            tee.whole(bytes.clone(), digest.clone());
        }
    }

    /// Removes a blob whose object is gone.
    pub(super) async fn forget(self: &Arc<Self>, key: &Key) {
        if self.index().forget(key) {
            let (disk, keys) = (Arc::clone(self), [key.clone()]);
            self.within_limit(move || disk.remove_files(&keys)).await;
        }
    }

    /// Removes a blob whose file is not what it should be. Blocks.
    pub(super) fn discard(&self, key: &Key, why: &str) {
        warn!("a cached file is dropped, {why}: {}", self.path(key).display());
        if self.index().forget(key) {
            self.remove_files(std::slice::from_ref(key));
        }
    }

    /// Removes files that the index does not know any more. Blocks.
    pub(super) fn remove_files(&self, keys: &[Key]) {
        for path in keys.iter().map(|key| self.path(key)) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!("a file of the cache stays until the next start: {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }

    /// A write has failed: the disk may be full.
    pub(super) fn rest_from_writing(&self, error: &dyn std::fmt::Display) {
        if self.writing.begin() {
            warn!("nothing is cached for {REST:?}, since {} cannot be written: {error}", self.root.display());
        }
    }

    /// Runs what blocks, and does not wait for a disk that hangs; what was begun runs on.
    pub(super) async fn within_limit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        match timeout(LIMIT, tokio::task::spawn_blocking(work)).await {
            Ok(done) => done.ok(),
            Err(_) => {
                self.hangs();
                None
            }
        }
    }

    /// The disk did not do in time what it was asked to.
    pub(super) fn hangs(&self) {
        self.writing.begin();
        if self.reading.begin() {
            warn!("nothing is cached or read for {REST:?}, since {} does not answer", self.root.display());
        }
    }

    fn open_file(&self, key: &Key) -> Option<Opened> {
        let size_bytes = self.index().touch(key)?;
        let opened = File::open(self.path(key)).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) if metadata.is_file() && metadata.len() == size_bytes => {
                self.note_use(key, &file, &metadata);
                Some(Opened { file, size_bytes })
            }
            Ok(_) => {
                self.discard(key, "it has another size");
                None
            }
            Err(error) => {
                self.discard(key, &error.to_string());
                None
            }
        }
    }
}

impl Disk {
    /// Says in the file's own times that it is used, so that the next process knows what was used last. It is no harm if
    /// it does not. What is known of the file stays known.
    fn note_use(&self, key: &Key, file: &File, metadata: &Metadata) {
        let was_noted = |time: SystemTime| time.elapsed().is_ok_and(|ago| ago < NOTED_USE);
        if metadata.modified().is_ok_and(was_noted) {
            return;
        }
        let Ok(before) = Stamp::of(file) else { return };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let _ = rustix::fs::futimens(file, &Timestamps { last_access: omit, last_modification: now });
        if let Ok(after) = Stamp::of(file) {
            self.verifications.moved(key, before, after);
        }
    }
}

/// A time in which something is not tried.
#[derive(Debug, Default)]
struct Pause(Mutex<Option<Instant>>);

impl Pause {
    /// Returns whether it was not on already.
    fn begin(&self) -> bool {
        let now = Instant::now();
        let mut until = self.0.lock();
        until.replace(now + REST).is_none_or(|until| until <= now)
    }

    fn is_on(&self) -> bool {
        self.0.lock().is_some_and(|until| Instant::now() < until)
    }
}

/// Removes what an earlier process has cached in a folder that caches nothing now.
pub(super) fn clear(root: &Path) -> io::Result<()> {
    for found in scan(root)? {
        fs::remove_file(root.join(found.name))?;
    }
    Ok(())
}

struct Found {
    name: String,
    key: Key,
    size_bytes: u64,
    used: SystemTime,
}

/// The cached blobs that are there. What was left half written is removed, what is not ours is left alone.
fn scan(root: &Path) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let metadata = match entry.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            _ => continue,
        };
        if let Some(key) = name.strip_suffix(TEMPORARY).and_then(key_of) {
            debug!("removes what was cached by half of `{key}`");
            fs::remove_file(entry.path())?;
        } else if let Some(key) = key_of(&name) {
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            all.push(Found { name, key, size_bytes: metadata.len(), used });
        }
    }
    Ok(all)
}

/// The object whose bytes a file of this name holds.
fn key_of(name: &str) -> Option<Key> {
    Key::parse(&name.strip_suffix(WHOLE)?.replace(SLASH, "/")).ok()
}

/// Takes the folder for this process.
fn lock(root: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Io { path: root.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(root.join(LOCK)).map_err(failed)?;
    for _ in 0..LOCK_TRIES.0 {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOCK_TRIES.1),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(OpenError::Taken { path: root.to_owned() })
}

impl Counts {
    pub(super) fn add(count: &AtomicU64, more: usize) {
        count.fetch_add(more as u64, Ordering::Relaxed);
    }
}
