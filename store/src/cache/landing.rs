//! How a blob gets onto the disk: beside whoever reads or writes it, never in their way.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::mem;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::digest::{Algorithm, Digest, Digester};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::warn;

use super::disk::{Counts, Disk, LIMIT};
use crate::Key;
use crate::verify::Stamp;

/// How much is written at once, since bytes may come in very small pieces.
const BATCH_BYTES: usize = 256 * 1024;

/// A blob of which a part is written. Dropped, it leaves nothing behind. All of it blocks.
#[derive(Debug)]
pub(super) struct Landing {
    disk: Arc<Disk>,
    key: Key,
    /// Made by the first write.
    file: Option<File>,
    /// `None` if the bytes were verified before they came here.
    digester: Option<Digester>,
    reserved_bytes: u64,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Landing {
    /// `None` if the blob is here or on its way already, or too many others are.
    pub(super) fn begin(disk: &Arc<Disk>, key: &Key, hashed_as: Option<Algorithm>) -> Option<Self> {
        let permit = Arc::clone(&disk.landings).try_acquire_owned().ok()?;
        disk.index().begin(key).then(|| Self {
            disk: Arc::clone(disk),
            key: key.clone(),
            file: None,
            digester: hashed_as.map(Digester::new),
            reserved_bytes: 0,
            ended: false,
            _permit: permit,
        })
    }

    /// Takes the next bytes; `None` if it has come to nothing.
    fn append(mut self, chunks: Vec<Bytes>) -> Option<Self> {
        for chunk in chunks {
            let grown_bytes = self.reserved_bytes + chunk.len() as u64;
            let gone = self.disk.index().grow(self.reserved_bytes, grown_bytes)?;
            self.reserved_bytes = grown_bytes;
            Counts::add(&self.disk.counts.evictions, gone.len());
            self.disk.remove_files(&gone);
            if let Err(error) = self.write(&chunk) {
                self.disk.rest_from_writing(&error);
                return None;
            }
            if let Some(digester) = &mut self.digester {
                digester.update(&chunk);
            }
        }
        Some(self)
    }

    fn write(&mut self, chunk: &Bytes) -> io::Result<()> {
        self.open()?.write_all(chunk)
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            self.file = Some(File::create(self.disk.temporary_path(&self.key))?);
        }
        Ok(self.file.as_mut().expect("it was just made"))
    }

    /// Gives the file its name, if its bytes hash to `digest`.
    fn finish(mut self, digest: Digest) {
        match self.name(&digest) {
            Ok(true) => {}
            Ok(false) => {
                Counts::add(&self.disk.counts.rejected, 1);
                warn!("`{}` is not cached, since its bytes do not hash to `{digest}`", self.key);
                return;
            }
            Err(error) => {
                self.disk.rest_from_writing(&error);
                return;
            }
        }
        self.ended = true;
        if let Some(stamp) = self.file.as_ref().and_then(|file| Stamp::of(file).ok()) {
            self.disk.verifications.wrote(&self.key, &digest, stamp);
        }
        let kept = self.disk.index().end(&self.key, self.reserved_bytes, Some(self.reserved_bytes));
        if !kept {
            self.disk.remove_files(std::slice::from_ref(&self.key));
        }
    }

    /// Returns whether it did: not if its bytes do not hash to `digest`.
    fn name(&mut self, digest: &Digest) -> io::Result<bool> {
        let (from, to) = (self.disk.temporary_path(&self.key), self.disk.path(&self.key));
        self.open()?;
        let found = match &self.digester {
            None => None,
            Some(digester) if digester.algorithm() == digest.algorithm() => Some(digester.clone().finish()),
            Some(_) => Some(digest_of_file(&from, digest.algorithm())?),
        };
        if found.is_some_and(|found| found != *digest) {
            return Ok(false);
        }
        // Once it has its name, its bytes must be there even after a loss of power.
        self.open()?.sync_data()?;
        fs::rename(from, to)?;
        Ok(true)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.file.take().is_some()
            && let Err(error) = fs::remove_file(self.disk.temporary_path(&self.key))
        {
            warn!("left a temporary file in the cache until the next start: {error}");
        }
        self.disk.index().end(&self.key, self.reserved_bytes, None);
    }
}

fn digest_of_file(path: &Path, algorithm: Algorithm) -> io::Result<Digest> {
    let (mut file, mut digester) = (File::open(path)?, Digester::new(algorithm));
    let mut chunk = vec![0; BATCH_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(digester.finish()),
            Ok(read) => digester.update(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the bytes of a blob as they pass.
#[derive(Debug)]
pub(super) struct Tee {
    disk: Arc<Disk>,
    state: State,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
}

#[derive(Debug)]
enum State {
    Idle(Box<Landing>),
    Writing(JoinHandle<Option<Landing>>),
    /// It has come to nothing, or to its end.
    Over,
}

impl Tee {
    pub(super) fn new(landing: Landing) -> Self {
        let disk = Arc::clone(&landing.disk);
        Self { disk, state: State::Idle(Box::new(landing)), waiting: Vec::new(), waiting_bytes: 0 }
    }

    /// Takes the next bytes. Waits only for the write before.
    pub(super) async fn write(&mut self, bytes: Bytes) {
        if matches!(self.state, State::Over) {
            return;
        }
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
        if self.waiting_bytes < BATCH_BYTES {
            return;
        }
        let (landing, chunks) = (self.settle().await, self.take_waiting());
        if let Some(landing) = landing {
            self.state = State::Writing(spawn_blocking(move || landing.append(chunks)));
        }
    }

    /// Takes the next bytes, and waits until they are written, so that they take no memory any more.
    pub(super) async fn write_through(&mut self, bytes: Bytes) {
        self.write(bytes).await;
        if let Some(landing) = self.settle().await {
            self.state = State::Idle(Box::new(landing));
        }
    }

    /// There is no more, and it is cached if all of it hashes to `digest`. What is left to do is done in the background.
    pub(super) async fn finish(mut self, digest: Digest) {
        if let Some(landing) = self.settle().await {
            let chunks = self.take_waiting();
            spawn_blocking(move || landing.append(chunks).map(|landing| landing.finish(digest)));
        }
    }

    /// As [`Self::finish`], for bytes that are all there are.
    pub(super) fn whole(mut self, bytes: Bytes, digest: Digest) {
        if let State::Idle(landing) = mem::replace(&mut self.state, State::Over) {
            spawn_blocking(move || landing.append(vec![bytes]).map(|landing| landing.finish(digest)));
        }
    }

    /// Waits for the write that is under way, and leaves the state over.
    async fn settle(&mut self) -> Option<Landing> {
        match mem::replace(&mut self.state, State::Over) {
            State::Idle(landing) => Some(*landing),
            State::Writing(writing) => match timeout(LIMIT, writing).await {
                Ok(written) => written.ok().flatten(),
                Err(_) => {
                    self.disk.hangs();
                    None
                }
            },
            State::Over => None,
        }
    }

    fn take_waiting(&mut self) -> Vec<Bytes> {
        self.waiting_bytes = 0;
        mem::take(&mut self.waiting)
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        // A write that is under way tidies up when it has ended.
        if let State::Idle(landing) = mem::replace(&mut self.state, State::Over) {
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || drop(landing))),
                Err(_) => drop(landing),
            }
        }
    }
}
