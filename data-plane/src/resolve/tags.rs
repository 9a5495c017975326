//! Lists of tags: the upstream's view, remembered for as long as the rule says, and what is cached where there is none.
//!
//! A list is remembered by each node for itself, and asked for once by all of a node's clients that want it.

use std::ops::Range;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::Remedy;
use entrepot_domain::{RepositoryName, Tag};
use entrepot_runtime::Tasks;
use moka::future::Cache;
use uuid::Uuid;

use super::refusals::Question;
use super::tag::why;
use super::{Outcome, Resolver, asking, failure};
use crate::config::limits;
use crate::control::{FillFrom, Place};
use crate::error::PullError;
use crate::flight::Flights;
use crate::http::route::Asked;
use crate::http::tags::TagPage;
use crate::inspect::trail;
use crate::repository::within_limit;

/// One page of a repository's tags.
#[derive(Clone, Debug)]
pub(crate) struct TagList {
    pub(crate) tags: Vec<Tag>,
    /// Whether there are more behind it.
    pub(crate) has_more: bool,
    pub(crate) outcome: Outcome,
    /// When the upstream gave the list; `None` if it is what is cached here.
    pub(crate) listed: Option<DateTime<Utc>>,
}

/// The lists that this node remembers. Clones share them.
#[derive(Clone)]
pub(super) struct TagLists {
    known: Cache<Key, Known>,
    flights: Arc<Flights<Key, Result<Known, PullError>>>,
}

/// The origin, and the repository.
type Key = (Uuid, RepositoryName);

/// All that an upstream has listed.
#[derive(Clone)]
struct Known {
    /// In byte order.
    tags: Arc<[Tag]>,
    listed: DateTime<Utc>,
    /// What came of asking for it again, and until when that is not repeated.
    in_vain: Option<super::InVain>,
}

impl TagLists {
    pub(super) fn new(tasks: Tasks) -> Self {
        let known = Cache::builder().max_capacity(limits::TAG_LIST_BYTES).weigher(|_, known: &Known| known.bytes());
        Self { known: known.build(), flights: Arc::new(Flights::new(tasks)) }
    }
}

impl Resolver {
    /// One page of the tags that `place` has.
    pub(crate) async fn tags(&self, place: &Place, page: &TagPage, asker: Option<Uuid>) -> Result<TagList, PullError> {
        let Some(fill) = &place.fill else {
            trail::because(|| "no rule covers this name: the tags that are cached are listed".to_owned());
            return self.cached_tags(place, page, Outcome::Hit).await?.ok_or(PullError::NoRule);
        };
        let key = (fill.origin, place.repository.clone());
        let known = self.tag_lists.known.get(&key).await;
        if let Some(known) = known.as_ref().filter(|known| self.is_fresh(known, fill)) {
            trail::because(|| format!("the tags were listed {} ago", trail::ago(known.listed, self.now())));
            return Ok(known.page(page, Outcome::Hit));
        }
        let in_vain = known.as_ref().and_then(|known| known.in_vain.clone()).filter(|vain| vain.until > self.now());
        let error = match in_vain {
            Some(vain) => vain.error,
            None => match self.list(key, place, fill, known.is_some(), asker).await {
                Ok(listed) => return Ok(listed.page(page, Outcome::Miss)),
                Err(error) => error,
            },
        };
        trail::because(|| format!("the upstream does not list its tags now: {error}"));
        let remedy = |listed| fill.rule.freshness.remedy(why(&error), listed, self.now());
        let listed = known.as_ref().map(|known| known.listed);
        match (remedy(listed), known) {
            (Remedy::ServeStale, Some(known)) => Ok(known.page(page, Outcome::Stale)),
            (Remedy::ServeStale, None) => {
                trail::because(|| "the tags that are cached are listed in its place".to_owned());
                self.cached_tags(place, page, Outcome::Stale).await?.ok_or(error)
            }
            (Remedy::TooStale { max_stale }, Some(_)) => {
                let rule = fill.rule.id.clone();
                Err(PullError::TooStale { rule, max_stale, validated: listed, cause: Box::new(error) })
            }
            (Remedy::TooStale { .. } | Remedy::Fail | Remedy::Drop, _) => Err(error),
        }
    }

    /// Asks the upstream for all tags, once for all who wait.
    async fn list(
        &self,
        key: Key,
        place: &Place,
        fill: &FillFrom,
        is_known: bool,
        asker: Option<Uuid>,
    ) -> Result<Known, PullError> {
        if !is_known {
            self.refusals.remembered(&place.repository, fill, Question::Tags).await?;
        }
        let (resolver, place, fill, flight_key) = (self.clone(), place.clone(), fill.clone(), key.clone());
        let work = || async move {
            let listed = asking(&fill, "GET", fill.source.client.tags(&fill.repository)).await;
            let listed = listed.map_err(|error| failure(&fill, Asked::Repository, &error));
            resolver.refusals.learn(&place.repository, &fill, Question::Tags, asker, &listed).await;
            resolver.remember(key, listed).await
        };
        let listed = self.tag_lists.flights.join_or_start(flight_key, work).await.ok_or(PullError::Busy)?;
        trail::because(|| "the upstream was asked for its tags".to_owned());
        listed
    }

    /// Keeps what the upstream has listed, or that it did not.
    async fn remember(&self, key: Key, listed: Result<Vec<Tag>, PullError>) -> Result<Known, PullError> {
        match listed {
            Ok(tags) => {
                let known = Known { tags: tags.into(), listed: self.now(), in_vain: None };
                self.tag_lists.known.insert(key, known.clone()).await;
                Ok(known)
            }
            Err(error) => {
                if let Some(known) = self.tag_lists.known.get(&key).await {
                    let until = self.now() + limits::REVALIDATE_BACKOFF;
                    let in_vain = Some(super::InVain { error: error.clone(), until });
                    self.tag_lists.known.insert(key, Known { in_vain, ..known }).await;
                }
                Err(error)
            }
        }
    }

    /// One page of the tags that are cached; `None` if there is no such repository.
    async fn cached_tags(&self, place: &Place, page: &TagPage, outcome: Outcome) -> Result<Option<TagList>, PullError> {
        let origin = place.fill.as_ref().map(|fill| fill.origin);
        within_limit(async {
            let Some(live) = self.repositories.live(&place.repository).await? else { return Ok(None) };
            let mut tags = self.repositories.tags(&live, origin, &page.last, page.count + 1).await?;
            let has_more = tags.len() > page.count;
            tags.truncate(page.count);
            Ok(Some(TagList { tags, has_more, outcome, listed: None }))
        })
        .await
    }

    fn is_fresh(&self, known: &Known, fill: &FillFrom) -> bool {
        let age = (self.now() - known.listed).to_std().ok();
        age.is_some_and(|age| age < fill.rule.freshness.tag_list_window)
    }
}

impl Known {
    fn page(&self, page: &TagPage, outcome: Outcome) -> TagList {
        let range = within(&self.tags, page);
        let has_more = range.end < self.tags.len();
        TagList { tags: self.tags[range].to_vec(), has_more, outcome, listed: Some(self.listed) }
    }

    /// About how much of the memory it takes.
    fn bytes(&self) -> u32 {
        let bytes: usize = self.tags.iter().map(|tag| tag.as_str().len() + size_of::<Tag>() + 16).sum();
        u32::try_from(bytes + 256).unwrap_or(u32::MAX)
    }
}

/// Which of these tags, which are in byte order, are in a page.
fn within(tags: &[Tag], page: &TagPage) -> Range<usize> {
    let start = tags.partition_point(|tag| tag.as_str() <= page.last.as_str());
    start..start.saturating_add(page.count).min(tags.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_are_all_of_the_list_in_order_and_each_tag_once(
            tags in proptest::collection::btree_set("[A-Za-c0-9][a-c._-]{0,2}", 0..30), count in 1..10_usize,
        ) {
            let tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
            let (mut seen, mut last) = (Vec::new(), String::new());
            loop {
                let range = within(&tags, &TagPage { count, last: last.clone() });
                prop_assert!(range.len() <= count);
                seen.extend_from_slice(&tags[range.clone()]);
                if range.end == tags.len() {
                    break;
                }
                last = tags[range.end - 1].to_string();
            }
            prop_assert_eq!(seen, tags);
        }
    }

    #[test]
    fn what_a_page_comes_behind_need_not_exist() {
        let tags: Vec<Tag> = ["a", "c", "e"].map(|tag| tag.parse().unwrap()).to_vec();
        let range = |count, last: &str| within(&tags, &TagPage { count, last: last.to_owned() });
        assert_eq!((range(9, "b"), range(1, "c"), range(9, "z"), range(0, "")), (1..3, 2..3, 3..3, 0..0));
    }
}
