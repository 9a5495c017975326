//! Identified callers. What a credential stands for is remembered until the configuration changes; no secret is kept.

use std::collections::HashMap;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::snapshot::access_key_purpose;
use entrepot_runtime::chain;
use entrepot_trust::cluster_key::UnsealError;
use entrepot_trust::{AccessKeyHash, ClusterKey, Login, NotChecked, SecretVerifier};
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use crate::db::access_keys::{self, AccessKey};
use crate::db::principals::Principal;
use crate::db::{self, Db};
use crate::error::{ApiError, LoginFault};
use crate::snapshot::Version;

/// How many sessions are remembered.
const REMEMBERED: usize = 10_000;
/// How long a session is trusted while no change is heard of. This limits how long a revoked key still works here if
/// the news from another control plane does not arrive.
const TRUSTED_FOR: Duration = Duration::from_secs(5);

/// A caller whose identity is proven.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) caller: Caller,
    principal: ResourceId,
    /// `None` is a set of another release, which grants nothing here.
    permission_set: Option<PermissionSet>,
    /// The hash of the key's secret at that time. A key with another secret counts as another key.
    sealed_hash: Vec<u8>,
    revision: Revision,
    confirm_time: Instant,
}

/// A principal, and the key that it has used.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) principal_uid: Uuid,
    pub(crate) key_id: String,
}

/// What a call requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Changing things, and reading what only administrators may read.
    Administer,
    /// Reading what can be pulled, and what belongs to the caller.
    Read,
}

/// A state of the configuration, as far as it is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Revision {
    published: Option<Version>,
    /// How many changes this control plane has made. They may not be published yet.
    own_changes: u64,
}

/// The sessions of this control plane.
pub(crate) struct Sessions {
    db: Db,
    cluster_key: ClusterKey,
    secrets: SecretVerifier,
    /// Private to this process, so that remembered fingerprints are useless to somebody who reads its memory later.
    salt: [u8; 32],
    memory: Mutex<Memory>,
}

/// The credentials that were identified in one revision.
#[derive(Default)]
struct Memory {
    revision: Revision,
    sessions: HashMap<[u8; 32], Session>,
}

impl Permission {
    fn is_in(self, set: PermissionSet) -> bool {
        match (self, set) {
            (Self::Administer | Self::Read, PermissionSet::Administrator) | (Self::Read, PermissionSet::Puller) => true,
            (Self::Administer, PermissionSet::Puller) => false,
        }
    }
}

impl Session {
    /// # Errors
    /// [`ApiError::Denied`] if the caller lacks `permission`.
    pub(crate) fn require(&self, permission: Permission) -> Result<(), ApiError> {
        if self.permission_set.is_some_and(|set| permission.is_in(set)) {
            return Ok(());
        }
        Err(ApiError::Denied { principal: format!("principals/{}", self.principal) })
    }

    fn is_current(&self, revision: Revision) -> bool {
        self.revision == revision && self.confirm_time.elapsed() < TRUSTED_FOR
    }
}

impl Sessions {
    pub(crate) fn new(db: Db, cluster_key: ClusterKey, secrets: SecretVerifier) -> Self {
        let mut salt = [0; 32];
        salt[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        salt[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Self { db, cluster_key, secrets, salt, memory: Mutex::default() }
    }

    /// Identifies the caller of `login`. `published` is the currently published configuration: the database is asked
    /// once for each version of it.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`] if nobody has this login.
    pub(crate) async fn identify(&self, published: Option<Version>, login: Login<'_>) -> Result<Session, ApiError> {
        let key_id = login.key_id.as_str();
        let fingerprint = self.fingerprint(key_id, login.secret);
        // Read before the database is asked: an answer for an earlier revision must not count for a later one.
        let revision = {
            let mut memory = self.lock();
            let revision = memory.enter(published);
            if let Some(session) = memory.sessions.get(&fingerprint).filter(|session| session.is_current(revision)) {
                return Ok(session.clone());
            }
            revision
        };
        let found = self.usable(key_id).await?;
        let hash = found.as_ref().map(|(key, _)| self.hash(key)).transpose()?;
        let is_right = self.secrets.verify(login, hash.as_ref()).await.map_err(|why| match why {
            NotChecked::TooMany { retry_after } => ApiError::TooManyAttempts { retry_after },
            NotChecked::Busy => ApiError::TooManyAttempts { retry_after: Duration::from_secs(1) },
        })?;
        let wrong = ApiError::Unauthenticated(LoginFault::Wrong);
        let (key, principal) = found.filter(|_| is_right).ok_or(wrong)?;
        let session = Session {
            caller: Caller { principal_uid: principal.uid, key_id: key.key_id },
            principal: principal.id,
            permission_set: principal.permission_set.known(),
            sealed_hash: key.sealed_hash,
            revision,
            confirm_time: Instant::now(),
        };
        self.lock().keep(fingerprint, &session);
        Ok(session)
    }

    /// The stored hash of a key's secret.
    fn hash(&self, key: &AccessKey) -> Result<AccessKeyHash, ApiError> {
        let key_id = key.key_id.as_str();
        let hash = match self.cluster_key.unseal(&access_key_purpose(key_id), &key.sealed_hash) {
            Err(UnsealError::Refused) => return Err(ApiError::Internal(UnsealError::Refused.into())),
            // The form of another release: nobody can log in with it here.
            Err(error @ UnsealError::Malformed) => Err(chain(&error).to_string()),
            Ok(hash) => AccessKeyHash::decode(hash.expose()).map_err(|error| chain(&error).to_string()),
        };
        hash.map_err(|why| {
            warn!(key.id = key_id, "refused the key `{key_id}`, which is of another release: {why}");
            ApiError::Unauthenticated(LoginFault::Wrong)
        })
    }

    /// Checks that a session is still valid, for a long-running stream. Nothing is read while nothing has changed.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`] if its key was revoked or exchanged since. Other errors mean that this is not
    /// known.
    pub(crate) async fn confirm(&self, published: Option<Version>, session: &mut Session) -> Result<(), ApiError> {
        let revision = self.lock().enter(published);
        if session.is_current(revision) {
            return Ok(());
        }
        let found = self.usable(&session.caller.key_id).await?;
        let is_same = |(key, principal): &(AccessKey, Principal)| {
            principal.uid == session.caller.principal_uid && key.sealed_hash == session.sealed_hash
        };
        let found = found.filter(is_same);
        let (_, principal) = found.ok_or(ApiError::Unauthenticated(LoginFault::Wrong))?;
        session.permission_set = principal.permission_set.known();
        (session.revision, session.confirm_time) = (revision, Instant::now());
        Ok(())
    }

    /// Forgets all sessions, since this control plane has changed the configuration.
    pub(crate) fn forget(&self) {
        let mut memory = self.lock();
        memory.revision.own_changes += 1;
        memory.sessions.clear();
    }

    async fn usable(&self, key_id: &str) -> Result<Option<(AccessKey, Principal)>, db::Error> {
        let mut connection = self.db.connect().await?;
        let tx = connection.begin("find_caller").await?;
        access_keys::usable(&tx, key_id).await
    }

    fn fingerprint(&self, key_id: &str, secret: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.salt);
        hasher.update((key_id.len() as u64).to_be_bytes());
        hasher.update(key_id);
        hasher.update(secret);
        hasher.finalize().into()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock()
    }
}

impl Memory {
    /// Forgets all sessions if another version is published than before. Returns the current revision.
    fn enter(&mut self, published: Option<Version>) -> Revision {
        if self.revision.published != published {
            self.revision.published = published;
            self.sessions.clear();
        }
        self.revision
    }

    /// Remembers a session, unless the configuration has changed since it was looked up.
    fn keep(&mut self, fingerprint: [u8; 32], session: &Session) {
        if session.revision != self.revision {
            return;
        }
        if self.sessions.len() >= REMEMBERED {
            self.sessions.clear();
        }
        self.sessions.insert(fingerprint, session.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(revision: Revision) -> Session {
        Session {
            caller: Caller { principal_uid: Uuid::nil(), key_id: "ak".to_owned() },
            principal: "ops".parse().unwrap(),
            permission_set: Some(PermissionSet::Puller),
            sealed_hash: Vec::new(),
            revision,
            confirm_time: Instant::now(),
        }
    }

    const fn at(revision: i64) -> Option<Version> {
        Some(Version { epoch: 1, revision })
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_remembered_in_its_revision_and_for_a_while_only() {
        let mut memory = Memory::default();
        let first = memory.enter(at(1));
        memory.keep([1; 32], &session(first));
        let again = memory.enter(at(1));
        assert!(memory.sessions[&[1; 32]].is_current(again));
        tokio::time::advance(TRUSTED_FOR).await;
        assert!(!memory.sessions[&[1; 32]].is_current(first), "it is too old");

        let second = memory.enter(at(2));
        assert!(memory.sessions.is_empty());
        assert!(!session(first).is_current(second));
        memory.keep([1; 32], &session(first));
        assert!(memory.sessions.is_empty(), "it was looked up before the change");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_sessions_are_remembered_than_the_limit() {
        let mut memory = Memory::default();
        let revision = memory.enter(at(1));
        for number in 0..=REMEMBERED {
            let mut fingerprint = [0; 32];
            fingerprint[..8].copy_from_slice(&number.to_be_bytes());
            memory.keep(fingerprint, &session(revision));
        }
        assert_eq!(memory.sessions.len(), 1);
    }

    #[test]
    fn pullers_may_not_administer() {
        let puller = session(Revision::default());
        assert!(puller.require(Permission::Read).is_ok());
        assert!(matches!(puller.require(Permission::Administer), Err(ApiError::Denied { .. })));
    }
}
