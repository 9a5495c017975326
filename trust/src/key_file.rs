//! Files that hold a key: one line of text that only the owner may read.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use zeroize::Zeroizing;

pub(crate) const KEY_BYTES: usize = 32;

/// The permissions of files with secrets, and of those without.
const OWNER: u32 = 0o600;
const EVERYBODY: u32 = 0o644;

/// A key's bytes, wiped when dropped.
pub(crate) type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Others than its owner can read it.
    #[error(
        "the key file {} can be read by others (mode {mode:04o}): run `chmod 600 {}`, and make a new key if others may have read it",
        .path.display(), .path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    /// It does not exist, and a serving program must not create one.
    #[error("the key file {} does not exist: make it with `entrepot keys generate`, once for the whole cluster, or copy it here", .path.display())]
    Missing { path: PathBuf },
    /// It does not hold such a key.
    #[error("the key file {} {source}", .path.display())]
    Malformed { path: PathBuf, source: KeyTextError },
    /// There is a public key that belongs to another seed.
    #[error("the key file {} holds another key: move it away, nodes may still need it", .path.display())]
    Taken { path: PathBuf },
    /// It can be neither read nor created.
    #[error("the key file {} can be neither read nor made", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The text is not a key of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one line, `{label}:` and 64 hex digits")]
pub struct KeyTextError {
    label: &'static str,
}

pub(crate) fn generate() -> KeyBytes {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(&mut *bytes).expect("the system has randomness");
    bytes
}

/// Writes a key as text. The `label` prevents that the two kinds of keys are mixed up.
pub(crate) fn encode(label: &str, bytes: &KeyBytes) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex::encode(bytes.as_slice()));
    Zeroizing::new(format!("{label}:{}\n", *digits))
}

/// Reads a key from text.
pub(crate) fn parse(label: &'static str, text: &str) -> Result<KeyBytes, KeyTextError> {
    let digits = text.trim_end().strip_prefix(label).and_then(|rest| rest.strip_prefix(':'));
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    let read = digits.map(|digits| hex::decode_to_slice(digits, &mut *bytes));
    if let Some(Ok(())) = read { Ok(bytes) } else { Err(KeyTextError { label }) }
}

/// Reads the key at `path`, which must exist.
pub(crate) fn load(label: &'static str, path: &Path) -> Result<KeyBytes, KeyFileError> {
    read(label, path)?.ok_or_else(|| KeyFileError::Missing { path: path.to_owned() })
}

/// Reads the key at `path`, or creates one. If several processes do this at once, all get the same key.
pub(crate) fn load_or_generate(label: &'static str, path: &Path) -> Result<KeyBytes, KeyFileError> {
    let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
    match read(label, path)? {
        Some(key) => Ok(key),
        None => {
            create(path, &encode(label, &generate()), OWNER).map_err(failed)?;
            read(label, path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
        }
    }
}

/// Reads a public key, which everybody may read, from the file at `path`.
pub(crate) fn load_public(label: &'static str, path: &Path) -> Result<KeyBytes, KeyFileError> {
    let mut text = String::with_capacity(256);
    match File::open(path).and_then(|file| file.take(256).read_to_string(&mut text)) {
        Ok(_) => parse(label, &text).map_err(|source| KeyFileError::Malformed { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(KeyFileError::Missing { path: path.to_owned() }),
        Err(source) => Err(KeyFileError::Io { path: path.to_owned(), source }),
    }
}

/// Writes a public key, readable by everybody. An existing file is left as it is, and must hold the same key.
pub(crate) fn save_public(label: &'static str, path: &Path, bytes: &KeyBytes) -> Result<(), KeyFileError> {
    let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
    create(path, &encode(label, bytes), EVERYBODY).map_err(failed)?;
    if *load_public(label, path)? == **bytes { Ok(()) } else { Err(KeyFileError::Taken { path: path.to_owned() }) }
}

fn read(label: &'static str, path: &Path) -> Result<Option<KeyBytes>, KeyFileError> {
    let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(256));
    (&mut file).take(256).read_to_string(&mut text).map_err(failed)?;
    parse(label, &text).map(Some).map_err(|source| KeyFileError::Malformed { path: path.to_owned(), source })
}

/// Creates the file completely or not at all, and leaves an existing one alone.
fn create(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".key-{}", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(OWNER).open(&temporary)?;
        // This holds whatever the process's umask says.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let removed = fs::remove_file(&temporary);
    written.and(removed)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "entrepot-test-key";

    #[test]
    fn a_key_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| load_or_generate(LABEL, &path).unwrap())).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| **key == *keys[0]));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        load_or_generate(LABEL, &path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = load_or_generate(LABEL, &path).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_with_something_else_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, &encode("entrepot-other-key", &generate()), OWNER).unwrap();
        let error = load_or_generate(LABEL, &path).unwrap_err();
        assert!(matches!(error, KeyFileError::Malformed { .. }));
        assert!(error.to_string().contains("`entrepot-test-key:` and 64 hex digits"), "{error}");
        assert!(fs::read_to_string(&path).unwrap().starts_with("entrepot-other-key:"));
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = load_or_generate(LABEL, &folder.path().join("none/key")).unwrap_err();
        assert!(matches!(error, KeyFileError::Io { .. }));
    }

    #[test]
    fn a_program_that_serves_makes_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for error in [load(LABEL, &path).unwrap_err(), load_public(LABEL, &path).unwrap_err()] {
            assert!(matches!(error, KeyFileError::Missing { .. }));
            assert!(error.to_string().contains("`entrepot keys generate`"), "{error}");
        }
        assert!(!path.exists());
        let key = load_or_generate(LABEL, &path).unwrap();
        assert_eq!(*load(LABEL, &path).unwrap(), *key);
    }

    #[test]
    fn a_public_key_is_for_everybody_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pub");
        let (key, other) = (generate(), generate());
        for _ in 0..2 {
            save_public(LABEL, &path, &key).unwrap();
        }
        assert_eq!(*load_public(LABEL, &path).unwrap(), *key);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o644);
        assert!(matches!(save_public(LABEL, &path, &other), Err(KeyFileError::Taken { .. })));
        assert_eq!(*load_public(LABEL, &path).unwrap(), *key);
    }

    #[test]
    fn text_leads_back_to_the_key() {
        let key = generate();
        assert_eq!(**parse(LABEL, &encode(LABEL, &key)).as_ref().unwrap(), *key);
        for text in ["", "entrepot-test-key", "entrepot-test-key:", "entrepot-test-key:00ff"] {
            assert!(parse(LABEL, text).is_err(), "{text}");
        }
    }
}
