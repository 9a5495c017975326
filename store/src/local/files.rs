//! The folder, its lock, and what is done to single files. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use entrepot_domain::Digest;
use entrepot_domain::digest::{Algorithm, Digester};
use rustix::fs::FlockOperation;
use tracing::warn;
use uuid::Uuid;

use super::read::{CHUNK_BYTES, Room, read_chunk};
use super::{OpenError, failed_to};
use crate::{Deleted, Entry, Error, GET_LIMIT_BYTES, Key, Object, Version};

/// No key begins with a dot.
const LOCK: &str = ".lock";
const TEMPORARY: &str = ".tmp";
/// Lists say the versions of objects up to this size: records are smaller, and content is never replaced.
const LISTED_VERSION_BYTES: u64 = 1024 * 1024;
/// Keys share this many mutexes.
const TURNS: usize = 64;

#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Held by whoever compares a key's object and replaces it.
    turns: [Mutex<()>; TURNS],
    /// Held for writing while folders are made durable or removed, and for reading while a file is moved into one:
    /// who finds a folder may rely on it.
    folders: RwLock<()>,
    /// Locked until the last user of the folder is gone.
    _lock: File,
}

/// What must be so for a write to happen.
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

    /// Writes an object at once.
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

    /// Makes what was written to `temporary` the object of `key`.
    pub(super) fn complete(&self, temporary: Temporary, key: &Key) -> Result<(), Error> {
        temporary.sync()?;
        let turn = self.turn(key);
        self.publish(temporary, key, turn)
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let Some((mut file, size_bytes)) = self.find(key)? else { return Ok(None) };
        if size_bytes > GET_LIMIT_BYTES {
            return Err(Error::TooLarge { key: key.clone(), size_bytes });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed_to("read", &self.path(key)))?;
        Ok(Some(Object { version: version_of(&bytes), bytes: bytes.into() }))
    }

    /// What a list says of an object, if it is there.
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

    /// Opens an object and says how large it is.
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

    /// Removes an object that is there, and the folders that are empty then.
    fn remove(&self, key: &Key, _turn: MutexGuard<'_, ()>) -> Result<(), Error> {
        let path = self.path(key);
        fs::remove_file(&path).map_err(failed_to("delete", &path))?;
        let folders = || path.ancestors().skip(1).take_while(|folder| *folder != self.root);
        folders().take(1).try_for_each(sync_folder).map_err(failed_to("sync the folder of", &path))?;
        let _folders = self.folders.write().unwrap_or_else(PoisonError::into_inner);
        // The first that is not empty ends it.
        let _ = folders().try_for_each(fs::remove_dir);
        Ok(())
    }

    /// A new file that is in nobody's way.
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
            let _folders = self.folders.read().unwrap_or_else(PoisonError::into_inner);
            temporary.rename(&path)
        };
        match moved {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _folders = self.folders.write().unwrap_or_else(PoisonError::into_inner);
                make_folder(folder).map_err(failed_to("make the folder", folder))?;
                temporary.rename(&path)
            }
            other => other,
        }
        .map_err(failed_to("write", &path))?;
        temporary.keep();
        drop(turn);
        match sync_folder(folder) {
            // Deleted again already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(failed_to("sync the folder", folder)),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn turn(&self, key: &Key) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.turns[hash as usize % TURNS].lock().unwrap_or_else(PoisonError::into_inner)
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

/// Versions are hashes, so the same one in a list and in a read. Who replaces an object writes bytes that it has never
/// had, so that no version comes back.
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

/// Takes the folder for this process.
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

/// Makes a folder and those above it, durably.
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

/// Makes durable which files are in a folder.
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
