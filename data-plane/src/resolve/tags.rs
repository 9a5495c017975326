//! Lists of tags: the upstream's list, remembered for as long as the rule says, or what is cached if there is none.

use std::ops::Range;

use chrono::{DateTime, Utc};
use entrepot_domain::Tag;
use uuid::Uuid;

use super::Resolver;
use super::lists::{ListError, ListKind, Listed};
use crate::error::PullError;
use crate::outcome::Outcome;
use crate::place::Place;
use crate::repository::within_limit;
use crate::target::TagPage;
use crate::trail::{self, Note};

/// One page of a repository's tags.
#[derive(Clone, Debug)]
pub(crate) struct TagList {
    pub(crate) tags: Vec<Tag>,
    /// Whether there are more after it.
    pub(crate) has_more: bool,
    pub(crate) outcome: Outcome,
    /// When the upstream sent the list; `None` if it shows what is cached here.
    pub(crate) listed: Option<DateTime<Utc>>,
}

impl Resolver {
    pub(crate) async fn tags(&self, place: &Place, page: &TagPage, asker: Option<Uuid>) -> Result<TagList, PullError> {
        let Some(fill) = place.fill() else {
            trail::note(Note::NoRuleForTags);
            return self.cached_tags(place, page, Outcome::Hit).await?.ok_or_else(|| place.unfilled(PullError::NoRule));
        };
        match self.list(fill, ListKind::Tags, asker).await {
            Ok(listed) => Ok(TagList::page_of(&listed, page)),
            Err(ListError::Failed(error)) => Err(error),
            Err(ListError::Unknown(error)) => {
                trail::note(Note::CachedTagsListed);
                self.cached_tags(place, page, Outcome::Stale).await?.ok_or(error)
            }
        }
    }

    /// One page of the cached tags; `None` if there is no such repository.
    async fn cached_tags(&self, place: &Place, page: &TagPage, outcome: Outcome) -> Result<Option<TagList>, PullError> {
        let Some(live) = &place.live else { return Ok(None) };
        within_limit(async {
            let mut tags = self.repositories.tags(live, place.fill(), &page.last, page.count + 1).await?;
            let has_more = tags.len() > page.count;
            tags.truncate(page.count);
            Ok(Some(TagList { tags, has_more, outcome, listed: None }))
        })
        .await
    }
}

impl TagList {
    fn page_of(listed: &Listed, page: &TagPage) -> Self {
        let range = within(&listed.entries, page);
        let has_more = range.end < listed.entries.len();
        let tags = listed.entries[range].iter().filter_map(|tag| tag.parse().ok()).collect();
        Self { tags, has_more, outcome: listed.outcome, listed: Some(listed.listed) }
    }
}

/// Which of these sorted tags belong to a page.
fn within(tags: &[String], page: &TagPage) -> Range<usize> {
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
            let tags: Vec<String> = tags.into_iter().collect();
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
        let tags = ["a", "c", "e"].map(str::to_owned);
        let range = |count, last: &str| within(&tags, &TagPage { count, last: last.to_owned() });
        assert_eq!((range(9, "b"), range(1, "c"), range(9, "z"), range(0, "")), (1..3, 2..3, 3..3, 0..0));
    }
}
