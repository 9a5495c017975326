//! Reading a blob from the disk, with the store behind it; and from the store, with the disk beside it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::Digest;
use futures_util::StreamExt as _;
use futures_util::stream::{try_unfold, unfold};

use super::disk::{Disk, Opened};
use super::landing::Tee;
use crate::local::read::{CHUNK_BYTES, Room, read_chunk};
use crate::verify::{HELD_BACK_BYTES, Verdict, Verification};
use crate::{ByteStream, Error, Key, Store};

/// A blob above [`crate::SMALL_BYTES`] that is read from the disk.
pub(super) struct Reading {
    disk: Arc<Disk>,
    store: Store,
    key: Key,
    digest: Digest,
    size_bytes: u64,
    file: Option<File>,
    /// For who reads all of it: whether the file is what it should be.
    verification: Option<Verification>,
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
    #[error("the cached file could not be read any more before it was verified")]
    Unverified,
    #[error("the cached file cannot be read, and the store does not have the blob any more")]
    Gone,
}

/// What became of one read from the file.
enum Chunk {
    Good(Bytes, File),
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
    ) -> io::Result<Self> {
        let Opened { file, size_bytes } = opened;
        let left = range.start..range.end.min(size_bytes);
        let is_whole = left == (0..size_bytes);
        let verification = disk.verifications.of_read(key, digest, &file, is_whole)?;
        let (disk, store, key, digest) = (Arc::clone(disk), Arc::clone(store), key.clone(), digest.clone());
        let verification = verification.filter(|_| is_whole);
        Ok(Self {
            disk,
            store,
            key,
            digest,
            size_bytes,
            file: Some(file),
            verification,
            left,
            begun: false,
            rest: None,
        })
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
        if self.is_held_back() && !self.is_right().await {
            self.discard("it does not hash to its digest").await;
            // Wrong bytes are out already. Whoever asks again gets the right ones.
            return Err(Error::Away(Box::new(Broken::Altered)));
        }
        match self.read().await {
            Some(Chunk::Good(chunk, file)) => {
                self.left.start += chunk.len() as u64;
                (self.file, self.begun) = (Some(file), true);
                return Ok(Some(chunk));
            }
            Some(Chunk::Unreadable(error)) => self.discard(&error).await,
            // A disk that hangs may still have the file.
            None => {}
        }
        self.rest = Some(self.go_on().await?);
        match &mut self.rest {
            Some(rest) => rest.next().await.transpose(),
            None => Ok(None),
        }
    }

    /// Whether what is left may be had only of what is verified.
    fn is_held_back(&self) -> bool {
        self.verification.is_some() && self.size_bytes - self.left.start <= HELD_BACK_BYTES
    }

    async fn is_right(&mut self) -> bool {
        let Some(verification) = &mut self.verification else { return true };
        let right = verification.end().await == Verdict::Right;
        if right {
            self.verification = None;
        }
        right
    }

    /// The rest from the store. Who reads all of it has had what was verified, or nothing.
    async fn go_on(&mut self) -> Result<ByteStream, Error> {
        let is_verified = self.verification.as_ref().is_none_or(|known| known.verdict() == Some(Verdict::Right));
        if self.begun && !is_verified {
            return Err(Error::Away(Box::new(Broken::Unverified)));
        }
        let rest = self.store.read(&self.key, self.left.clone(), Some(&self.digest)).await?;
        rest.ok_or_else(|| Error::Away(Box::new(Broken::Gone)))
    }

    /// Reads the next chunk; `None` if the disk does not answer.
    async fn read(&mut self) -> Option<Chunk> {
        let file = self.file.take()?;
        let start = self.left.start;
        let free = if self.verification.is_some() && !self.is_held_back() {
            self.size_bytes - HELD_BACK_BYTES
        } else {
            self.left.end
        };
        let room = Room::for_bytes(free.min(self.left.end).min(start + CHUNK_BYTES) - start);
        let read = move || match read_chunk(&file, start, room) {
            Err(error) => Chunk::Unreadable(error.to_string()),
            Ok(chunk) => Chunk::Good(chunk, file),
        };
        self.disk.within_limit(read).await
    }

    async fn discard(&mut self, why: &str) {
        let (disk, key, why) = (Arc::clone(&self.disk), self.key.clone(), why.to_owned());
        self.disk.within_limit(move || disk.discard(&key, &why)).await;
    }
}

/// The same stream, whose bytes are cached as they pass. `wanted_bytes` is how many its reader may take at most:
/// a reader who has them does not ask whether there are more.
pub(super) fn tee_stream(stream: ByteStream, tee: Tee, digest: Digest, wanted_bytes: u64) -> ByteStream {
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
