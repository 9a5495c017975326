//! Recorded lists of upstreams, and cached referrers.

use entrepot_domain::{Digest, Referrer};
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, ListRecord, ReferrerRecord};
use entrepot_store::{Entry, Error, Key};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Live, Reads, Repositories};
use crate::config::limits;
use crate::control::FillFrom;
use crate::memory::Record;

impl Repositories {
    /// The list at `key`, if `fill` may use it.
    pub(crate) async fn read_list(&self, key: &Key, fill: &FillFrom) -> Result<Option<ListRecord>, Error> {
        let record = self.ask(Reads::Store, &Record::<ListRecord>::mendable(key.clone())).await?;
        Ok(record.filter(|record| fill.provenance().covers(Some(record.rule_uid), Some(&record.origin))))
    }

    /// Writes a list. The existing record is not read for that, since it may have 16 MiB; if somebody else writes at
    /// the same moment, their list is as good.
    pub(crate) async fn write_list(&self, key: &Key, record: &ListRecord) -> Result<(), Error> {
        self.store.put(key, records::encode(record)).await.map(drop)
    }

    /// The cached manifests that refer to `subject`, in the order of their digests, without those that are useless to
    /// what fills the repository now.
    pub(crate) async fn cached_referrers(
        &self,
        live: &Live,
        subject: &Digest,
        fill: Option<&FillFrom>,
    ) -> Result<Vec<Referrer>, Error> {
        let prefix = layout::referrers_prefix(&live.name, live.record.incarnation, subject);
        let entries = self.store.list(&prefix, None, limits::REFERRERS).await?;
        let found = stream::iter(entries).map(|Entry { key, .. }| async move {
            let Some(Parsed::Referrer { digest, .. }) = layout::parse(&key) else { return Ok(None) };
            // A manifest that was deleted since no longer counts as a referrer.
            if self.manifest_link(live, &digest, fill).await?.is_none() {
                return Ok(None);
            }
            let record = records::read_mendable::<ReferrerRecord>(&*self.store, &key).await?.record();
            Ok::<_, Error>(record.and_then(|record| Referrer::read(&record.descriptor).ok()))
        });
        found.buffered(limits::TAG_READS).try_filter_map(async |found| Ok(found)).try_collect().await
    }
}
