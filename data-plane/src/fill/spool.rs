//! The file that a fill's bytes land in, and that its readers read from: the buffer between an upstream and any
//! number of clients, each with a cursor of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// A file without a name, so that nothing is left of it however the process ends.
#[derive(Clone, Debug)]
pub(crate) struct Spool(Arc<File>);

impl Spool {
    /// A new, empty spool in `folder`.
    pub(crate) async fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(uuid::Uuid::new_v4().to_string());
        run(move || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(Self(Arc::new(file)))
        })
        .await
    }

    /// Writes `bytes` at `offset`.
    pub(crate) async fn write(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let file = self.0.clone();
        run(move || file.write_all_at(&bytes, offset)).await
    }

    /// Reads exactly `len` bytes at `offset`, which have landed.
    pub(crate) async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = self.0.clone();
        // Taken here, where it is freed, too: the threads that wait for disks are many, and each would keep some for
        // itself.
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
