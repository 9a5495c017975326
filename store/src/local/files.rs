//! The folder, its lock, and what is done to single files. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use entrepot_domain::Digest;
use rustix::fs::FlockOperation;
use tracing::warn;
use uuid::Uuid;

use super::{OpenError, failed_to};
use crate::{Error, GET_LIMIT_BYTES, Key, Object, Version};

/// No key begins with a dot.
const LOCK: &str = ".lock";
const TEMPORARY: &str = ".tmp";
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
        Ok(Self { root, turns: std::array::from_fn(|_| Mutex::default()), folders: RwLock::default(), _lock: lock })
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
            Condition::Is(version) => self.get(key)?.is_some_and(|object| object.version == *version),
        };
        if !holds {
            return Err(Error::Conflict);
        }
        self.publish(temporary, key, turn)?;
        Ok(version_of(bytes))
    }

    /// Makes what was written and synced to `temporary` the object of `key`.
    pub(super) fn complete(&self, temporary: Temporary, key: &Key) -> Result<(), Error> {
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
        let bytes = Bytes::from(bytes);
        Ok(Some(Object { version: version_of(&bytes), bytes }))
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
        let path = self.path(key);
        let _turn = self.turn(key);
        if self.find(key)?.is_none() {
            return Ok(());
        }
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

fn version_of(bytes: &[u8]) -> Version {
    Version::new(Digest::sha256(bytes).hex().to_owned())
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
