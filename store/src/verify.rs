//! Content that is verified before its reader has the last of it.
//!
//! Content of up to [`SMALL_BYTES`] is read whole and hashed before a byte of it is given out. A reader of all of a larger
//! object gets its last [`HELD_BACK_BYTES`] only when the whole is known to hash to its digest; a reader of a part
//! never waits. Files are hashed once for all readers, behind their backs, and are known from then on by their inode,
//! size and change time.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::{Digest, Verifier};
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, once, try_unfold};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::local::read::{self as file, CHUNK_BYTES, Room, read_chunk};
use crate::{ByteStream, Error, Key};

/// Content up to this size is verified before its first byte is given out.
pub const SMALL_BYTES: u64 = 1024 * 1024;
/// How much of larger content its reader gets only when the whole is verified.
pub(crate) const HELD_BACK_BYTES: u64 = 64 * 1024;
/// How many files are hashed at once.
const AT_ONCE: usize = 16;
/// Of how many files it is remembered what they hash to.
const REMEMBERED: u64 = 100_000;
/// Above this, bytes are hashed where that keeps nobody else waiting.
const HASHED_AT_ONCE: usize = 64 * 1024;

/// What a file looks like from outside. Whatever is done to its bytes changes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    change_time: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            change_time: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// What came of hashing a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has the content.
    Right,
    /// It has something else.
    Wrong,
    /// It could not be read.
    Unreadable,
}

/// What this process knows of the files that it reads content from.
#[derive(Debug)]
pub(crate) struct Verifications {
    known: moka::sync::Cache<(Key, Stamp), Verification>,
    turns: Arc<Semaphore>,
}

/// A verification that is under way, or over.
#[derive(Clone, Debug)]
pub(crate) struct Verification {
    key: Key,
    digest: Digest,
    verdict: watch::Receiver<Option<Verdict>>,
}

impl Default for Verifications {
    fn default() -> Self {
        Self { known: moka::sync::Cache::new(REMEMBERED), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Verifications {
    /// Takes note that a file was written with this content.
    pub(crate) fn wrote(&self, key: &Key, digest: &Digest, stamp: Stamp) {
        let (_, verdict) = watch::channel(Some(Verdict::Right));
        self.known.insert((key.clone(), stamp), Verification { key: key.clone(), digest: digest.clone(), verdict });
    }

    /// Whether a file is known to have this content.
    pub(crate) fn knows(&self, key: &Key, digest: &Digest, file: &File) -> bool {
        let known = Stamp::of(file).ok().and_then(|stamp| self.known.get(&(key.clone(), stamp)));
        known.is_some_and(|known| known.digest == *digest && known.verdict() == Some(Verdict::Right))
    }

    /// Takes note that only the times of a file were changed.
    pub(crate) fn moved(&self, key: &Key, before: Stamp, after: Stamp) {
        if let Some(known) = self.known.get(&(key.clone(), before)) {
            self.known.insert((key.clone(), after), known);
        }
    }

    /// The verification of a file that is to be read, which begins now if the file is not known as it is. Where the
    /// reader does not wait for it, it is left until there is less to do.
    pub(crate) fn of_read(
        &self,
        key: &Key,
        digest: &Digest,
        file: &File,
        waits: bool,
    ) -> io::Result<Option<Verification>> {
        let name = (key.clone(), Stamp::of(file)?);
        let counts = |known: &Verification| known.digest == *digest && known.verdict() != Some(Verdict::Unreadable);
        if !waits && self.turns.available_permits() == 0 {
            return Ok(self.known.get(&name).filter(counts));
        }
        let (copy, size_bytes) = (file.try_clone()?, name.1.size_bytes);
        let begin = || self.begin(key.clone(), copy, digest.clone(), size_bytes);
        Ok(Some(self.known.entry(name).or_insert_with_if(begin, |known| !counts(known)).into_value()))
    }

    #[expect(clippy::disallowed_methods, reason = "it ends with the file, and may be dropped")]
    fn begin(&self, key: Key, file: File, digest: Digest, size_bytes: u64) -> Verification {
        let (sender, verdict) = watch::channel(None);
        let verification = Verification { key, digest: digest.clone(), verdict };
        // What is small does not wait for what is large.
        let turns = (size_bytes > SMALL_BYTES).then(|| Arc::clone(&self.turns));
        tokio::spawn(async move {
            let _turn = match turns {
                Some(turns) => turns.acquire_owned().await.ok(),
                None => None,
            };
            let hashing = spawn_blocking(move || verdict_of(&file, &digest, size_bytes));
            sender.send_replace(Some(hashing.await.unwrap_or(Verdict::Unreadable)));
        });
        verification
    }

    /// The bytes of `range` of a file that is to have the content `digest`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is known to have something else.
    pub(crate) async fn read(
        &self,
        key: &Key,
        digest: &Digest,
        file: File,
        range: Range<u64>,
    ) -> Result<ByteStream, Error> {
        let away = |error| Error::Away(Box::new(error));
        let size_bytes = file.metadata().map_err(away)?.len();
        let is_whole = range == (0..size_bytes);
        let waits = is_whole || size_bytes <= SMALL_BYTES;
        let Some(verification) = self.of_read(key, digest, &file, waits).map_err(away)? else {
            return Ok(file::stream(file, range));
        };
        if verification.verdict() == Some(Verdict::Wrong) || size_bytes <= SMALL_BYTES {
            verification.clone().right().await?;
        }
        if !is_whole || verification.verdict() == Some(Verdict::Right) {
            return Ok(file::stream(file, range));
        }
        let tail = size_bytes.saturating_sub(HELD_BACK_BYTES);
        let rest = file.try_clone().map_err(away)?;
        let held_back = async move {
            verification.right().await?;
            Ok::<_, Error>(file::stream(rest, tail..size_bytes))
        };
        Ok(file::stream(file, 0..tail).chain(later(held_back)).boxed())
    }
}

impl Verification {
    /// What has come of it by now.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        *self.verdict.borrow()
    }

    /// Waits until the file is known to be right.
    async fn right(mut self) -> Result<(), Error> {
        match self.end().await {
            Verdict::Right => Ok(()),
            Verdict::Wrong => Err(Error::Damaged { key: self.key, digest: self.digest }),
            Verdict::Unreadable => Err(Error::Away(Box::new(Unreadable))),
        }
    }

    /// Waits for what comes of it.
    pub(crate) async fn end(&mut self) -> Verdict {
        match self.verdict.wait_for(Option::is_some).await {
            Ok(verdict) => verdict.unwrap_or(Verdict::Unreadable),
            Err(_) => Verdict::Unreadable,
        }
    }
}

/// A file could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("the file could not be read to be verified")]
struct Unreadable;

/// Hashes a file; one that is wrong once more, from the disk: what is in memory may be wrong, and what is there right. Blocks.
fn verdict_of(file: &File, digest: &Digest, size_bytes: u64) -> Verdict {
    for _ in 0..2 {
        match hashes_to(file, digest, size_bytes) {
            Ok(true) => return Verdict::Right,
            Ok(false) => drop(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)),
            Err(problem) => {
                warn!("a file that is to have `{digest}` cannot be verified: {problem}");
                return Verdict::Unreadable;
            }
        }
    }
    Verdict::Wrong
}

fn hashes_to(file: &File, digest: &Digest, size_bytes: u64) -> io::Result<bool> {
    let (mut verifier, mut start) = (Verifier::new(digest.clone()), 0);
    while start < size_bytes {
        let chunk = read_chunk(file, start, Room::for_bytes(CHUNK_BYTES.min(size_bytes - start)))?;
        verifier.update(&chunk);
        start += chunk.len() as u64;
    }
    Ok(verifier.finish())
}

/// Whether bytes hash to a digest. What is large is hashed where it keeps nobody else waiting.
pub(crate) async fn is_right(bytes: &Bytes, digest: &Digest) -> bool {
    if bytes.len() <= HASHED_AT_ONCE {
        return Digest::of(digest.algorithm(), bytes) == *digest;
    }
    let (bytes, digest) = (bytes.clone(), digest.clone());
    let hashing = spawn_blocking(move || Digest::of(digest.algorithm(), &bytes) == digest);
    hashing.await.unwrap_or(false)
}

/// A stream that is made when the one before it has ended.
fn later(making: impl Future<Output = Result<ByteStream, Error>> + Send + 'static) -> ByteStream {
    once(making).try_flatten().boxed()
}

/// The bytes of all of an object that is no file here, hashed as they pass. Where they are wrong, `again` reads the
/// object once more, in case that only what came here was.
pub(crate) fn hashed<F>(bytes: ByteStream, key: &Key, digest: &Digest, size_bytes: u64, again: F) -> ByteStream
where
    F: Future<Output = Result<Option<ByteStream>, Error>> + Send + 'static,
{
    let passing = Passing {
        bytes,
        key: key.clone(),
        digest: digest.clone(),
        verifier: Some(Verifier::new(digest.clone())),
        free_bytes: size_bytes.saturating_sub(HELD_BACK_BYTES),
        held_back: VecDeque::new(),
        again: Some(again.boxed()),
    };
    try_unfold(passing, async |mut passing| Ok(passing.next().await?.map(|chunk| (chunk, passing)))).boxed()
}

/// Bytes on their way to a reader.
struct Passing {
    bytes: ByteStream,
    key: Key,
    digest: Digest,
    /// Gone when all bytes were right.
    verifier: Option<Verifier>,
    /// How many bytes the reader may have before that.
    free_bytes: u64,
    held_back: VecDeque<Bytes>,
    again: Option<BoxFuture<'static, Result<Option<ByteStream>, Error>>>,
}

impl Passing {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(verifier) = self.verifier.take() {
            let Some(mut chunk) = self.bytes.next().await.transpose()? else {
                if !verifier.finish() {
                    return Err(self.wrong().await);
                }
                break;
            };
            self.verifier = Some(hash(verifier, &chunk).await?);
            let free = chunk.split_to(chunk.len().min(usize::try_from(self.free_bytes).unwrap_or(usize::MAX)));
            self.free_bytes -= free.len() as u64;
            if !chunk.is_empty() {
                self.held_back.push_back(chunk);
            }
            if !free.is_empty() {
                return Ok(Some(free));
            }
        }
        Ok(self.held_back.pop_front())
    }

    /// Why the reader gets no more: the object is damaged if it is wrong at a second read, too.
    async fn wrong(&mut self) -> Error {
        let second = match self.again.take() {
            Some(again) => again.await,
            None => Ok(None),
        };
        match second {
            Ok(Some(bytes)) => match hash_all(bytes, &self.digest).await {
                Ok(true) => Error::Away(Box::new(Altered)),
                Ok(false) => Error::Damaged { key: self.key.clone(), digest: self.digest.clone() },
                Err(error) => error,
            },
            Ok(None) => Error::Away(Box::new(Altered)),
            Err(error) => error,
        }
    }
}

/// What came from the store was altered on its way.
#[derive(Debug, thiserror::Error)]
#[error("what came was not what the store has; its last bytes were not sent")]
struct Altered;

/// Takes the next bytes, where that keeps nobody else waiting.
async fn hash(mut verifier: Verifier, bytes: &Bytes) -> Result<Verifier, Error> {
    if bytes.len() <= HASHED_AT_ONCE {
        verifier.update(bytes);
        return Ok(verifier);
    }
    let bytes = bytes.clone();
    let hashing = spawn_blocking(move || {
        verifier.update(&bytes);
        verifier
    });
    hashing.await.map_err(|stopped| Error::Away(Box::new(stopped)))
}

async fn hash_all(mut bytes: ByteStream, digest: &Digest) -> Result<bool, Error> {
    let mut verifier = Verifier::new(digest.clone());
    while let Some(chunk) = bytes.next().await.transpose()? {
        verifier = hash(verifier, &chunk).await?;
    }
    Ok(verifier.finish())
}

/// Reads small content whole, by `read`, and once more if it is wrong.
pub(crate) async fn small<F>(key: &Key, digest: &Digest, read: impl Fn() -> F) -> Result<Option<Bytes>, Error>
where
    F: Future<Output = Result<Option<Bytes>, Error>>,
{
    for _ in 0..2 {
        let Some(bytes) = read().await? else { return Ok(None) };
        if is_right(&bytes, digest).await {
            return Ok(Some(bytes));
        }
    }
    Err(Error::Damaged { key: key.clone(), digest: digest.clone() })
}

/// The bytes of `range` of content that is in hand.
pub(crate) fn part(whole: Bytes, range: Range<u64>) -> ByteStream {
    let at = |end: u64| usize::try_from(end).unwrap_or(usize::MAX).min(whole.len());
    let part = whole.slice(at(range.start)..at(range.end.max(range.start)));
    once(async { Ok(part) }).boxed()
}
