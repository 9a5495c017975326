//! Reads a file as a stream.

use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{StreamExt, try_unfold};
use rustix::buffer::spare_capacity;

use super::blocking;
use crate::{ByteStream, Error};

/// How much is read at once.
pub(crate) const CHUNK_BYTES: u64 = 256 * 1024;

/// The bytes of `range`, which ends within the file. The open file can be read even if its name is removed.
pub(crate) fn stream(file: File, range: Range<u64>) -> ByteStream {
    try_unfold((file, range), async |(file, range)| {
        if range.is_empty() {
            return Ok(None);
        }
        let end = range.end.min(range.start + CHUNK_BYTES);
        let room = Room::for_bytes(end - range.start);
        let (file, chunk) = blocking(move || match read_chunk(&file, range.start, room) {
            Ok(chunk) => Ok((file, chunk)),
            Err(error) => Err(Error::Away(Box::new(error))),
        })
        .await?;
        Ok(Some((chunk, (file, end..range.end))))
    })
    .boxed()
}

/// Memory for a chunk. The caller allocates it, so that it is also freed on the caller's thread: there are many threads
/// for disk reads, and the allocator would keep some memory for each.
pub(crate) struct Room {
    bytes: Vec<u8>,
    wanted: usize,
}

impl Room {
    pub(crate) fn for_bytes(wanted: u64) -> Self {
        let wanted = wanted as usize;
        Self { bytes: Vec::with_capacity(wanted), wanted }
    }
}

/// Reads from `start` on, as many bytes as fit into `chunk`.
pub(crate) fn read_chunk(file: &File, start: u64, mut chunk: Room) -> io::Result<Bytes> {
    while chunk.bytes.len() < chunk.wanted {
        let at = start + chunk.bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut chunk.bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // An allocation may be larger than requested.
    chunk.bytes.truncate(chunk.wanted);
    Ok(chunk.bytes.into())
}
