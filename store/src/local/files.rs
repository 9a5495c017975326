//! The folder, its lock, and operations on single files. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::Utc;
use entrepot_domain::Digest;
use entrepot_domain::digest::{Algorithm, Digester};
use parking_lot::{Mutex, MutexGuard, RwLock};
use rustix::fs::FlockOperation;
use tracing::warn;
use uuid::Uuid;

use super::read::{CHUNK_BYTES, Room, read_chunk};
use super::{OpenError, failed_to};
use crate::verify::{Stamp, Verifications};
use crate::{Deleted, Entry, Error, GET_LIMIT_BYTES, Key, Object, Version};

/// No key begins with a dot.
const LOCK: &str = ".lock";
const TEMPORARY: &str = ".tmp";
/// Lists include the versions of objects up to this size: records are smaller, and content is never replaced.
const LISTED_VERSION_BYTES: u64 = 1024 * 1024;
/// Keys share this many mutexes.
const TURNS: usize = 64;

#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Locked while a key's object is compared and replaced.
    turns: [Mutex<()>; TURNS],
    /// Locked for writing while folders are made durable or removed, and for reading while a file is moved into one, so
    /// that a folder that was found cannot disappear.
    folders: RwLock<()>,
    /// Locked until the last user of the folder is gone.
    _lock: File,
}

/// The condition of a write.
#[derive(Debug)]
pub(super) enum Condition {
    Any,
    Absent,
    Is(Version),
}

impl Files {
    pub(super) fn open(root: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: root.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        // Relative paths must not follow a change of the working folder.
        let root = root.canonicalize().map_err(failed)?;
        let lock = lock(&root)?;
        let temporary = root.join(TEMPORARY);
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::create_dir(&temporary).map_err(failed)?,
        }
        sync_folder(&root).map_err(failed)?;
        let (turns, folders) = (std::array::from_fn(|_| Mutex::default()), RwLock::default());
        Ok(Self { root, turns, folders, _lock: lock })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes an object in one step.
    pub(super) fn write(&self, key: &Key, bytes: &Bytes, condition: &Condition) -> Result<Version, Error> {
        let mut temporary = self.begin()?;
        temporary.append(bytes)?;
        temporary.sync()?;
        let turn = self.turn(key);
        let holds = match condition {
            Condition::Any => true,
            Condition::Absent => self.find(key)?.is_none(),
            Condition::Is(expected) => self.is_at(key, expected)?,
        };
        if !holds {
            return Err(Error::Conflict);
        }
        self.publish(temporary, key, turn)?;
        Ok(version_of(bytes))
    }

    /// Makes the file `temporary` the object of `key`.
    pub(super) fn complete(&self, temporary: Temporary, key: &Key) -> Result<(), Error> {
        temporary.sync()?;
        let turn = self.turn(key);
        self.publish(temporary, key, turn)
    }

    /// Remembers that a newly written object has this content, which was hashed while it was written.
    pub(super) fn note_content(&self, verifications: &Verifications, key: &Key, digest: &Digest) -> Result<(), Error> {
        if let Some((file, _)) = self.find(key)? {
            let stamp = Stamp::of(&file).map_err(failed_to("look at", &self.path(key)))?;
            verifications.wrote(key, digest, stamp);
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let Some((mut file, size_bytes)) = self.find(key)? else { return Ok(None) };
        if size_bytes > GET_LIMIT_BYTES {
            let version = version_of_file(&file, size_bytes).map_err(failed_to("read", &self.path(key)))?;
            return Err(Error::TooLarge { key: key.clone(), size_bytes, version: Some(version) });
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a folder's clock is its machine's, whatever a test's clock says"
        )]
        let read_time = Some(Utc::now());
        let mut bytes = Vec::new();
        let modified = file.read_to_end(&mut bytes).and_then(|_| file.metadata()?.modified());
        let modify_time = modified.map_err(failed_to("read", &self.path(key)))?.into();
        Ok(Some(Object { version: version_of(&bytes), bytes: bytes.into(), modify_time, read_time }))
    }

    /// The list entry of an object, if it exists.
    pub(super) fn entry(&self, key: Key) -> Result<Option<Entry>, Error> {
        let Some((file, size_bytes)) = self.find(&key)? else { return Ok(None) };
        let look = || {
            let version =
                (size_bytes <= LISTED_VERSION_BYTES).then(|| version_of_file(&file, size_bytes)).transpose()?;
            Ok((file.metadata()?.modified()?.into(), version))
        };
        let (modify_time, version) = look().map_err(failed_to("look at", &self.path(&key)))?;
        Ok(Some(Entry { key, size_bytes, modify_time, version }))
    }

    fn is_at(&self, key: &Key, version: &Version) -> Result<bool, Error> {
        let Some((file, size_bytes)) = self.find(key)? else { return Ok(false) };
        Ok(version_of_file(&file, size_bytes).map_err(failed_to("read", &self.path(key)))? == *version)
    }

    /// Opens an object, and returns it with its size.
    pub(super) fn find(&self, key: &Key) -> Result<Option<(File, u64)>, Error> {
        let path = self.path(key);
        let file = match File::open(&path) {
            Ok(file) => file,
            // A part of the path may be a file.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(failed_to("open", &path)(error)),
        };
        let metadata = file.metadata().map_err(failed_to("look at", &path))?;
        Ok(metadata.is_file().then_some((file, metadata.len())))
    }

    pub(super) fn delete(&self, key: &Key) -> Result<(), Error> {
        let turn = self.turn(key);
        if self.find(key)?.is_some() { self.remove(key, turn) } else { Ok(()) }
    }

    pub(super) fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        let turn = self.turn(key);
        if !self.is_at(key, version)? {
            return Ok(Deleted::No);
        }
        self.remove(key, turn).map(|()| Deleted::Yes)
    }

    /// Removes an existing object, and then all parent folders that are empty.
    fn remove(&self, key: &Key, _turn: MutexGuard<'_, ()>) -> Result<(), Error> {
        let path = self.path(key);
        fs::remove_file(&path).map_err(failed_to("delete", &path))?;
        let folders = || path.ancestors().skip(1).take_while(|folder| *folder != self.root);
        folders().take(1).try_for_each(sync_folder).map_err(failed_to("sync the folder of", &path))?;
        let _folders = self.folders.write();
        // The first folder that is not empty ends this.
        let _ = folders().try_for_each(fs::remove_dir);
        Ok(())
    }

    /// A new file with a name of its own.
    pub(super) fn begin(&self) -> Result<Temporary, Error> {
        let path = self.root.join(TEMPORARY).join(Uuid::new_v4().to_string());
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed_to("make the file", &path))?;
        Ok(Temporary { file, path: Some(path) })
    }

    fn publish(&self, temporary: Temporary, key: &Key, turn: MutexGuard<'_, ()>) -> Result<(), Error> {
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.root);
        let moved = {
            let _folders = self.folders.read();
            temporary.rename(&path)
        };
        match moved {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _folders = self.folders.write();
                make_folder(folder).map_err(failed_to("make the folder", folder))?;
                temporary.rename(&path)
            }
            other => other,
        }
        .map_err(failed_to("write", &path))?;
        temporary.keep();
        drop(turn);
        match sync_folder(folder) {
            // It has been deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(failed_to("sync the folder", folder)),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn turn(&self, key: &Key) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.turns[hash as usize % TURNS].lock()
    }
}

/// A file that is removed unless it is kept.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    /// `None` once it was kept.
    path: Option<PathBuf>,
}

impl Temporary {
    pub(super) fn append(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(failed_to("write to", self.path()))
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(failed_to("sync", self.path()))
    }

    fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(self.path(), to)
    }

    fn keep(mut self) {
        self.path = None;
    }

    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            warn!("left the temporary file {} until the next start: {error}", path.display());
        }
    }
}

/// Versions are hashes, so lists and reads give the same one. A writer that replaces an object writes bytes that it
/// never had before, so no version returns.
fn version_of(bytes: &[u8]) -> Version {
    Version::new(Digest::sha256(bytes).hex().to_owned())
}

fn version_of_file(file: &File, size_bytes: u64) -> io::Result<Version> {
    let (mut digester, mut start) = (Digester::new(Algorithm::Sha256), 0);
    while start < size_bytes {
        let chunk = read_chunk(file, start, Room::for_bytes(CHUNK_BYTES.min(size_bytes - start)))?;
        digester.update(&chunk);
        start += chunk.len() as u64;
    }
    Ok(Version::new(digester.finish().hex().to_owned()))
}

/// Locks the folder for this process.
fn lock(root: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Io { path: root.to_owned(), source };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(root.join(LOCK)).map_err(failed)?;
    if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        let error = io::Error::from(error);
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(failed(error));
        }
        let mut holder = String::new();
        let process = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
        return Err(OpenError::Taken { path: root.to_owned(), process });
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Creates a folder and its parents, durably.
fn make_folder(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().unwrap_or(folder);
    let made = match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(parent)?;
            fs::create_dir(folder)
        }
        made => made,
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| sync_folder(parent)),
    }
}

/// Makes it durable which files a folder contains.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hash_what_may_be_a_record_and_leave_large_content_unread() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let key = Key::parse("a").unwrap();
        let write = |bytes: Vec<u8>| files.write(&key, &bytes.into(), &Condition::Any).unwrap();
        let largest = usize::try_from(LISTED_VERSION_BYTES).unwrap();
        let version = write(vec![0; largest]);
        assert_eq!(files.entry(key.clone()).unwrap().unwrap().version, Some(version));
        let version = write(vec![0; largest + 1]);
        assert_eq!(files.entry(key.clone()).unwrap().unwrap().version, None);
        assert_eq!(files.delete_if(&key, &version).unwrap(), Deleted::Yes);
    }
}
