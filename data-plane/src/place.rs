//! What a name is here: filled by a rule, pushed to by clients, or neither; with the record of its repository.

use entrepot_domain::RepositoryName;
use entrepot_records as records;

use crate::control::{FillFrom, LeftOut, Location};
use crate::error::PullError;
use crate::repository::{Live, Repositories, within_limit};

/// A name, what it is here, and the repository that has it.
#[derive(Clone)]
pub(crate) struct Place {
    /// The repository's name, in the one spelling under which it is kept.
    pub(crate) repository: RepositoryName,
    pub(crate) kind: Kind,
    /// The repository as its record was when it was read, which a pull does once; `None` if there is none.
    pub(crate) live: Option<Live>,
}

/// What a name is here.
#[derive(Clone)]
pub(crate) enum Kind {
    /// A rule covers it: what is missing comes from an upstream.
    Cached(Box<FillFrom>),
    /// Clients push to the repository. What it does not have, nobody has.
    Hosted,
    /// No rule covers it. What was cached under an earlier rule is served.
    Unknown,
    /// The rule that covers it, or its upstream, is not understood here. What is cached is served.
    LeftOut(LeftOut),
}

impl Place {
    /// Reads the record of the repository at `location`, and says what the name is. It may be held in memory, and so may
    /// what is read of the place.
    pub(crate) async fn find(location: Location, repositories: &Repositories) -> Result<Self, PullError> {
        let live = within_limit(repositories.live_held(&location.repository)).await?;
        Ok(Self::new(location, live))
    }

    /// The same from the store, and so is what is read of the place: for who decides what is written.
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

    /// The place that `fill` fills, with the record as it is now: others may have written it while one waited.
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

    /// Why nothing fills it: `otherwise`, unless what covers it is not understood here. Then a node of a later release may
    /// have what this one has not.
    pub(crate) fn unfilled(&self, otherwise: PullError) -> PullError {
        match &self.kind {
            Kind::LeftOut(left_out) => PullError::LeftOut { item: left_out.item.clone() },
            Kind::Cached(_) | Kind::Hosted | Kind::Unknown => otherwise,
        }
    }
}
