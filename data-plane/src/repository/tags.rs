//! Tags of repositories: what they mean here, and what their upstreams say that they mean.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_records::layout::{self, Parsed};
use entrepot_records::tags::FilledTag;
use entrepot_records::{self as records, Mendable, TagRecord};
use entrepot_store::{Error, Key};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Live, Repositories, carries_over, within_limit};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::peers::Forget;

impl Repositories {
    /// What a tag means, or that it is gone, as far as what fills the repository now may use it.
    pub(crate) async fn tag(
        &self,
        live: &Live,
        tag: &Tag,
        fill: Option<&FillFrom>,
    ) -> Result<Option<TagRecord>, Error> {
        let key = layout::tag(&live.name, live.record.incarnation, tag);
        let record = self.read::<TagRecord>(live, &key).await?;
        Ok(record.filter(|record| carries_over(record.rule_uid, record.origin.as_ref(), fill)))
    }

    /// At most `limit` tags that mean something, as far as what fills the repository now may use them, in byte order,
    /// those behind `last` only.
    pub(crate) async fn tags(
        &self,
        live: &Live,
        fill: Option<&FillFrom>,
        last: &str,
        limit: usize,
    ) -> Result<Vec<Tag>, Error> {
        let prefix = layout::tags_prefix(&live.name, live.record.incarnation);
        // What is no tag cannot be a key, and is compared with instead.
        let mut after = last.parse().ok().map(|last| layout::tag(&live.name, live.record.incarnation, &last));
        let mut tags = Vec::new();
        while tags.len() < limit {
            let entries = self.store.list(&prefix, after.as_ref(), limits::TAG_RECORDS).await?;
            let is_last = entries.len() < limits::TAG_RECORDS;
            after = entries.last().map(|entry| entry.key.clone());
            let parsed = entries.iter().filter_map(|entry| match layout::parse(&entry.key) {
                Some(Parsed::Tag { tag, .. }) if tag.as_str() > last => Some(tag),
                Some(_) | None => None,
            });
            let behind: Vec<Tag> = parsed.collect();
            let mut meant = stream::iter(behind)
                .map(|tag| async move {
                    let record = self.tag(live, &tag, fill).await?;
                    Ok::<_, Error>(record.and_then(|record| record.digest).map(|_| tag))
                })
                .buffered(limits::TAG_READS);
            while let Some(tag) = meant.try_next().await? {
                tags.extend(tag);
                if tags.len() == limit {
                    break;
                }
            }
            if is_last {
                break;
            }
        }
        Ok(tags)
    }

    /// Notes that the upstream, asked at `asked` or later, has confirmed what a tag means. Somebody else's change in between
    /// wins.
    pub(crate) async fn confirm_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        (digest, asked): (&Digest, DateTime<Utc>),
    ) -> Result<(), Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).confirm(&*self.store, self, digest, asked).await
    }

    /// Notes what an upstream that was asked at `validated` said that a tag means, unless it was asked since. The manifest is
    /// linked already. Somebody else's change in between wins.
    pub(crate) async fn note_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        digest: &Digest,
        validated: DateTime<Utc>,
    ) -> Result<(), Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).note(&*self.store, self, digest, validated).await
    }

    /// Has all nodes forget a tag's record, and waits until none of them relies on an old one. Returns how many did not
    /// confirm it.
    pub(crate) async fn settle_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<u32, PullError> {
        let live = within_limit(self.live(name)).await?;
        let tag = live.map(|live| layout::tag(name, live.record.incarnation, tag));
        // A node that has not heard yet that the repository was deleted, or created anew, looks for the tag in an earlier
        // incarnation.
        let keys: Vec<Key> = [layout::repository(name)].into_iter().chain(tag).collect();
        let forget = Forget::keys_of(&keys);
        self.peers.forget_here(&forget);
        let lagging = self.peers.tell(&forget).wait().await;
        Ok(u32::try_from(lagging).unwrap_or(u32::MAX))
    }

    /// The revision of a tag's record, whatever that says; `None` if there is none, or no such repository.
    pub(crate) async fn tag_revision(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<i64>, Error> {
        let Some(live) = self.live(name).await? else { return Ok(None) };
        let key = layout::tag(name, live.record.incarnation, tag);
        let record: Mendable<TagRecord> = records::read_mendable(&*self.store, &key).await?;
        Ok(record.record().map(|record| record.revision))
    }

    /// Moves a tag to the digest that its upstream, asked at that time, has said, if its record is still at revision `base`.
    /// Returns whether it was.
    pub(crate) async fn move_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        base: Option<i64>,
        said: (&Digest, DateTime<Utc>),
    ) -> Result<bool, Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).set_if(&*self.store, self, base, said).await
    }

    /// Notes that the upstream, asked at `asked` or later, no longer has a tag that meant `digest`. Somebody else's change in
    /// between wins.
    pub(crate) async fn drop_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        (digest, asked): (&Digest, DateTime<Utc>),
    ) -> Result<(), Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).forget(&*self.store, self, digest, asked).await
    }
}

fn filled_tag<'a>(live: &'a Live, from: &'a records::Provenance, tag: &'a Tag) -> FilledTag<'a> {
    FilledTag { name: &live.name, incarnation: live.record.incarnation, from, tag }
}
