//! What a name refers to: a repository filled by a rule, one that clients push to, or neither; with the repository's
//! record.

use entrepot_domain::RepositoryName;
use entrepot_records as records;

use crate::control::{FillFrom, LeftOut, Location};
use crate::error::PullError;
use crate::repository::{Live, Repositories, within_limit};
use crate::trail::{self, Note};

/// A name, its kind, and its repository.
#[derive(Clone)]
pub(crate) struct Place {
    /// The repository's name, in the one spelling under which it is kept.
    pub(crate) repository: RepositoryName,
    pub(crate) kind: Kind,
    /// The repository according to its record, which a pull reads once; `None` if there is none.
    pub(crate) live: Option<Live>,
}

/// The kind of a name.
#[derive(Clone)]
pub(crate) enum Kind {
    /// A rule covers it: missing content comes from an upstream.
    Cached(Box<FillFrom>),
    /// Clients push to the repository. Missing content does not exist anywhere.
    Hosted,
    /// No rule covers it. Content that was cached under an earlier rule is served.
    Unknown,
    /// The rule or upstream that covers it is not understood here. Cached content is served.
    LeftOut(LeftOut),
}

impl Place {
    /// Reads the record of the repository at `location`, and determines the kind of the name. The record may come from
    /// memory, and so may everything that is read of the place later.
    pub(crate) async fn find(location: Location, repositories: &Repositories) -> Result<Self, PullError> {
        let live = within_limit(repositories.live_held(&location.repository)).await?;
        Ok(Self::new(location, live))
    }

    /// The same from the store, also for everything that is read of the place later. For code that decides what to
    /// write.
    pub(crate) async fn find_anew(location: Location, repositories: &Repositories) -> Result<Self, PullError> {
        let live = within_limit(repositories.live(&location.repository)).await?;
        Ok(Self::new(location, live))
    }

    /// The place at `location`, whose repository is `live`.
    fn new(location: Location, live: Option<Live>) -> Self {
        let Location { repository, fill, left_out } = location;
        let is_hosted = live.as_ref().is_some_and(|live| live.record.kind == records::Kind::Hosted);
        let kind = match (fill, left_out) {
            _ if is_hosted => Kind::Hosted,
            (Some(fill), _) => Kind::Cached(Box::new(fill)),
            (None, Some(left_out)) => Kind::LeftOut(left_out),
            (None, None) => Kind::Unknown,
        };
        Self { repository, kind, live }
    }

    /// The place that `fill` fills, with the current record: others may have written it meanwhile.
    pub(crate) async fn reread(fill: &FillFrom, repositories: &Repositories) -> Result<Self, PullError> {
        let location = Location { repository: fill.name.clone(), fill: Some(fill.clone()), left_out: None };
        Self::find_anew(location, repositories).await
    }

    /// What fills it, if anything does.
    pub(crate) fn fill(&self) -> Option<&FillFrom> {
        match &self.kind {
            Kind::Cached(fill) => Some(fill),
            Kind::Hosted | Kind::Unknown | Kind::LeftOut(_) => None,
        }
    }

    /// The error if nothing fills it: `otherwise`, unless the item that covers it is not understood here. A node of a
    /// later release may then have what this one lacks.
    pub(crate) fn unfilled(&self, otherwise: PullError) -> PullError {
        match &self.kind {
            Kind::Cached(_) | Kind::Hosted | Kind::Unknown => {
                if let PullError::NotFound { asked, .. } = otherwise
                    && trail::has(&Note::Damaged)
                {
                    return PullError::Damaged { asked };
                }
                otherwise
            }
            Kind::LeftOut(left_out) => PullError::LeftOut { item: left_out.item.clone() },
        }
    }
}
