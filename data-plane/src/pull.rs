//! The walk of a pull.

use entrepot_domain::{Action, Digest, RepositoryName};
use http::request::Parts;
use http::{Method, Response};
use tracing::instrument;

use crate::auth::{Auth, Caller};
use crate::body::Body;
use crate::control::{Control, Outbox, Snapshot};
use crate::error::PullError;
use crate::place::Place;
use crate::repository::Repositories;
use crate::resolve::{self, Found, Resolved, Resolver, Want};
use crate::respond::{self, referrers, tags};
use crate::target::{ReferrerFilter, TagPage, Target};
use crate::trail;

/// Everything that a pull needs.
pub(crate) struct Node {
    pub(crate) control: Control,
    pub(crate) auth: Auth,
    pub(crate) resolver: Resolver,
    pub(crate) repositories: Repositories,
    pub(crate) outbox: Outbox,
}

impl Node {
    /// Serves one manifest or blob. Read this function to know what a pull is: who asks, what the name is here, whether
    /// the caller may pull there, what the records have, what is missing, the answer.
    #[instrument(name = "pull", skip_all, fields(repository.name = %target.repository))]
    pub(crate) async fn pull(&self, request: &Parts, target: &Target) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.identify(request, &snapshot).await?;
        let place = self.place(&snapshot, &target.repository).await?;
        caller.require(Action::Pull, &place)?;

        let content = match self.resolver.find(&place, &target.content).await? {
            Found::Here(content) => content,
            Found::Missing(missing) => {
                let want = if request.method == Method::HEAD { Want::Presence } else { Want::Bytes };
                self.resolver.fill(&place, missing, want, &caller.asker(&place)).await?
            }
        };
        self.note_pull(&place, &content);
        respond::content(request, &target.content, content, &self.repositories, self.resolver.now()).await
    }

    /// Lists the tags of a repository, for who may pull from it.
    #[instrument(name = "tags", skip_all, fields(repository.name = %name))]
    pub(crate) async fn tags(&self, request: &Parts, name: &RepositoryName) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.identify(request, &snapshot).await?;
        let place = self.place(&snapshot, name).await?;
        caller.require(Action::Pull, &place)?;

        let page = TagPage::parse(request.uri.query().unwrap_or_default())?;
        let list = self.resolver.tags(&place, &page, caller.principal()).await?;
        Ok(tags::response(name, &page, &list, self.resolver.now()))
    }

    /// Lists what refers to a manifest of a repository, for who may pull from it.
    #[instrument(name = "referrers", skip_all, fields(repository.name = %name))]
    pub(crate) async fn referrers(
        &self,
        request: &Parts,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.identify(request, &snapshot).await?;
        let place = self.place(&snapshot, name).await?;
        caller.require(Action::Pull, &place)?;

        let filter = ReferrerFilter::parse(request.uri.query().unwrap_or_default());
        let list = self.resolver.referrers(&place, subject, caller.principal()).await?;
        Ok(referrers::response(&filter, &list, self.resolver.now()))
    }

    /// Who asks. For nobody known, no record is read.
    async fn identify(&self, request: &Parts, snapshot: &Snapshot) -> Result<Caller, PullError> {
        let caller = self.auth.identify(&request.headers, snapshot).await?;
        caller.require_login()?;
        Ok(caller)
    }

    /// What the name is here, with the record of its repository.
    async fn place(&self, snapshot: &Snapshot, name: &RepositoryName) -> Result<Place, PullError> {
        let location = snapshot.locate(name);
        trail::about(&location.repository);
        Place::find(location, &self.repositories).await
    }

    /// Counts a pull for the image. A HEAD counts, too: it is all that clients send for an image that they have already.
    fn note_pull(&self, place: &Place, content: &resolve::Content) {
        if let resolve::Content::Manifest(Resolved { digest, incarnation: Some(incarnation), .. }) = content {
            self.outbox.pulled(&place.repository, *incarnation, digest);
        }
    }
}
