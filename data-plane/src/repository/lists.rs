//! What upstreams have listed, as the records have it, and what is cached and refers to something.

use entrepot_domain::{Digest, Referrer};
use entrepot_records::layout;
use entrepot_records::layout::Parsed;
use entrepot_records::{self as records, ListRecord, ReferrerRecord};
use entrepot_store::{Error, Key};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::{Live, Repositories, Verified};
use crate::config::limits;

impl Repositories {
    /// What was listed at `key`, as far as `origin` may use it.
    pub(crate) async fn listed(&self, key: &Key, origin: Uuid) -> Result<Option<ListRecord>, Error> {
        let record = records::read::<ListRecord>(&*self.store, key).await?.map(|(record, _)| record);
        Ok(record.filter(|record| record.origin == origin))
    }

    /// Writes what was listed. What is there is not read for that: it can have 16 MiB, and if somebody else writes at the same
    /// moment, theirs is as good.
    pub(crate) async fn write_list(&self, key: &Key, record: &ListRecord) -> Result<(), Error> {
        self.store.put(key, records::encode(record)).await.map(drop)
    }

    /// The cached manifests that refer to `subject`, in the order of their digests, as far as `origin` may use them.
    pub(crate) async fn cached_referrers(
        &self,
        live: &Live,
        subject: &Digest,
        origin: Option<Uuid>,
    ) -> Result<Vec<Referrer>, Error> {
        let prefix = layout::referrers_prefix(&live.name, live.record.incarnation, subject);
        let keys = self.store.list(&prefix, None, limits::REFERRERS).await?;
        let found = stream::iter(keys).map(|key| async move {
            let Some(Parsed::Referrer { digest, .. }) = layout::parse(&key) else { return Ok(None) };
            // What was deleted since refers to nothing any more.
            if self.manifest_link(live, &digest, origin).await?.is_none() {
                return Ok(None);
            }
            let record = records::read::<ReferrerRecord>(&*self.store, &key).await?;
            Ok::<_, Error>(record.and_then(|(record, _)| Referrer::read(&record.descriptor).ok()))
        });
        found.buffered(limits::TAG_READS).try_filter_map(async |found| Ok(found)).try_collect().await
    }

    /// Notes that a manifest refers to another one, if it does. The manifest's link is there already.
    pub(super) async fn note_referrer(
        &self,
        live: (&entrepot_domain::RepositoryName, Uuid),
        verified: &Verified,
    ) -> Result<(), Error> {
        let subject = verified.manifest.subject.as_ref().and_then(|subject| subject.digest.as_ref());
        let Some(subject) = subject else { return Ok(()) };
        let told = Referrer::of_manifest(&verified.digest, verified.manifest.media_type, &verified.bytes);
        let Ok(told) = told else { return Ok(()) };
        let (name, incarnation) = live;
        let key = layout::referrer(name, incarnation, subject, &verified.digest);
        // Whoever writes it writes the same.
        self.store.put(&key, records::encode(&ReferrerRecord { descriptor: told.descriptor.to_string() })).await?;
        Ok(())
    }
}
