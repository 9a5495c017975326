//! The folders of the embedded Postgres, and their owner.
//!
//! ```text
//! data        the database; absent until initdb has succeeded completely
//! data.new    an unfinished database, which nothing else uses
//! socket/     the socket, or a link to a folder with a shorter path
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use uuid::Uuid;

use super::Error;
use super::binaries::Binaries;
use crate::up::privileges::become_user;

/// The longest path of a socket that the kernel accepts.
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// The name that Postgres gives to its socket for its default port.
const SOCKET: &str = ".s.PGSQL.5432";
const ROOT: u32 = 0;
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// The user that runs Postgres.
#[derive(Clone, Debug)]
pub(super) enum Account {
    /// Our own user.
    Ourselves,
    /// Another user, since we are root.
    Other { name: String, uid: u32, gid: u32 },
}

/// The paths in use.
#[derive(Debug)]
pub(super) struct Layout {
    folder: PathBuf,
    pub(super) data: PathBuf,
    /// The unfinished database.
    pub(super) new_data: PathBuf,
    pub(super) socket_folder: PathBuf,
}

impl Account {
    /// Our own user, unless we are root; then the user `name`.
    pub(super) async fn of(name: &str) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        match (id_of("-u", name).await, id_of("-g", name).await) {
            (Some(uid), Some(gid)) if uid != 0 => Ok(Self::Other { name: name.to_owned(), uid, gid }),
            _ => Err(Error::NoUser(name.to_owned())),
        }
    }

    /// Switches this thread to this account from now on, so that its files and processes are handled with its rights
    /// and not with root's.
    pub(super) fn take_on(&self) -> Result<(), Error> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid, .. } => become_user(*uid, *gid)
                .map_err(|error| Error::Failed { what: "becoming Postgres' user", why: error.to_string() }),
        }
    }

    /// Makes `command` run as this account, in an empty environment and outside any folder that it may not enter.
    pub(super) fn apply(&self, command: &mut Command) {
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TZ", "UTC").current_dir("/");
        if let Self::Other { uid, gid, .. } = self {
            command.uid(*uid).gid(*gid);
        }
    }

    /// Fails if this account cannot run the programs or enter the folders; names the first folder that it cannot enter.
    pub(super) async fn check_can_use(&self, binaries: &Binaries, layout: &Layout) -> Result<(), Error> {
        let Self::Other { name, .. } = self else { return Ok(()) };
        let program = binaries.folder.join("postgres");
        if !self.can_start(&program, Path::new("/")).await {
            return Err(Error::NotRunnable { user: name.clone(), program });
        }
        if self.can_start(&program, &layout.folder).await {
            return Ok(());
        }
        let mut way: Vec<_> = layout.folder.ancestors().collect();
        way.reverse();
        for folder in way {
            if !self.can_start(&program, folder).await {
                return Err(Error::Barred { user: name.clone(), folder: folder.to_owned() });
            }
        }
        Ok(())
    }

    async fn can_start(&self, program: &Path, folder: &Path) -> bool {
        let mut command = Command::new(program);
        self.apply(&mut command);
        command.arg("--version").current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_LIMIT, command.output()).await;
        output.is_ok_and(|output| output.is_ok_and(|output| output.status.success()))
    }
}

/// The folder of the socket. It is elsewhere if its path here is too long for a socket.
fn socket_folder(folder: &Path) -> Result<PathBuf, Error> {
    let path = folder.join("socket");
    if let Ok(earlier) = fs::read_link(&path) {
        // Others can create folders there, too, but ours has the same owner as everything else.
        let owner = fs::metadata(folder).map_err(file("look at", folder))?.uid();
        if fs::symlink_metadata(&earlier).is_ok_and(|earlier| earlier.is_dir() && earlier.uid() == owner) {
            return Ok(earlier);
        }
        fs::remove_file(&path).map_err(file("remove", &path))?;
    }
    if path.join(SOCKET).as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        private_folder(&path)?;
        return Ok(path);
    }
    // Nobody can have created a folder with this name before us.
    let short = PathBuf::from(format!("/tmp/entrepot-{}", Uuid::new_v4().simple()));
    private_folder(&short)?;
    symlink(&short, &path).map_err(file("make the link", &path))?;
    Ok(short)
}

/// Creates a folder that only its owner may enter.
fn private_folder(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(file("make the folder", path)(error)),
    }
}

impl Layout {
    /// Creates missing folders around the database.
    pub(super) fn make(folder: &Path) -> Result<Self, Error> {
        private_folder(folder)?;
        // Postgres gets these paths, and has another working folder than we.
        let folder = fs::canonicalize(folder).map_err(file("find", folder))?;
        let socket_folder = socket_folder(&folder)?;
        Ok(Self { data: folder.join("data"), new_data: folder.join("data.new"), socket_folder, folder })
    }

    /// Gives the folders to `account`, and to nobody else. Root's group may pass through, so we need no privilege to
    /// connect.
    pub(super) fn hand_over(&self, account: &Account) -> Result<(), Error> {
        for path in [&self.folder, &self.socket_folder] {
            let metadata = fs::metadata(path).map_err(file("look at", path))?;
            let mode = metadata.mode() & 0o777;
            let protect = |mode| fs::set_permissions(path, Permissions::from_mode(mode)).map_err(file("protect", path));
            let give = |uid| chown(path, Some(uid), Some(ROOT)).map_err(file("change the owner of", path));
            match account {
                Account::Other { uid, .. } if (metadata.uid(), metadata.gid(), mode) != (*uid, ROOT, 0o710) => {
                    // Only the owner of a folder may change its mode.
                    give(ROOT)?;
                    protect(0o710)?;
                    give(*uid)?;
                }
                Account::Ourselves if mode != 0o700 && (metadata.gid(), mode) != (ROOT, 0o710) => protect(0o700)?,
                Account::Other { .. } | Account::Ourselves => {}
            }
        }
        Ok(())
    }

    /// Whether there is no database yet.
    pub(super) fn needs_initdb(&self) -> bool {
        !self.data.exists()
    }

    /// How to connect, in the form for tokio-postgres.
    pub(super) fn connection(&self) -> String {
        let folder = self.socket_folder.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
        format!("host='{folder}' user={} dbname=postgres", super::server::SUPERUSER)
    }
}

/// Adds the system's reason to an error.
pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File { what, path, why: error.to_string() }
}

/// A user's number according to the system, including directory services.
async fn id_of(flag: &str, name: &str) -> Option<u32> {
    let mut command = Command::new("id");
    command.args([flag, "--", name]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_LIMIT, command.output()).await.ok()?.ok()?;
    std::str::from_utf8(&output.stdout).ok()?.trim().parse().ok()
}
