//! Reading a file as a stream.

use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{StreamExt, try_unfold};
use rustix::buffer::spare_capacity;

use super::blocking;
use crate::{ByteStream, Error};

/// How much is read at once.
pub(crate) const CHUNK_BYTES: u64 = 512 * 1024;

/// The bytes of `range`, which ends within the file. The open file outlives its name.
pub(super) fn stream(file: File, range: Range<u64>) -> ByteStream {
    try_unfold((file, range), async |(file, range)| {
        if range.is_empty() {
            return Ok(None);
        }
        let end = range.end.min(range.start + CHUNK_BYTES);
        let (file, chunk) = blocking(move || match read_chunk(&file, range.start..end) {
            Ok(chunk) => Ok((file, chunk)),
            Err(error) => Err(Error::Away(Box::new(error))),
        })
        .await?;
        Ok(Some((chunk, (file, end..range.end))))
    })
    .boxed()
}

pub(crate) fn read_chunk(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let wanted = (range.end - range.start) as usize;
    let mut chunk = Vec::with_capacity(wanted);
    while chunk.len() < wanted {
        let at = range.start + chunk.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut chunk), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // An allocation may be larger than asked for.
    chunk.truncate(wanted);
    Ok(chunk.into())
}
