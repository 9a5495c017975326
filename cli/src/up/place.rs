//! A registry's files on this machine.
//!
//! ```text
//! cluster.key   seals secrets and signs tokens                       0600
//! snapshot.key  signs snapshots for nodes                            0600
//! first-key     of the administrator that the first start made        0600
//! node-id       the id of this node
//! store/        content, tags and links: the registry itself         0700
//! spool/        bytes of running fills                               0700
//! postgres/     the embedded database, which belongs to its user     0700
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrepot_control_plane as control_plane;
use entrepot_domain::{ResourceId, Secret};
use entrepot_records::check_layout;
use entrepot_runtime::chain;
use entrepot_store::{LocalStore, Store};
use entrepot_trust::{ClusterKey, SnapshotSigner};
use uuid::Uuid;

use super::postgres::{self, Postgres};
use crate::args::Environment;
use crate::error::Error;

/// How many connections to Postgres are kept.
const POOL_SIZE: usize = 16;

/// The folder, and the database.
#[derive(Debug, clap::Args)]
pub(crate) struct PlaceArgs {
    /// The folder for everything; /var/lib/entrepot for root, else ~/.local/share/entrepot.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// A Postgres of your own, as postgres://user@host/database, instead of the embedded one.
    #[arg(long, value_name = "URL", env = "ENTREPOT__POSTGRES__URL", hide_env_values = true, value_parser = secret)]
    database_url: Option<Secret<String>>,

    /// The user that runs the embedded Postgres if this is run as root.
    #[arg(long, value_name = "USER", default_value = postgres::DEFAULT_USER)]
    postgres_user: String,
}

/// An opened folder, which no other process uses now.
pub(crate) struct Place {
    pub(super) folder: PathBuf,
    pub(super) cluster_key: ClusterKey,
    pub(super) snapshot_signer: SnapshotSigner,
    pub(super) node_id: ResourceId,
    pub(crate) store: Store,
    /// The embedded Postgres, unless the operator has another one.
    pub(crate) postgres: Option<Postgres>,
    pub(crate) control: control_plane::Config,
}

impl PlaceArgs {
    /// Whether there were any files before.
    pub(super) fn exists(&self, environment: &Environment) -> Result<bool, Error> {
        Ok(self.folder(environment)?.join("store").exists())
    }

    fn folder(&self, environment: &Environment) -> Result<PathBuf, Error> {
        self.data_dir.clone().map_or_else(|| default_folder(environment), Ok)
    }

    /// Creates what is missing, and opens the folder; an embedded Postgres begins to start.
    pub(crate) async fn open(&self, environment: &Environment) -> Result<Place, Error> {
        let folder = self.folder(environment)?;
        let folder = std::path::absolute(&folder).map_err(cannot("find", &folder))?;
        make_data_folder(&folder)?;
        for name in ["store", "spool"] {
            make_folder(&folder.join(name), 0o700)?;
        }
        // This comes first, since it keeps a second process away from everything else.
        let store: Store = Arc::new(LocalStore::open(folder.join("store")).map_err(|error| failed(&error))?);
        check_layout(&*store).await.map_err(|error| failed(&error))?;
        let cluster_key = ClusterKey::load_or_generate(folder.join("cluster.key")).map_err(|error| failed(&error))?;
        let snapshot_signer =
            SnapshotSigner::load_or_generate(folder.join("snapshot.key")).map_err(|error| failed(&error))?;
        let node_id = load_or_generate_node_id(&folder.join("node-id"))?;
        let postgres = match &self.database_url {
            Some(_) => None,
            None => {
                let (user, path) = (self.postgres_user.clone(), environment.path.clone());
                let config = postgres::Config { folder: folder.join("postgres"), user, path };
                Some(Postgres::start(config).map_err(|error| failed(&error))?)
            }
        };
        let embedded = postgres.as_ref().map(|postgres| Secret::new(postgres.connection().to_owned()));
        let database = self.database_url.clone().or(embedded).unwrap_or_else(|| Secret::new(String::new()));
        let control = control_plane::Config::new(&database, POOL_SIZE)
            .map_err(|error| Error::Usage(format!("--database-url: {}", chain(&error))))?;
        Ok(Place { folder, cluster_key, snapshot_signer, node_id, store, postgres, control })
    }
}

fn default_folder(environment: &Environment) -> Result<PathBuf, Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/entrepot"));
    }
    let data_home = environment.data_home.clone().map(PathBuf::from).filter(|path| path.is_absolute());
    data_home
        .or_else(|| Some(PathBuf::from(environment.home.clone()?).join(".local/share")))
        .map(|parent| parent.join("entrepot"))
        .ok_or_else(|| Error::Usage("HOME is not set: say with --data-dir where to keep everything".to_owned()))
}

/// Creates the folder. If this is run as root, the user that runs Postgres must be able to pass through it.
fn make_data_folder(folder: &Path) -> Result<(), Error> {
    let is_root = rustix::process::geteuid().is_root();
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(cannot("make", parent))?;
    }
    make_folder(folder, if is_root { 0o711 } else { 0o700 })?;
    let mode = fs::metadata(folder).map_err(cannot("look at", folder))?.mode();
    if is_root && mode & 0o011 != 0o011 {
        fs::set_permissions(folder, Permissions::from_mode(mode & 0o7777 | 0o011))
            .map_err(cannot("let others pass through", folder))?;
    }
    Ok(())
}

fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(cannot("make", path)(error)),
    }
}

/// The id of this node, which is generated once.
fn load_or_generate_node_id(path: &Path) -> Result<ResourceId, Error> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|error| {
            Error::Failed(format!("`{}` is not a node's id ({error}): remove it to get a new one", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = format!("node-{}", Uuid::new_v4().simple());
            let new = path.with_extension("new");
            let written = fs::File::create(&new).and_then(|mut file| {
                writeln!(file, "{id}")?;
                file.sync_all()?;
                fs::rename(&new, path)
            });
            written.map_err(cannot("write", path))?;
            Ok(id.parse().expect("hex digits and a hyphen are an id"))
        }
        Err(error) => Err(cannot("read", path)(error)),
    }
}

fn secret(text: &str) -> Result<Secret<String>, std::convert::Infallible> {
    Ok(Secret::new(text.to_owned()))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Failed(chain(error).to_string())
}

fn cannot(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| {
        let remedy =
            if error.kind() == io::ErrorKind::PermissionDenied { "; choose another with --data-dir" } else { "" };
        Error::Failed(format!("cannot {what} `{}`: {error}{remedy}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_id_stays_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node-id");
        let id = load_or_generate_node_id(&path).unwrap();
        assert_eq!(load_or_generate_node_id(&path).unwrap(), id);
        fs::write(&path, "NOT AN ID").unwrap();
        assert!(load_or_generate_node_id(&path).unwrap_err().to_string().contains("remove it"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_says_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = make_data_folder(&file.path().join("below")).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
