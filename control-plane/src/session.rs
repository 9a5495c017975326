//! Who calls: what a credential was found to be, remembered until the configuration changes. No secret is kept.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use entrepot_domain::{AccessKeyId, ResourceId};
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::snapshot::access_key_purpose;
use entrepot_trust::{AccessKeyHash, ClusterKey, SecretVerifier};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use crate::db::access_keys::{self, AccessKey};
use crate::db::principals::Principal;
use crate::db::{self, Db};
use crate::error::{ApiError, LoginFault};
use crate::snapshot::Version;

/// How many sessions are remembered.
const REMEMBERED: usize = 10_000;
/// How long a session is taken for granted while nothing is heard of a change. This bounds for how long a key works here
/// that was revoked at another control plane whose news does not arrive.
const TRUSTED_FOR: Duration = Duration::from_secs(5);

/// A caller that has shown who it is.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) caller: Caller,
    principal: ResourceId,
    permission_set: PermissionSet,
    /// Of the key as it was found. A key whose secret was exchanged is another one.
    sealed_hash: Vec<u8>,
    revision: Revision,
    confirm_time: Instant,
}

/// A principal, and the key that it has shown.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) principal_uid: Uuid,
    pub(crate) key_id: String,
}

/// What a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// To change, and to see what only administrators see.
    Administer,
    /// To see what can be pulled, and what is one's own.
    Read,
}

/// The state of the configuration that something was found in, as far as it is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Revision {
    published: Option<Version>,
    /// How many changes this control plane has made, which may not be published yet.
    own_changes: u64,
}

/// The sessions of this control plane.
pub(crate) struct Sessions {
    db: Db,
    cluster_key: ClusterKey,
    secrets: SecretVerifier,
    /// Of this process alone: what is remembered is of no use to anybody who reads its memory later.
    salt: [u8; 32],
    memory: Mutex<Memory>,
}

/// What credentials were found to be in one revision.
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
    /// [`ApiError::Denied`] if the caller may not do what takes `permission`.
    pub(crate) fn require(&self, permission: Permission) -> Result<(), ApiError> {
        if permission.is_in(self.permission_set) {
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

    /// Who has the key `key_id` with this secret. `published` is the configuration that is published by now: the database
    /// is asked once for each.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`] if nobody has it.
    pub(crate) async fn identify(
        &self,
        published: Option<Version>,
        key_id: &AccessKeyId,
        secret: &str,
    ) -> Result<Session, ApiError> {
        let key_id = key_id.as_str();
        let fingerprint = self.fingerprint(key_id, secret);
        // Before the database is asked: what it says of an earlier revision must not count for a later one.
        let revision = {
            let mut memory = self.lock();
            let revision = memory.enter(published);
            if let Some(session) = memory.sessions.get(&fingerprint).filter(|session| session.is_current(revision)) {
                return Ok(session.clone());
            }
            revision
        };
        let wrong = ApiError::Unauthenticated(LoginFault::Wrong);
        let Some((key, principal)) = self.usable(key_id).await? else { return Err(wrong) };
        let hash = self.cluster_key.unseal(&access_key_purpose(key_id), &key.sealed_hash);
        let hash = hash.map_err(|error| ApiError::Internal(error.into()))?;
        let hash = AccessKeyHash::decode(hash.expose()).map_err(|error| ApiError::Internal(error.into()))?;
        match self.secrets.verify(key_id, secret, &hash).await {
            Ok(true) => {}
            Ok(false) => return Err(wrong),
            Err(error) => return Err(ApiError::TooManyAttempts { retry_after: error.retry_after }),
        }
        let session = Session {
            caller: Caller { principal_uid: principal.uid, key_id: key.key_id },
            principal: principal.id,
            permission_set: principal.permission_set,
            sealed_hash: key.sealed_hash,
            revision,
            confirm_time: Instant::now(),
        };
        self.lock().keep(fingerprint, &session);
        Ok(session)
    }

    /// Looks whether a session still holds, as for a stream that goes on. Asks nobody while nothing has changed.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`] if its key was revoked or exchanged since. Other errors say that it is not known.
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
        session.permission_set = principal.permission_set;
        (session.revision, session.confirm_time) = (revision, Instant::now());
        Ok(())
    }

    /// Forgets everybody: this control plane has changed the configuration.
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
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// Forgets everybody if something else is published than before; returns the revision now.
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
            permission_set: PermissionSet::Puller,
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
