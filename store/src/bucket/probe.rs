//! Tries out what we rely on, before a bucket is used.

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use super::client::Conditional;
use super::failure::Failure;
use super::limits::Tries;
use super::list::Order;
use super::{BucketStore, OpenError, keys, list};
use crate::{Abilities, BlobStore as _, Error, Key, Version};

/// How many writers race. SeaweedFS lets each loser wait a second for its lock, so more of them would delay every
/// start.
const RACERS: usize = 3;
/// How many leftovers of earlier probes are removed on the way.
const LEFT: usize = 30;
/// A probe that began this long ago has ended.
const OVER_SECONDS: u64 = 3600;

/// Finds out in which order the bucket lists and what else it can do, and refuses one that would lose writes.
pub(super) async fn run(store: &BucketStore, bucket: &str) -> Result<(Order, Abilities), OpenError> {
    let probe = Probe { store, bucket, id: Uuid::now_v7() };
    let found = probe.all().await;
    probe.tidy_up().await;
    found
}

/// The server at `endpoint` has an answer for anything.
#[derive(Debug, thiserror::Error)]
#[error("there is no object storage at `endpoint`: it has an object that nobody wrote")]
struct Invented;

struct Probe<'a> {
    store: &'a BucketStore,
    bucket: &'a str,
    id: Uuid,
}

impl Probe<'_> {
    async fn all(&self) -> Result<(Order, Abilities), OpenError> {
        // This also shows that a missing object is reported as missing, not as forbidden.
        if self.store.get(&self.key("absent")).await.map_err(|error| self.refusal(error))?.is_some() {
            return Err(OpenError::BadConfig { bucket: self.bucket.to_owned(), source: Box::new(Invented) });
        }
        let key = self.key("race");
        let created = self.race(&key, None, "several writers created the same object").await?;
        let replaced = self.race(&key, Some(&created), "several writers replaced the same object").await?;
        for (expected, what) in [
            (None, "an object was created a second time"),
            (Some(&created), "an object was replaced that had been replaced before"),
        ] {
            match self.store.replace_if(&key, expected, "late".into()).await {
                Ok(_) => return Err(self.ignores(what)),
                Err(Error::Conflict) => {}
                Err(error) => return Err(self.refusal(error)),
            }
        }
        self.delete(&key).await?;
        if self.store.replace_if(&key, Some(&replaced), "late".into()).await.is_ok() {
            return Err(self.ignores("an object was replaced that was not there"));
        }
        let deletes_if = self.deletes_if().await?;
        // A list that lags behind does not show its order.
        let order = self.order().await?;
        Ok((order.unwrap_or(Order::Bytes), Abilities { deletes_if, lists_at_once: order.is_some() }))
    }

    /// Whether the bucket supports deletes with a condition, and respects the condition.
    async fn deletes_if(&self) -> Result<bool, OpenError> {
        let key = self.key("deleted");
        let path = self.store.0.path(&key);
        let put =
            async |text: &'static str| self.store.put(&key, text.into()).await.map_err(|error| self.refusal(error));
        let old = put("old").await?;
        let new = put("new").await?;
        let delete = async |version| {
            // Any failure means that it does not support this.
            Tries::single().once(self.store.0.client.delete_if(&path, version)).await.ok().flatten()
        };
        let spares_others = delete(&old).await == Some(Conditional::NotSo) && self.is_there(&key).await?;
        let deletes = spares_others && delete(&new).await == Some(Conditional::Done) && !self.is_there(&key).await?;
        Ok(deletes)
    }

    async fn is_there(&self, key: &Key) -> Result<bool, OpenError> {
        Ok(self.store.head(key).await.map_err(|error| self.refusal(error))?.is_some())
    }

    /// Lets writers race for `key`. Exactly one of them must win.
    async fn race(&self, key: &Key, expected: Option<&Version>, what: &'static str) -> Result<Version, OpenError> {
        let racers = (0..RACERS).map(|racer| {
            let bytes = format!("{racer} {}", Uuid::new_v4());
            self.store.replace_if(key, expected, bytes.into())
        });
        let mut winner = None;
        for result in join_all(racers).await {
            match result {
                Ok(_) if winner.is_some() => return Err(self.ignores(what)),
                Ok(version) => winner = Some(version),
                Err(Error::Conflict) => {}
                Err(error) => return Err(self.refusal(error)),
            }
        }
        winner.ok_or_else(|| self.ignores("nobody could write a new object"))
    }

    /// The order in which the bucket lists; `None` if it does not list what was just written.
    async fn order(&self) -> Result<Option<Order>, OpenError> {
        // In byte order `-` comes before `/`; in folder order `a` comes before `a-`.
        let (in_folder, beside) = (self.key("a/1"), self.key("a-1"));
        for key in [&in_folder, &beside] {
            self.store.put(key, Bytes::new()).await.map_err(|error| self.refusal(error))?;
        }
        let prefix = keys::probe_prefix(self.id);
        let listed = list::raw(&self.store.0, &prefix).await.map_err(|failure| self.refusal(failure.into()))?;
        let at = |key: &Key| listed.iter().position(|listed| listed.key == *key);
        match (at(&in_folder), at(&beside)) {
            (Some(in_folder), Some(beside)) if beside < in_folder => Ok(Some(Order::Bytes)),
            (Some(_), Some(_)) => Ok(Some(Order::Folders)),
            _ => Ok(None),
        }
    }

    /// Removes what this probe wrote, and leftovers of earlier ones.
    async fn tidy_up(&self) {
        let began = |id: Uuid| id.get_timestamp().map_or(0, |time| time.to_unix().0);
        let Ok(left) = list::raw(&self.store.0, &keys::probes_prefix()).await else { return };
        let over = |key: &Key| {
            keys::probe_of(key).is_some_and(|probe| probe == self.id || began(probe) + OVER_SECONDS < began(self.id))
        };
        let deletes =
            left.iter().map(|entry| &entry.key).filter(|key| over(key)).take(LEFT).map(|key| self.store.delete(key));
        // The next probe tries again.
        let _ = join_all(deletes).await;
    }

    async fn delete(&self, key: &Key) -> Result<(), OpenError> {
        self.store.delete(key).await.map_err(|error| self.refusal(error))
    }

    fn key(&self, name: &str) -> Key {
        keys::probe(self.id, name)
    }

    fn ignores(&self, what: &'static str) -> OpenError {
        OpenError::IgnoresConditions { bucket: self.bucket.to_owned(), what }
    }

    fn refusal(&self, error: Error) -> OpenError {
        let bucket = self.bucket.to_owned();
        let Error::Away(source) = error else { return OpenError::Away { bucket, source: Box::new(error) } };
        match source.downcast_ref() {
            // If a write finds nothing, the bucket is missing.
            Some(Failure::NoBucket(_) | Failure::Absent) => OpenError::NoBucket { bucket, source },
            Some(Failure::Denied(_)) => OpenError::Denied { bucket, source },
            Some(Failure::Refused(_) | Failure::Garbled(_)) => OpenError::BadConfig { bucket, source },
            _ => OpenError::Away { bucket, source },
        }
    }
}
