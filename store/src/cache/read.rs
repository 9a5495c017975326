//! Reading a blob from the disk, with the store behind it; and from the store, with the disk beside it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::{Digest, Verifier};
use futures_util::StreamExt as _;
use futures_util::stream::{try_unfold, unfold};

use super::disk::{Disk, Opened};
use super::index::Checked;
use super::landing::Tee;
use crate::local::read::{CHUNK_BYTES, Room, read_chunk};
use crate::{ByteStream, Error, Key, Store};

/// A blob that is read from the disk.
pub(super) struct Reading {
    disk: Arc<Disk>,
    store: Store,
    key: Key,
    digest: Digest,
    file: Option<File>,
    /// For a file that is read whole and was not seen yet to hash to the digest.
    verifier: Option<Verifier>,
    left: Range<u64>,
    begun: bool,
    /// What the store sends in place of what the disk does not.
    rest: Option<ByteStream>,
}

/// Why a reader of a cached blob gets no more of it.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the cached file does not hold what it should; its last bytes were not sent")]
    Altered,
    #[error("the cached file cannot be read, and the store does not have the blob any more")]
    Gone,
}

/// What became of one read from the file.
enum Chunk {
    Good(Bytes, File, Option<Verifier>),
    Altered,
    Unreadable(String),
}

impl Reading {
    pub(super) fn new(
        disk: &Arc<Disk>,
        store: &Store,
        key: &Key,
        digest: &Digest,
        opened: Opened,
        range: Range<u64>,
    ) -> Self {
        let left = range.start..range.end.min(opened.size_bytes);
        let is_whole = left == (0..opened.size_bytes);
        let verifier =
            (is_whole && opened.checked != Checked::As(digest.clone())).then(|| Verifier::new(digest.clone()));
        let (disk, store, key, digest) = (Arc::clone(disk), Arc::clone(store), key.clone(), digest.clone());
        Self { disk, store, key, digest, file: Some(opened.file), verifier, left, begun: false, rest: None }
    }

    /// The bytes. Whatever the disk does, they are the blob's, or the stream ends with an error before its end.
    pub(super) fn stream(self) -> ByteStream {
        try_unfold(self, async |mut reading| Ok(reading.next().await?.map(|chunk| (chunk, reading)))).boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(rest) = &mut self.rest {
            return rest.next().await.transpose();
        }
        if self.left.is_empty() {
            return Ok(None);
        }
        match self.read().await {
            Some(Chunk::Good(chunk, file, verifier)) => {
                self.left.start += chunk.len() as u64;
                (self.file, self.verifier, self.begun) = (Some(file), verifier, true);
                return Ok(Some(chunk));
            }
            Some(Chunk::Altered) => {
                self.damaged("it does not hash to its digest").await;
                // Wrong bytes are out already. Whoever asks again gets the right ones.
                if self.begun {
                    return Err(Error::Away(Box::new(Broken::Altered)));
                }
            }
            Some(Chunk::Unreadable(error)) => self.damaged(&error).await,
            // A disk that hangs may still have the file.
            None => {}
        }
        let rest = self.store.read(&self.key, self.left.clone(), Some(&self.digest)).await?;
        let mut rest = rest.ok_or_else(|| Error::Away(Box::new(Broken::Gone)))?;
        let next = rest.next().await.transpose();
        self.rest = Some(rest);
        next
    }

    /// Reads the next chunk; `None` if the disk does not answer.
    async fn read(&mut self) -> Option<Chunk> {
        let (file, mut verifier) = (self.file.take()?, self.verifier.take());
        let (disk, key, digest) = (Arc::clone(&self.disk), self.key.clone(), self.digest.clone());
        let (start, end) = (self.left.start, self.left.end);
        let until = end.min(start + CHUNK_BYTES);
        let room = Room::for_bytes(until - start);
        let read = move || match read_chunk(&file, start, room) {
            Err(error) => Chunk::Unreadable(error.to_string()),
            Ok(chunk) => {
                if let Some(verifier) = &mut verifier {
                    verifier.update(&chunk);
                }
                if until == end
                    && let Some(verifier) = verifier.take()
                {
                    if !verifier.finish() {
                        return Chunk::Altered;
                    }
                    disk.index().note_checked(&key, &digest);
                }
                Chunk::Good(chunk, file, verifier)
            }
        };
        self.disk.within_limit(read).await
    }

    async fn damaged(&mut self, why: &str) {
        let (disk, key, why) = (Arc::clone(&self.disk), self.key.clone(), why.to_owned());
        self.disk.within_limit(move || disk.damaged(&key, &why)).await;
    }
}

/// The same stream, whose bytes are cached as they pass. `wanted_bytes` is how many its reader may take at most:
/// a reader who has them does not ask whether there are more.
pub(super) fn teed(stream: ByteStream, tee: Tee, digest: Digest, wanted_bytes: u64) -> ByteStream {
    unfold((stream, Some((tee, digest)), wanted_bytes), async |(mut stream, mut tee, wanted_bytes)| {
        let next = stream.next().await;
        let mut left_bytes = wanted_bytes;
        match &next {
            Some(Ok(chunk)) => {
                left_bytes = left_bytes.saturating_sub(chunk.len() as u64);
                if let Some((tee, _)) = &mut tee {
                    tee.write(chunk.clone()).await;
                }
                if left_bytes == 0
                    && let Some((tee, digest)) = tee.take()
                {
                    tee.finish(digest).await;
                }
            }
            Some(Err(_)) => drop(tee.take()),
            None => {
                if let Some((tee, digest)) = tee.take() {
                    tee.finish(digest).await;
                }
            }
        }
        next.map(|next| (next, (stream, tee, left_bytes)))
    })
    .boxed()
}
