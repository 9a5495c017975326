//! The file in which a fill's bytes land and from which its readers read. It is the buffer between an upstream and any
//! number of clients, each at a position of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// A file without a name, so nothing remains of it however the process ends.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    file: Arc<File>,
    /// How much it may hold.
    room_bytes: u64,
}

impl Spool {
    /// Creates an empty spool in `folder`. It may use half of the free space, so that one fill does not take
    /// everything, and at most `most_bytes`.
    pub(crate) async fn create(folder: &Path, most_bytes: u64) -> io::Result<Self> {
        let path = folder.join(uuid::Uuid::new_v4().to_string());
        run(move || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            let volume = rustix::fs::fstatvfs(&file)?;
            let free_bytes = volume.f_bavail.saturating_mul(volume.f_frsize);
            Ok(Self { file: Arc::new(file), room_bytes: most_bytes.min(free_bytes / 2) })
        })
        .await
    }

    /// Whether this many bytes may be written.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        bytes <= self.room_bytes
    }

    pub(crate) async fn write(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        if !self.has_room_for(offset.saturating_add(bytes.len() as u64)) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file = self.file.clone();
        run(move || file.write_all_at(&bytes, offset)).await
    }

    /// Reads exactly `len` bytes at `offset`. They must have landed.
    pub(crate) async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = self.file.clone();
        // Allocated on the thread that also frees it: there are many threads for disk access, and the allocator would
        // keep some memory for each.
        let mut bytes = BytesMut::zeroed(len);
        run(move || {
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes.freeze())
        })
        .await
    }
}

async fn run<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spool_takes_at_most_half_of_what_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path(), u64::MAX).await.unwrap();
        let volume = rustix::fs::statvfs(dir.path()).unwrap();
        let free = volume.f_bavail * volume.f_frsize;
        assert!(spool.has_room_for(free / 10) && !spool.has_room_for(free / 10 * 6), "{free} are free");
        let spool = Spool::create(dir.path(), 10).await.unwrap();
        spool.write(0, Bytes::from_static(b"0123456789")).await.unwrap();
        let error = spool.write(10, Bytes::from_static(b"0")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(spool.write(u64::MAX, Bytes::from_static(b"0")).await.is_err());
    }
}
