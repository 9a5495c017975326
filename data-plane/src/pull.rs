//! The walk of a pull.

use entrepot_domain::{Action, Digest, Hops, Network, RepositoryName};
use http::header::VIA;
use http::request::Parts;
use http::{HeaderValue, Method, Response};
use tracing::instrument;

use crate::auth::{Auth, Caller};
use crate::body::Body;
use crate::control::{Control, Outbox, Snapshot};
use crate::error::PullError;
use crate::place::Place;
use crate::readers::{Puller, Readers};
use crate::repository::Repositories;
use crate::resolve::{self, Found, Resolved, Resolver, Want};
use crate::respond::{self, referrers, tags};
use crate::target::{self, ReferrerFilter, TagPage, Target};
use crate::trail;

/// How often content is looked for that has gone, or turns out to be damaged, when it is about to be sent.
const LOOKS: usize = 2;

/// Everything that a pull needs.
pub(crate) struct Node {
    pub(crate) control: Control,
    pub(crate) auth: Auth,
    pub(crate) resolver: Resolver,
    pub(crate) repositories: Repositories,
    pub(crate) outbox: Outbox,
    pub(crate) readers: Readers,
}

/// The registries that a request has come through.
pub(crate) fn hops(request: &Parts) -> Hops {
    Hops::read(request.headers.get_all(VIA).iter().map(HeaderValue::as_bytes))
}

impl Node {
    /// Serves one manifest or blob. Read this function to learn what a pull is: who asks, what the name refers to,
    /// whether the caller may pull there, waiting for a turn, what the records have, what is missing, and the answer.
    #[instrument(name = "pull", skip_all, fields(repository.name = %target.repository))]
    pub(crate) async fn pull(
        &self,
        request: &Parts,
        from: Network,
        target: &Target,
    ) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.identify(request, from, &snapshot).await?;
        let place = self.place(&snapshot, &target.repository, request).await?;
        caller.require(Action::Pull, &place)?;
        let wants_blob = request.method == Method::GET && matches!(target.content, target::Content::Blob(_));
        let puller = wants_blob.then(|| Puller::new(caller.principal(), from));
        let permit = match puller {
            Some(puller) => Some(self.readers.acquire(puller).await?),
            None => None,
        };

        for _ in 0..LOOKS {
            let content = match self.resolver.find(&place, &target.content).await? {
                Found::Here(content) => content,
                Found::Missing(missing) => {
                    let want = if request.method == Method::HEAD { Want::Presence } else { Want::Bytes };
                    self.resolver.fill(&place, missing, want, &caller.asker(&place)).await?
                }
            };
            self.note_pull(&place, &content);
            let now = self.resolver.now();
            let answer = respond::content(request, &target.content, content, &self.repositories, now).await?;
            let Some(answer) = answer else { continue };
            return Ok(answer.map(|body| match permit {
                Some(permit) => permit.hold_for(body),
                None => body,
            }));
        }
        Err(PullError::GaveUp)
    }

    /// Lists the tags of a repository, for callers that may pull from it.
    #[instrument(name = "tags", skip_all, fields(repository.name = %name))]
    pub(crate) async fn tags(
        &self,
        request: &Parts,
        from: Network,
        name: &RepositoryName,
    ) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.identify(request, from, &snapshot).await?;
        let place = self.place(&snapshot, name, request).await?;
        caller.require(Action::Pull, &place)?;

        let page = TagPage::parse(request.uri.query().unwrap_or_default())?;
        let list = self.resolver.tags(&place, &page, caller.principal()).await?;
        Ok(tags::response(name, &page, &list, self.resolver.now()))
    }

    /// Lists the referrers of a manifest, for callers that may pull from its repository.
    #[instrument(name = "referrers", skip_all, fields(repository.name = %name))]
    pub(crate) async fn referrers(
        &self,
        request: &Parts,
        from: Network,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.identify(request, from, &snapshot).await?;
        let place = self.place(&snapshot, name, request).await?;
        caller.require(Action::Pull, &place)?;

        let filter = ReferrerFilter::parse(request.uri.query().unwrap_or_default());
        let list = self.resolver.referrers(&place, subject, caller.principal()).await?;
        Ok(referrers::response(&filter, &list, self.resolver.now()))
    }

    /// Identifies the caller. For unknown callers, no record is read.
    async fn identify(&self, request: &Parts, from: Network, snapshot: &Snapshot) -> Result<Caller, PullError> {
        let caller = self.auth.identify(&request.headers, from, snapshot).await?;
        caller.require_login()?;
        Ok(caller)
    }

    /// What the name refers to, with the record of its repository. Upstreams will be told which registries the request
    /// has come through.
    async fn place(&self, snapshot: &Snapshot, name: &RepositoryName, request: &Parts) -> Result<Place, PullError> {
        let location = snapshot.locate(name).behind(hops(request));
        trail::about(&location.repository);
        Place::find(location, &self.repositories).await
    }

    /// Counts a pull of the image. A HEAD counts, too, since that is all that clients send for an image that they
    /// already have.
    fn note_pull(&self, place: &Place, content: &resolve::Content) {
        if let resolve::Content::Manifest(Resolved { digest, incarnation: Some(incarnation), .. }) = content {
            self.outbox.pulled(&place.repository, *incarnation, digest);
        }
    }
}
