//! A reader's own stream past a spool that cannot be written: its bytes come from the upstream for it alone.
//!
//! It is verified in the same way as a fill: the tail of a blob is sent only when all of it has been hashed. A part
//! that does not reach into the tail is passed on as it comes, since nobody can take it for the whole.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use entrepot_domain::{Digest, Verifier};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};

use super::spool::Spool;
use super::{CHUNK_BYTES, Fills, SETTINGS};
use crate::body::Cut;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::upstream;

/// What is needed to fetch a blob without a spool.
pub(super) struct PassThrough {
    pub(super) fills: Fills,
    pub(super) fill: FillFrom,
    pub(super) digest: Digest,
    pub(super) size_bytes: Option<u64>,
    /// What landed before the spool failed, which can still be read.
    pub(super) landed: Option<(Spool, u64)>,
}

impl PassThrough {
    /// The blob's size, if the upstream tells it.
    pub(super) async fn size_bytes(&self) -> Result<Option<u64>, PullError> {
        if self.size_bytes.is_some() {
            return Ok(self.size_bytes);
        }
        let client = self.fill.pull_client();
        let size = upstream::request(&self.fill, "HEAD", client.head_blob(&self.fill.repository, &self.digest)).await;
        size.map_err(|error| upstream::failure(&self.fill, Asked::Blob, &error))
    }

    /// The bytes from `at` on, up to `end` or the last one. If the upstream does not tell the size, `promised` is used.
    pub(super) fn stream(
        self: Arc<Self>,
        at: u64,
        end: Option<u64>,
        promised: Option<u64>,
    ) -> BoxStream<'static, Result<Bytes, Cut>> {
        stream::once(async move { self.open(at, end, promised).await.map_err(Cut::because) }).try_flatten().boxed()
    }

    async fn open(
        &self,
        at: u64,
        end: Option<u64>,
        promised: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Cut>>, PullError> {
        let turn = self.fills.turn(&self.fill).await?;
        let size = if promised.is_some() { self.size_bytes } else { self.size_bytes().await? };
        if let Some(end) = end.filter(|end| size.is_some_and(|size| *end <= open_until(size)))
            && let Some(part) = self.part(at, end).await?
        {
            return Ok(part.inspect(move |_| _ = &turn).boxed());
        }
        let (spooled, rest) = match (&self.landed, size) {
            (Some((spool, landed)), Some(size)) if *landed < size => match self.part(*landed, size).await? {
                Some(rest) => (from_spool(spool.clone(), *landed).boxed(), rest),
                None => (stream::empty().boxed(), self.whole().await?),
            },
            _ => (stream::empty().boxed(), self.whole().await?),
        };
        let passing = Passing {
            source: spooled.chain(rest).inspect(move |_| _ = &turn).boxed(),
            verifier: Some(Verifier::new(self.digest.clone())),
            held_back_bytes: size.map_or(SETTINGS.held_back_bytes, |size| size - open_until(size)),
            pending: BytesMut::new(),
            taken: 0,
            at,
            end: end.unwrap_or(u64::MAX),
            limit: size.or(promised).unwrap_or(self.fills.inner.largest_blob),
        };
        Ok(stream::try_unfold(passing, Passing::next).boxed())
    }

    async fn part(&self, at: u64, end: u64) -> Result<Option<BoxStream<'static, Result<Bytes, Cut>>>, PullError> {
        let client = self.fill.pull_client();
        let part =
            upstream::request(&self.fill, "GET", client.blob_part(&self.fill.repository, &self.digest, at..end)).await;
        let part = part.map_err(|error| upstream::failure(&self.fill, Asked::Blob, &error))?;
        Ok(part.map(|part| part.map_err(Cut::because).boxed()))
    }

    async fn whole(&self) -> Result<BoxStream<'static, Result<Bytes, Cut>>, PullError> {
        let client = self.fill.pull_client();
        let body = upstream::request(&self.fill, "GET", client.blob(&self.fill.repository, &self.digest)).await;
        let body = body.map_err(|error| upstream::failure(&self.fill, Asked::Blob, &error))?;
        Ok(body.stream.map_err(Cut::because).boxed())
    }
}

/// How much of a blob is sent before it is verified.
fn open_until(size: u64) -> u64 {
    if size <= SETTINGS.whole_bytes { 0 } else { size.saturating_sub(SETTINGS.held_back_bytes) }
}

fn from_spool(spool: Spool, landed: u64) -> impl Stream<Item = Result<Bytes, Cut>> + Send + 'static {
    stream::try_unfold(0, move |at| {
        let spool = spool.clone();
        async move {
            let until = landed.min(at + CHUNK_BYTES as u64);
            if at == until {
                return Ok(None);
            }
            let bytes = spool.read(at, (until - at) as usize).await.map_err(Cut::because)?;
            Ok(Some((bytes, until)))
        }
    })
}

/// A blob that is being passed through.
struct Passing {
    source: BoxStream<'static, Result<Bytes, Cut>>,
    /// `None` once it has decided.
    verifier: Option<Verifier>,
    held_back_bytes: u64,
    /// Bytes that have arrived but were not sent.
    pending: BytesMut,
    /// How many bytes were sent or skipped.
    taken: u64,
    at: u64,
    end: u64,
    /// The most bytes that there can be.
    limit: u64,
}

impl Passing {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Cut> {
        loop {
            let held = if self.verifier.is_some() { self.held_back_bytes } else { 0 };
            let free = (self.pending.len() as u64).saturating_sub(held);
            if free > 0 {
                let bytes = self.pending.split_to(free as usize).freeze();
                let (start, end) = (self.taken, self.taken + free);
                self.taken = end;
                let wanted = self.at.max(start)..self.end.min(end);
                if wanted.start < wanted.end {
                    let wanted = (wanted.start - start) as usize..(wanted.end - start) as usize;
                    return Ok(Some((bytes.slice(wanted), self)));
                }
            } else if let Some(verifier) = &mut self.verifier {
                match self.source.next().await.transpose()? {
                    Some(chunk) => {
                        // The promised bytes are still held back, so nobody takes them for the whole.
                        if self.taken + (self.pending.len() + chunk.len()) as u64 > self.limit {
                            return Err(Cut::because("the blob is larger than was said"));
                        }
                        verifier.update(&chunk);
                        self.pending.extend_from_slice(&chunk);
                    }
                    None if self.verifier.take().is_some_and(Verifier::finish) => {}
                    None => return Err(Cut::because("the blob does not hash to its digest")),
                }
            } else if self.end != u64::MAX && self.taken < self.end {
                return Err(Cut::because("the blob is shorter than was said"));
            } else {
                return Ok(None);
            }
        }
    }
}
