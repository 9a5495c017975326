//! A store in a local folder, which belongs to one process.
//!
//! Keys are paths below the folder. A write goes to a file below `.tmp/`, is made durable there, and gets its key by a
//! rename, so nothing is ever visible in part. No second process can open the folder (`flock` on `.lock`), so
//! compare-and-swap is a mutex per key. Whatever a crash leaves in `.tmp/` is removed when the store is opened.

mod files;
mod list;
pub(crate) mod read;
mod upload;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};

use crate::verify::Verifications;
use crate::{Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, Object, Prefix, Upload, Version};
use files::{Condition, Files};

/// A folder that holds objects as files. It stays locked while any part of this is in use.
#[derive(Debug)]
pub struct LocalStore {
    files: Arc<Files>,
    verifications: Arc<Verifications>,
}

/// Why a folder cannot be used as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "another process{} uses the store in {}; stop it first, or choose another folder",
        .process.map(|id| format!(" ({id})")).unwrap_or_default(), .path.display()
    )]
    Taken {
        path: PathBuf,
        /// The process that uses it, if known.
        process: Option<u32>,
    },
    /// It cannot be created, read or written.
    #[error("the store in {} cannot be opened: give the user that runs this a folder that it may write", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl LocalStore {
    /// Opens the store in the folder `path`, and creates the folder if needed.
    ///
    /// # Errors
    /// If another process uses it, or it cannot be read and written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let files = Arc::new(Files::open(path.as_ref())?);
        Ok(Self { files, verifications: Arc::default() })
    }

    async fn write(&self, key: &Key, bytes: Bytes, condition: Condition) -> Result<Version, Error> {
        let key = key.clone();
        self.blocking(move |files| files.write(&key, &bytes, &condition)).await
    }

    /// Remembers that an object was written with this content.
    async fn wrote(&self, key: &Key, digest: &Digest) -> Result<(), Error> {
        let (verifications, key, digest) = (Arc::clone(&self.verifications), key.clone(), digest.clone());
        self.blocking(move |files| files.note_content(&verifications, &key, &digest)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Files>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let files = Arc::clone(&self.files);
        blocking(move || work(&files)).await
    }
}

#[async_trait]
impl BlobStore for LocalStore {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        let written = self.write(key, bytes, Condition::Absent).await;
        if let Err(Error::Conflict) = written { Err(Error::AlreadyExists) } else { written }
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.write(key, bytes, Condition::Any).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.write(key, bytes, expected.cloned().map_or(Condition::Absent, Condition::Is)).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let key = key.clone();
        self.blocking(move |files| files.get(&key)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        let key = key.clone();
        self.blocking(move |files| Ok(files.find(&key)?.map(|(_, size_bytes)| size_bytes))).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.put_once(key, bytes).await?;
        self.wrote(key, digest).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        let name = key.clone();
        let Some((file, size_bytes)) = self.blocking(move |files| files.find(&name)).await? else { return Ok(None) };
        let range = range.start..range.end.min(size_bytes);
        match digest {
            Some(digest) => self.verifications.read(key, digest, file, range).await.map(Some),
            None => Ok(Some(read::stream(file, range))),
        }
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        let (prefix, start_after) = (prefix.clone(), start_after.cloned());
        self.blocking(move |files| list::list(files, &prefix, start_after.as_ref(), limit)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let key = key.clone();
        self.blocking(move |files| files.delete(&key)).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        let (key, version) = (key.clone(), version.clone());
        self.blocking(move |files| files.delete_if(&key, &version)).await
    }

    fn abilities(&self) -> Abilities {
        Abilities { deletes_if: true, lists_at_once: true }
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        let key = key.clone();
        let verifications = Arc::clone(&self.verifications);
        let begin = move |files: &Arc<Files>| upload::LocalUpload::begin(files, verifications, key);
        Ok(Box::new(self.blocking(begin).await?))
    }

    /// Opening the folder has removed what an earlier process left, and dropped uploads remove their own files.
    async fn abort_uploads(&self, _owner: &ResourceId) -> Result<usize, Error> {
        Ok(0)
    }
}

/// Runs file operations on threads where they may block. They run to their end even if the caller goes away.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| Err(Error::Away(Box::new(stopped))))
}

/// What failed for which file.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}", .path.display())]
struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// For `map_err`: the error for an action on `path`.
fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Away(Box::new(FileError { action, path: path.to_owned(), source }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use parking_lot::Mutex;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_does_what_every_store_must_do() {
        let folders = Mutex::new(Vec::new());
        crate::conformance::run(async || {
            let folder = tempfile::tempdir().unwrap();
            let store = LocalStore::open(folder.path()).unwrap();
            folders.lock().push(folder);
            Arc::new(store) as crate::Store
        })
        .await;
    }

    #[tokio::test]
    async fn a_second_opener_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = LocalStore::open(&path).unwrap();
        let upload = store.begin_upload(&key("a")).await.unwrap();
        drop(store);
        // The upload still writes to the folder.
        let error = LocalStore::open(&path).unwrap_err().to_string();
        let expected = format!("another process ({}) uses the store in {}", std::process::id(), path.display());
        assert!(error.starts_with(&expected), "{error}");
        upload.abort().await.unwrap();
        LocalStore::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn what_a_crash_left_is_removed_and_the_rest_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        store.put_once(&key("a/b"), "kept".into()).await.unwrap();
        let mut upload = store.begin_upload(&key("a/c")).await.unwrap();
        upload.part("half".into()).await.unwrap();
        drop(store);
        let left = || folder.path().join(".tmp").read_dir().unwrap().count();
        assert_eq!(left(), 1);
        // As after a crash: the lock is gone with its process, but the file remains.
        let leftover = folder.path().join(".tmp/leftover");
        std::fs::write(&leftover, "half").unwrap();
        drop(upload);
        assert_eq!(left(), 1);
        let store = LocalStore::open(folder.path()).unwrap();
        assert_eq!(left(), 0);
        let listed = store.list(&Prefix::all(), None, 10).await.unwrap();
        assert_eq!(listed.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a/b"]);
    }

    #[tokio::test]
    async fn deleting_leaves_no_empty_folders() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        store.put(&key("a/b/c/d"), "x".into()).await.unwrap();
        store.put(&key("a/e"), "x".into()).await.unwrap();
        store.delete(&key("a/b/c/d")).await.unwrap();
        assert!(!folder.path().join("a/b").exists() && folder.path().join("a/e").exists());
        store.delete(&key("a/e")).await.unwrap();
        assert!(!folder.path().join("a").exists());
    }

    #[test]
    fn an_upload_whose_part_was_interrupted_cannot_be_completed() {
        // There is one thread for blocking work, and the test can occupy it, so the part is certainly under way when it
        // is dropped.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = LocalStore::open(folder.path()).unwrap();
            let mut upload = store.begin_upload(&key("a")).await.unwrap();
            let (release, released) = std::sync::mpsc::channel::<()>();
            let held = tokio::task::spawn_blocking(move || released.recv());
            {
                let mut part = Box::pin(upload.part("half".into()));
                assert!(futures_util::poll!(part.as_mut()).is_pending());
            }
            drop(release);
            assert!(held.await.unwrap().is_err());
            assert!(upload.part("more".into()).await.is_err());
            assert!(upload.complete(None).await.is_err());
            assert_eq!(store.head(&key("a")).await.unwrap(), None);
        });
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let error = LocalStore::open(folder.path().join("file/store")).unwrap_err();
        assert!(matches!(&error, OpenError::Io { .. }) && error.to_string().contains("file/store"), "{error}");
    }
}
