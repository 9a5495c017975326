//! What becomes of objects that are damaged: nodes write down what they have read, and no pointer names an object any more
//! when two agree. What is decided is decided by [`DamageRecord`].
//!
//! What is read here comes from the store itself, past every cache: one node's copy may be right, and another's wrong.

use entrepot_domain::{Digest, Verifier};
use entrepot_records::layout::{self, Parsed};
use entrepot_records::pointer::{self, Found};
use entrepot_records::{self as records, DamageRecord, claim};
use entrepot_runtime::retry::jittered;
use entrepot_runtime::{Clock, chain};
use entrepot_store::{Error, Key, Store, Version};
use futures_util::TryStreamExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{DamageTimes, limits};
use crate::peers::Peers;

/// How often a record is written anew because another node was faster.
const TRIES: usize = 8;

/// How many bytes are hashed before others have their turn.
const HASHED_AT_ONCE: usize = 256 * 1024;

/// An object that this node has read wrong.
pub(crate) type DamagedObject = (Key, Digest);

/// Looks after damaged objects.
pub(crate) struct Aside {
    pub(crate) store: Store,
    pub(crate) peers: Peers,
    pub(crate) clock: Clock,
    pub(crate) times: DamageTimes,
    /// What this node has found.
    pub(crate) told: mpsc::Receiver<DamagedObject>,
}

impl Aside {
    /// Does so until the node stops.
    pub(crate) async fn work(mut self, stopping: CancellationToken) {
        let mut behind = None;
        let work = async {
            loop {
                tokio::select! {
                    Some((object, digest)) = self.told.recv() => self.write_down(&object, &digest).await,
                    () = tokio::time::sleep(jittered(self.times.look)) => behind = self.look(behind).await,
                }
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// Writes down that this node has read an object wrong.
    async fn write_down(&self, object: &Key, digest: &Digest) {
        let Some(Parsed::Content { object: id }) = layout::parse(object) else { return };
        let key = layout::damage(id);
        for _ in 0..TRIES {
            let written = async {
                let before = records::read::<DamageRecord>(&*self.store, &key).await?;
                let known = before.as_ref().map(|(record, _)| record.clone());
                let mut record = known.unwrap_or_else(|| DamageRecord::new(digest.clone(), self.clock.now()));
                record.note(self.peers.id().as_str(), false);
                self.settle((&key, object), before, record).await
            };
            match within_limit(written).await {
                Err(error) if error.is_conflict() => {}
                done => return told(&key, done),
            }
        }
    }

    /// Looks at what nodes have written down, behind this key; says where to go on.
    async fn look(&self, behind: Option<Key>) -> Option<Key> {
        let prefix = layout::damages_prefix();
        let listed = self.store.list(&prefix, behind.as_ref(), limits::DAMAGES);
        let entries = within_limit(listed).await.unwrap_or_default();
        for entry in &entries {
            let Some(Parsed::Damage { object }) = layout::parse(&entry.key) else { continue };
            match self.look_at((&entry.key, &layout::content(object))).await {
                // Another node was faster.
                Err(error) if error.is_conflict() => {}
                done => told(&entry.key, done),
            }
        }
        entries.into_iter().nth(limits::DAMAGES - 1).map(|last| last.key)
    }

    async fn look_at(&self, (key, object): (&Key, &Key)) -> Result<(), Error> {
        let read = records::read::<DamageRecord>(&*self.store, key);
        let Some((before, version)) = within_limit(read).await? else { return Ok(()) };
        if before.is_over(self.clock.now(), self.times.kept) {
            let is_right = self.is_right(object, &before.digest).await?;
            return within_limit(self.forget((key, object), &before.digest, is_right)).await;
        }
        let mut record = before.clone();
        let is_wanted = record.wants_word_of(self.peers.id().as_str());
        if is_wanted && within_limit(self.is_named(object, &record.digest)).await? {
            let is_right = self.is_right(object, &record.digest).await?;
            record.note(self.peers.id().as_str(), is_right);
            if is_right {
                let others = record.wrong_for.iter().map(String::as_str).collect::<Vec<_>>().join("`, `");
                warn!(
                    content.digest = %record.digest,
                    "the object `{object}` is right here, and was damaged for `{others}`: look at the memory and the disks there"
                );
            }
        }
        within_limit(self.settle((key, object), Some((before, version)), record)).await
    }

    /// Writes what is known now. Where nodes agree, no pointer names the object any more.
    async fn settle(
        &self,
        (key, object): (&Key, &Key),
        before: Option<(DamageRecord, Version)>,
        mut record: DamageRecord,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let mut is_named = self.is_named(object, &record.digest).await?;
        if is_named && record.is_agreed(self.peers.are_alone()) {
            error!(
                content.digest = %record.digest,
                "the object `{object}` of `{}` is damaged, and is set aside", record.digest
            );
            claim::disown(&*self.store, &record.digest, object, now).await?;
            is_named = self.is_named(object, &record.digest).await?;
        }
        record.set_aside_time = if is_named { None } else { record.set_aside_time.or(Some(now)) };
        match before {
            Some((before, _)) if before == record => Ok(()),
            before => records::replace(&*self.store, key, before.as_ref().map(|(_, version)| version), &record)
                .await
                .map(drop),
        }
    }

    /// Removes what was kept for long enough, if no pointer names it and it is not right again; and the record of it in any
    /// case.
    async fn forget(&self, (key, object): (&Key, &Key), digest: &Digest, is_right: bool) -> Result<(), Error> {
        if !is_right && !self.is_named(object, digest).await? {
            self.store.delete(object).await?;
            info!(content.digest = %digest, "the damaged object `{object}` was kept for long enough, and is gone");
        }
        self.store.delete(key).await
    }

    /// Whether readers of the digest may be sent to the object, as far as can be known.
    async fn is_named(&self, object: &Key, digest: &Digest) -> Result<bool, Error> {
        Ok(match pointer::read(&*self.store, digest).await? {
            // Then links lead there.
            Found::Absent | Found::Unreadable(_) => true,
            Found::Record(read) => match read.record.state.known() {
                Some(_) => read.record.content().is_some_and(|content| content.object == *object),
                None => true,
            },
        })
    }

    /// Whether the store has the content in an object; what is wrong or missing is read twice.
    async fn is_right(&self, object: &Key, digest: &Digest) -> Result<bool, Error> {
        for _ in 0..2 {
            let reading = timeout(limits::DAMAGED_READ, self.hashes_to(object, digest));
            if reading.await.map_err(|slow| Error::Away(slow.into()))?? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn hashes_to(&self, object: &Key, digest: &Digest) -> Result<bool, Error> {
        let Some(size_bytes) = self.store.head(object).await? else { return Ok(false) };
        let mut verifier = Verifier::new(digest.clone());
        if size_bytes > 0 {
            let Some(mut bytes) = self.store.read(object, 0..size_bytes, None).await? else { return Ok(false) };
            while let Some(chunk) = bytes.try_next().await? {
                for part in chunk.chunks(HASHED_AT_ONCE) {
                    verifier.update(part);
                    // There is no hurry, and others wait.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(verifier.finish())
    }
}

async fn within_limit<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(limits::STORE, work).await.map_err(|slow| Error::Away(slow.into()))?
}

fn told(key: &Key, done: Result<(), Error>) {
    if let Err(problem) = done {
        warn!(error = %chain(&problem), "`{key}` is left as it is for now");
    }
}
