//! The first administrator: from the key that the operator set, or generated once.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use entrepot_domain::{AccessKeyId, Network, ResourceId, Secret};
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::snapshot::access_key_purpose;
use entrepot_trust::Login;
use entrepot_trust::access_key::{
    self, AccessKeyHash, ChosenSecretError, PairError, check_chosen, check_length, generate_key_id, generate_secret,
    seal_secret,
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::db::access_keys::{AccessKey, State};
use crate::db::principals::Principal;
use crate::db::{self, Tx, access_keys, principals};
use crate::error::ApiError;
use crate::plane::{FirstKey, Plane};

/// The default name of the first administrator.
const FIRST: &str = "admin";
/// How often another control plane may be faster in setting up the same key.
const ATTEMPTS: usize = 5;

/// Why the bootstrap key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BootstrapKeyError {
    /// Not `<key id>:<secret>`.
    #[error("ENTREPOT_BOOTSTRAP_KEY {0}")]
    Pair(#[from] PairError),
    /// The secret is too short or easy to guess.
    #[error("ENTREPOT_BOOTSTRAP_KEY: {0}")]
    Secret(#[from] ChosenSecretError),
}

/// Why the first administrator could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Key(#[from] BootstrapKeyError),
    #[error("the first administrator cannot be set up")]
    Change(#[from] ApiError),
    #[error(
        "nobody can administer this registry yet: set ENTREPOT_BOOTSTRAP_KEY=<key id>:<secret> (or ENTREPOT_BOOTSTRAP_KEY_FILE), or api.first_key_file, where a generated key is then written to"
    )]
    Nobody,
    #[error("the first administrator's key cannot be written to `{}` (api.first_key_file)", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn may_retry(&self) -> bool {
        match self {
            Self::Key(_) | Self::Nobody | Self::File { .. } => false,
            Self::Change(error) => error.may_retry(),
        }
    }
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        Self::Change(error.into())
    }
}

/// Sets up the bootstrap key, or creates a first administrator if there is none.
pub(crate) async fn run(plane: &Plane, key: Option<&Secret<String>>, first_key: &FirstKey) -> Result<(), Error> {
    let Some(key) = key else { return generate(plane, first_key).await };
    let (key_id, secret) = access_key::parse_pair(key.expose()).map_err(BootstrapKeyError::from)?;
    check_length(&secret).map_err(BootstrapKeyError::from)?;
    for _ in 0..ATTEMPTS {
        if make_true(plane, &key_id, &secret).await? {
            return Ok(());
        }
    }
    Err(ApiError::Contended(None).into())
}

/// Sets up a key; `false` if it was changed meanwhile, for example by another control plane that is starting.
async fn make_true(plane: &Plane, id: &AccessKeyId, secret: &Secret<String>) -> Result<bool, Error> {
    let key_id = id.as_str();
    let principal_id: ResourceId =
        key_id.to_ascii_lowercase().parse().map_err(|_| BootstrapKeyError::Pair(PairError))?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("look_for_bootstrap_key").await?;
    let stored = access_keys::get(&tx, key_id).await?;
    let principal = principals::get(&tx, &principal_id).await?;
    drop(tx);
    if stored.as_ref().is_some_and(|key| key.state == State::Revoked) {
        warn!(
            key.id = key_id,
            "ENTREPOT_BOOTSTRAP_KEY holds a key that was revoked, which it stays; choose another id"
        );
        return Ok(true);
    }
    if let (Some(key), Some(principal)) = (&stored, &principal) {
        let is_its_key = key.principal_uid == Some(principal.uid);
        let is_administrator = principal.permission_set.known() == Some(PermissionSet::Administrator);
        if is_its_key && is_administrator && holds(plane, id, key, secret).await {
            if let Err(why) = check_chosen(id, secret) {
                warn!(key.id = key_id, "the key of ENTREPOT_BOOTSTRAP_KEY should be exchanged: {why}");
            }
            return Ok(true);
        }
    }
    check_chosen(id, secret).map_err(BootstrapKeyError::from)?;

    // Hashing is slow on purpose, so it comes before any lock.
    let hash = access_key::hash_chosen(secret).await;
    let (tx, _) = plane.begin_change(&mut connection, "make_bootstrap_key_true").await?;
    let current = access_keys::get(&tx, key_id).await?;
    let same = |key: &AccessKey| (key.state, key.principal_uid, key.sealed_hash.clone());
    if current.as_ref().map(same) != stored.as_ref().map(same) {
        return Ok(false);
    }
    put_administrator(plane, &tx, principal_id, id, Stored { hash, sealed_secret: None }).await?;
    tx.commit().await?;
    info!(key.id = key_id, "set up the key of ENTREPOT_BOOTSTRAP_KEY");
    Ok(true)
}

/// Whether `secret` belongs to a stored key.
async fn holds(plane: &Plane, id: &AccessKeyId, key: &AccessKey, secret: &Secret<String>) -> bool {
    let hash = plane.cluster_key.unseal(&access_key_purpose(&key.key_id), &key.sealed_hash).ok();
    match hash.and_then(|bytes| AccessKeyHash::decode(bytes.expose()).ok()) {
        Some(hash) => {
            let login = Login { key_id: id, secret: secret.expose(), from: Network::LOOPBACK };
            plane.secrets.verify(login, Some(&hash)).await == Ok(true)
        }
        None => false,
    }
}

/// Creates an administrator with a generated key, if there is no administrator.
async fn generate(plane: &Plane, first_key: &FirstKey) -> Result<(), Error> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("look_for_administrator").await?;
    let exists = principals::count_administrator_keys(&tx, None, None).await? > 0;
    drop(tx);
    if exists {
        return Ok(());
    }
    let FirstKey::File(path) = first_key else { return Err(Error::Nobody) };
    let (tx, _) = plane.begin_change(&mut connection, "make_first_administrator").await?;
    // Another control plane may have been faster.
    if principals::count_administrator_keys(&tx, None, None).await? > 0 {
        return Ok(());
    }
    let id = FIRST.parse().expect("a legal id");
    let (key_id, secret) = (generate_key_id(), generate_secret());
    let sealed_secret = Some(seal_secret(&plane.cluster_key, &key_id, &secret));
    let stored = Stored { hash: access_key::hash_generated(&secret), sealed_secret };
    put_administrator(plane, &tx, id, &key_id, stored).await?;
    let pair = Secret::new(format!("{key_id}:{}", secret.expose()));
    // The file is written first: a key that works but was never shown would lock everybody out.
    write(path, &pair).map_err(|source| Error::File { path: path.clone(), source })?;
    tx.commit().await?;
    info!(key.id = %key_id, "wrote the first administrator's key to `{}`", path.display());
    Ok(())
}

/// Writes a key to a file that only its owner can read. An existing file belongs to an administrator that no longer
/// exists.
fn write(path: &Path, pair: &Secret<String>) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) | Ok(()) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{}", pair.expose())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// The stored form of a secret; the secret itself is kept only if it was generated.
struct Stored {
    hash: AccessKeyHash,
    sealed_secret: Option<Vec<u8>>,
}

async fn put_administrator(
    plane: &Plane,
    tx: &Tx<'_>,
    id: ResourceId,
    key_id: &AccessKeyId,
    stored: Stored,
) -> Result<(), db::Error> {
    let now = plane.clock.now();
    let uid = principals::get(tx, &id).await?.map_or_else(Uuid::now_v7, |principal| principal.uid);
    let permission_set = PermissionSet::Administrator.into();
    let principal = Principal { uid, id, permission_set, minimum_reader: 0, create_time: now };
    principals::put(tx, &principal).await?;
    let key = AccessKey {
        key_id: key_id.to_string(),
        principal_uid: Some(uid),
        sealed_hash: plane.cluster_key.seal(&access_key_purpose(key_id.as_str()), &stored.hash.encode()),
        sealed_secret: stored.sealed_secret,
        state: State::Active,
        create_time: now,
    };
    access_keys::put(tx, &key).await
}
