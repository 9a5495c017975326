//! Referrers of a manifest: the upstream's list, or what is cached if there is none.
//!
//! From an empty list clients conclude that nothing was signed. So an empty list is returned only if it is known to be
//! empty.

use chrono::{DateTime, Utc};
use entrepot_domain::Digest;
use entrepot_domain::referrer::{Referrer, merged};
use uuid::Uuid;

use super::Resolver;
use super::lists::{ListError, ListKind};
use crate::error::PullError;
use crate::outcome::Outcome;
use crate::place::Place;
use crate::repository::within_limit;
use crate::trail::{self, Note};

/// The referrers of a manifest.
#[derive(Clone, Debug)]
pub(crate) struct ReferrerList {
    pub(crate) referrers: Vec<Referrer>,
    pub(crate) outcome: Outcome,
    /// When the upstream sent the list; `None` if it shows what is cached here.
    pub(crate) listed: Option<DateTime<Utc>>,
}

impl Resolver {
    /// The referrers of the manifest `subject` in `place`. That manifest need not exist.
    pub(crate) async fn referrers(
        &self,
        place: &Place,
        subject: &Digest,
        asker: Option<Uuid>,
    ) -> Result<ReferrerList, PullError> {
        let Some(fill) = place.fill() else {
            trail::note(Note::NoRuleForReferrers);
            let referrers =
                self.cached_referrers(place, subject).await?.ok_or_else(|| place.unfilled(PullError::NoRule))?;
            return Ok(ReferrerList { referrers, outcome: Outcome::Hit, listed: None });
        };
        match self.list(fill, ListKind::Referrers(subject.clone()), asker).await {
            Ok(list) => {
                let listed: Vec<_> = list.entries.iter().filter_map(|entry| Referrer::read(entry).ok()).collect();
                // A list that the upstream has just sent is complete. An old one may be missing newer referrers.
                let referrers = if list.outcome == Outcome::Stale {
                    merged(&listed, self.cached_referrers(place, subject).await?.unwrap_or_default())
                } else {
                    listed
                };
                Ok(ReferrerList { referrers, outcome: list.outcome, listed: Some(list.listed) })
            }
            Err(ListError::Failed(error)) => Err(error),
            Err(ListError::Unknown(error)) => {
                let referrers = self.cached_referrers(place, subject).await?.unwrap_or_default();
                if referrers.is_empty() {
                    return Err(error);
                }
                trail::note(Note::CachedReferrersListed);
                Ok(ReferrerList { referrers, outcome: Outcome::Stale, listed: None })
            }
        }
    }

    /// The cached referrers; `None` if there is no such repository.
    async fn cached_referrers(&self, place: &Place, subject: &Digest) -> Result<Option<Vec<Referrer>>, PullError> {
        let Some(live) = &place.live else { return Ok(None) };
        within_limit(self.repositories.cached_referrers(live, subject, place.fill())).await.map(Some)
    }
}
