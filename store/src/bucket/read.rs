//! Reads an object as a stream that continues where a connection broke.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, empty, try_unfold};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult};

use super::Bucket;
use super::failure::Failure;
use super::limits::Tries;
use crate::{ByteStream, Error};

const CHUNK_BYTES: usize = 1024 * 1024;
/// Services refuse range ends larger than this.
const LAST_END: u64 = i64::MAX as u64;

/// The service ended a body too early.
#[derive(Debug, thiserror::Error)]
#[error("the body ended too early")]
struct TooShort;

/// The part of `range` that the object has, and the object's size.
pub(super) async fn open(
    bucket: &Arc<Bucket>,
    path: Path,
    range: Range<u64>,
) -> Result<Option<(ByteStream, u64)>, Failure> {
    let nothing = |size_bytes| (empty().boxed(), size_bytes);
    if range.is_empty() {
        return Ok(bucket.size(&path).await?.map(nothing));
    }
    let wanted = match range {
        Range { start: 0, end: LAST_END.. } => None,
        Range { start, end: LAST_END.. } => Some(GetRange::Offset(start)),
        Range { start, end } => Some(GetRange::Bounded(start..end)),
    };
    let options = GetOptions { range: wanted, ..GetOptions::default() };
    match Tries::small().idempotent(|| bucket.client.get(&path, options.clone())).await {
        Ok(result) => {
            let size_bytes = result.meta.size;
            Ok(Some((Body::new(Arc::clone(bucket), path, result).stream(), size_bytes)))
        }
        Err(Failure::Absent) => Ok(None),
        // Empty objects refuse every range, too. Some services answer a range after the end in a way that the library
        // refuses.
        Err(failure @ (Failure::BehindEnd | Failure::Garbled(_))) => match bucket.size(&path).await? {
            None => Ok(None),
            Some(size) if size <= range.start => Ok(Some(nothing(size))),
            Some(_) => Err(failure),
        },
        Err(failure) => Err(failure),
    }
}

/// The part of an object that is still to be read.
struct Body {
    bucket: Arc<Bucket>,
    path: Path,
    /// The object that a further request must find.
    e_tag: Option<String>,
    /// `None` after the connection broke.
    stream: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    /// The range that is still to come from the service.
    range: Range<u64>,
    /// Bytes that have arrived but did not fit into one chunk.
    rest: Bytes,
}

impl Body {
    fn new(bucket: Arc<Bucket>, path: Path, result: GetResult) -> Self {
        let (e_tag, range) = (result.meta.e_tag.clone(), result.range.clone());
        Self { bucket, path, e_tag, range, stream: Some(result.into_stream()), rest: Bytes::new() }
    }

    fn stream(self) -> ByteStream {
        try_unfold(self, async |mut body| {
            if body.rest.is_empty() && !body.range.is_empty() {
                body.rest = body.next().await.map_err(Error::from_read)?;
            }
            let chunk = body.rest.split_to(body.rest.len().min(CHUNK_BYTES));
            Ok(if chunk.is_empty() { None } else { Some((chunk, body)) })
        })
        .boxed()
    }

    /// The next bytes, with as many requests as needed and permitted.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        let mut tries = Tries::resume();
        loop {
            let failure = match self.read(&tries).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            self.stream = None;
            if self.e_tag.is_none() || !tries.again(&failure).await {
                return Err(failure);
            }
            match self.reopen(&mut tries).await {
                Err(failure) if !failure.may_pass() => return Err(failure),
                // If it fails here, it fails again below, and is waited for there.
                _ => {}
            }
        }
    }

    async fn read(&mut self, tries: &Tries) -> Result<Bytes, Failure> {
        let too_short = || Failure::Other(Box::new(TooShort));
        let Some(stream) = &mut self.stream else { return Err(too_short()) };
        loop {
            let bytes = tries.within(stream.next()).await?.ok_or_else(too_short)??;
            if !bytes.is_empty() {
                self.range.start = (self.range.start + bytes.len() as u64).min(self.range.end);
                return Ok(bytes);
            }
        }
    }

    async fn reopen(&mut self, tries: &mut Tries) -> Result<(), Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(self.range.clone())),
            if_match: self.e_tag.clone(),
            ..GetOptions::default()
        };
        match tries.once(self.bucket.client.get(&self.path, options)).await {
            // Services that ignore the condition still tell which object they send.
            Ok(result) if result.meta.e_tag == self.e_tag => self.stream = Some(result.into_stream()),
            Ok(_) | Err(Failure::Absent | Failure::Condition(_) | Failure::BehindEnd) => return Err(Failure::Changed),
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

impl Error {
    /// Reading a body never conflicts with writers.
    fn from_read(failure: Failure) -> Self {
        Self::Away(Box::new(failure))
    }
}
