//! The walk of a pull.

use entrepot_domain::{Digest, RepositoryName};
use http::request::Parts;
use http::{Method, Response};
use tracing::instrument;

use crate::auth::Auth;
use crate::body::Body;
use crate::control::{Control, Outbox};
use crate::error::PullError;
use crate::repository::Repositories;
use crate::resolve::{Described, Resolver, Want};
use crate::respond::{self, referrers, tags};
use crate::target::{Content, ReferrerFilter, TagPage, Target};
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
    /// Serves one manifest or blob. Read this function to know what a pull is.
    #[instrument(name = "pull", skip_all, fields(repository.name = %target.repository))]
    pub(crate) async fn pull(&self, request: &Parts, target: &Target) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.auth.identify(&request.headers, &snapshot).await?;
        let place = snapshot.place(&target.repository);
        trail::about(&place.repository);
        caller.require_pull(&place.repository)?;

        match &target.content {
            Content::Manifest(reference) => {
                let described = match request.method {
                    Method::HEAD => self.resolver.describe(&place, reference, caller.principal()).await?,
                    _ => Described::Here(self.resolver.manifest(&place, reference, caller.principal()).await?),
                };
                let resolved = match described {
                    Described::Here(resolved) => resolved,
                    Described::Told(told) => return Ok(respond::told(request, reference, &told)),
                };
                // A HEAD counts, too: it is all that clients send for an image that they have already.
                if let Some(incarnation) = resolved.incarnation {
                    self.outbox.pulled(&place.repository, incarnation, &resolved.digest);
                }
                Ok(respond::manifest(request, reference, resolved, self.resolver.now()))
            }
            Content::Blob(digest) => {
                let want = if request.method == Method::HEAD { Want::Presence } else { Want::Bytes };
                let blob = self.resolver.blob(&place, digest, want, caller.principal()).await?;
                respond::blob(request, digest, blob, &self.repositories).await
            }
        }
    }

    /// Lists the tags of a repository, for who may pull from it.
    #[instrument(name = "tags", skip_all, fields(repository.name = %name))]
    pub(crate) async fn tags(&self, request: &Parts, name: &RepositoryName) -> Result<Response<Body>, PullError> {
        let snapshot = self.control.snapshot()?;
        let caller = self.auth.identify(&request.headers, &snapshot).await?;
        let place = snapshot.place(name);
        trail::about(&place.repository);
        caller.require_pull(&place.repository)?;

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
        let caller = self.auth.identify(&request.headers, &snapshot).await?;
        let place = snapshot.place(name);
        trail::about(&place.repository);
        caller.require_pull(&place.repository)?;

        let filter = ReferrerFilter::parse(request.uri.query().unwrap_or_default());
        let list = self.resolver.referrers(&place, subject, caller.principal()).await?;
        Ok(referrers::response(&filter, &list, self.resolver.now()))
    }
}
