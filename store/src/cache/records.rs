//! What the store last said of each record.

use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use moka::future::Cache;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;

use crate::{Key, Object, Version};

/// What an entry takes besides its key and bytes.
const ENTRY_BYTES: usize = 256;

/// Records that were read or written through this node, as far as there is memory for them.
#[derive(Debug)]
pub(super) struct Records {
    known: Cache<Key, Known>,
    next_ticket: AtomicU64,
}

/// Orders what is learnt: of two answers, the one that was asked for later is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Clone, Debug)]
struct Known {
    ticket: Ticket,
    /// `None` if it is known to be gone, or not known any more. That is no answer for anybody; it only keeps an older
    /// one from coming back.
    object: Option<Object>,
}

impl Records {
    pub(super) fn new(memory_bytes: u64) -> Self {
        let known = Cache::builder()
            .weigher(|key: &Key, known: &Known| {
                let held = known.object.as_ref().map_or(0, |object| object.bytes.len() + object.version.as_str().len());
                u32::try_from(ENTRY_BYTES + key.as_str().len() + held).unwrap_or(u32::MAX)
            })
            .max_capacity(memory_bytes)
            // Those that are pulled now, rather than those that were pulled often.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { known, next_ticket: AtomicU64::new(0) }
    }

    /// To be taken before the store is asked, or after it has written.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// What is remembered of a record.
    pub(super) async fn get(&self, key: &Key) -> Option<Object> {
        self.known.get(key).await?.object
    }

    /// Remembers what a record is.
    pub(super) async fn remember(&self, key: &Key, ticket: Ticket, bytes: &Bytes, version: &Version) {
        // A slice would keep alive all that it was cut from.
        let object = Object { bytes: Bytes::copy_from_slice(bytes), version: version.clone() };
        self.learn(key, Known { ticket, object: Some(object) }).await;
    }

    /// Forgets a record that is gone, or was changed in a way that is not known here.
    pub(super) async fn forget(&self, key: &Key, ticket: Ticket) {
        self.learn(key, Known { ticket, object: None }).await;
    }

    /// Forgets a record that the store does not have. Those that never were leave nothing here.
    pub(super) async fn forget_if_known(&self, key: &Key, ticket: Ticket) {
        if self.known.contains_key(key) {
            self.forget(key, ticket).await;
        }
    }

    /// How many entries there are, and how many bytes they take.
    pub(super) fn held(&self) -> (u64, u64) {
        (self.known.entry_count(), self.known.weighted_size())
    }

    async fn learn(&self, key: &Key, learnt: Known) {
        let decide = |entry: Option<moka::Entry<Key, Known>>| {
            let is_newer = entry.is_none_or(|entry| entry.value().ticket < learnt.ticket);
            ready(if is_newer { Op::Put(learnt) } else { Op::Nop })
        };
        self.known.entry_by_ref(key).and_compute_with(decide).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    async fn remember(records: &Records, text: &str, ticket: Ticket) {
        let text = text.to_owned();
        records.remember(&key("repositories/a/_x"), ticket, &text.clone().into(), &Version::new(text)).await;
    }

    async fn seen(records: &Records) -> Option<String> {
        records.get(&key("repositories/a/_x")).await.map(|object| object.version.as_str().to_owned())
    }

    #[tokio::test]
    async fn an_answer_that_was_asked_for_earlier_does_not_replace_a_later_one() {
        let records = Records::new(10_000);
        let (early, late) = (records.ticket(), records.ticket());
        remember(&records, "new", late).await;
        remember(&records, "old", early).await;
        assert_eq!(seen(&records).await.as_deref(), Some("new"));
        let (early, late) = (records.ticket(), records.ticket());
        records.forget(&key("repositories/a/_x"), late).await;
        remember(&records, "old", early).await;
        assert_eq!(seen(&records).await, None);
        remember(&records, "newer", records.ticket()).await;
        assert_eq!(seen(&records).await.as_deref(), Some("newer"));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_those_used_last_stay() {
        let records = Records::new(100_000);
        for number in 0..1000 {
            let key = key(&format!("repositories/{number}/_repository"));
            records.remember(&key, records.ticket(), &vec![0; 700].into(), &Version::new("v".to_owned())).await;
        }
        records.known.run_pending_tasks().await;
        let (count, bytes) = records.held();
        assert!(bytes <= 100_000 && count > 50, "{count} records take {bytes} bytes");
        assert!(records.get(&key("repositories/999/_repository")).await.is_some());
        assert!(records.get(&key("repositories/0/_repository")).await.is_none());
    }
}
