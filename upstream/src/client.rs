//! The client for one upstream: its endpoint, and its fallbacks while the endpoint is away or limits our requests.
//!
//! The endpoint decides what is true. A fallback may only repeat it: its bytes for a digest must have that digest, and
//! a known tag must mean what the endpoint last said, or the fallback is not trusted. An unknown tag is taken from the
//! first fallback whose content matches the digest that it names. If a fallback lacks or refuses something, that proves
//! nothing.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::upstream::Endpoint;
use entrepot_domain::{Digest, Hops, Priority, Reference, RepositoryName, ResourceId, Tag, Upstream};
use moka::sync::Cache;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use uuid::Uuid;

use crate::account::{Account, Unmetered};
use crate::circuit::{Health, State};
use crate::error::{BuildError, Error};
use crate::limits::Limits;
use crate::metrics::RequestMetrics;
use crate::request::Requests;
use crate::site::{BlobBody, BlobStream, DescribedManifest, FetchedManifest, Site, SiteClient};
use crate::transport::via;

/// How many disagreements are kept.
const DISAGREEMENTS: usize = 16;
/// How long a fallback is not asked for content that was wrong there.
const DISTRUSTED_FOR: Duration = Duration::from_secs(600);
/// How long it is remembered which fallback serves a blob: longer than any fill takes.
const SERVED_FOR: Duration = Duration::from_secs(7 * 3600);
/// For how many blobs that is remembered.
const SERVED: u64 = 10_000;

/// The client for one upstream. Clones share connections, tokens and everything else.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    priority: Priority,
    /// The value of `Via`: the registries that the request has come through, this one last.
    hops: HeaderValue,
}

struct Inner {
    upstream: ResourceId,
    registry: Uuid,
    /// The endpoint, followed by its fallbacks in the order in which to ask them.
    sites: Vec<Arc<Site>>,
    /// The fallback that serves a blob.
    served: Cache<Digest, usize>,
    /// Content that was wrong at a fallback.
    distrusted: Cache<(Digest, usize), ()>,
    disagreements: Mutex<VecDeque<Disagreement>>,
    metrics: RequestMetrics,
}

/// A fallback contradicted what was known, and was not trusted.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// The fallback.
    pub endpoint: Endpoint,
    /// The repository there.
    pub repository: RepositoryName,
    /// What was asked for.
    pub reference: Reference,
    /// The known digest of the tag, or the digest of the requested content.
    pub known: Digest,
    /// The fallback's digest for the tag; `None` if its content did not have the requested digest.
    pub said: Option<Digest>,
    pub at: Instant,
}

/// The state of one endpoint of an upstream.
#[derive(Clone, Debug)]
pub struct EndpointHealth {
    pub endpoint: Endpoint,
    pub health: Health,
}

impl Client {
    /// The client for `upstream`, used by the registry with the id `registry`.
    ///
    /// # Errors
    /// If its certificate authorities cannot be read, or TLS cannot be set up.
    pub fn new(upstream: &Upstream, registry: Uuid, limits: Limits) -> Result<Self, BuildError> {
        Self::with_metrics(upstream, registry, limits, &RequestMetrics::none(), Arc::new(Unmetered))
    }

    /// As [`Client::new`], with every request measured, and counted against `account`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_metrics(
        upstream: &Upstream,
        registry: Uuid,
        limits: Limits,
        metrics: &RequestMetrics,
        account: Arc<dyn Account>,
    ) -> Result<Self, BuildError> {
        // A silent endpoint must leave time for another one.
        let shared = u32::from(!upstream.fallback_endpoints.is_empty()) + 1;
        let limits = Limits { head: limits.head / shared, ..limits };
        let site = |of: &Upstream, account| {
            let requests = Requests::new(of, registry, limits, metrics, account)?;
            Ok(Arc::new(Site { endpoint: of.endpoint.clone(), requests }))
        };
        let mut sites = vec![site(upstream, account)?];
        for endpoint in &upstream.fallback_endpoints {
            // A fallback belongs to somebody else, so it gets the credential only if the operator allows it.
            let credential = upstream.credential.clone().filter(|_| upstream.allows(endpoint.url()));
            let fallback = Upstream { endpoint: endpoint.clone(), credential, ..upstream.clone() };
            sites.push(site(&fallback, Arc::new(Unmetered))?);
        }
        let inner = Inner {
            upstream: upstream.id.clone(),
            registry,
            sites,
            served: Cache::builder().max_capacity(SERVED).time_to_live(SERVED_FOR).build(),
            distrusted: Cache::builder().max_capacity(SERVED).time_to_live(DISTRUSTED_FOR).build(),
            disagreements: Mutex::default(),
            metrics: metrics.clone(),
        };
        let hops = via(&Hops::default().and(registry));
        Ok(Self { inner: Arc::new(inner), priority: Priority::Pull, hops })
    }

    /// The same client, for a request that has come through these registries.
    #[must_use]
    pub fn behind(&self, hops: &Hops) -> Self {
        Self { hops: via(&hops.and(self.inner.registry)), ..self.clone() }
    }

    /// The same client, with this `priority`.
    #[must_use]
    pub fn at(&self, priority: Priority) -> Self {
        Self { priority, ..self.clone() }
    }

    /// The state of the endpoint, as requests have shown it.
    pub fn health(&self) -> Health {
        self.site_client(0).site.requests.circuit.health()
    }

    /// The state of the endpoint and of its fallbacks, in the order in which they are asked.
    pub fn endpoints(&self) -> Vec<EndpointHealth> {
        let known = |site: &Arc<Site>| EndpointHealth {
            endpoint: site.endpoint.clone(),
            health: site.requests.circuit.health(),
        };
        self.inner.sites.iter().map(known).collect()
    }

    /// The last disagreements, the latest one first.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        self.inner.disagreements.lock().iter().cloned().collect()
    }

    /// Asks what `reference` means now, without fetching it.
    ///
    /// `None` if the upstream does not say, because it does not support HEAD or names no digest. Then only a fetch can
    /// tell.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such manifest, and any error of a request.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<Digest>, Error> {
        Ok(self.describe_manifest(repository, reference).await?.digest)
    }

    /// Asks what `reference` means now, and returns everything the upstream says without a fetch.
    ///
    /// # Errors
    /// As [`Client::head_manifest`].
    pub async fn describe_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<DescribedManifest, Error> {
        let mut failover = self.failover(None);
        while let Some((_, site)) = failover.next() {
            if let Some(answer) = failover.accept(site.describe_manifest(repository, reference).await) {
                return answer;
            }
        }
        Err(failover.error())
    }

    /// As [`Client::head_manifest`], for a tag that meant `known` when the upstream last confirmed it: a fallback may
    /// only confirm the same. If the endpoint does not find the tag by HEAD, that proves nothing, since some registries
    /// do not support HEAD and answer so. Only a fetch can tell that the tag is gone.
    ///
    /// # Errors
    /// As [`Client::head_manifest`], except [`Error::NotFound`]; if no fallback confirms the tag, the error of the
    /// endpoint.
    pub async fn confirm_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        known: &Digest,
    ) -> Result<Option<Digest>, Error> {
        let reference = Reference::Tag(tag.clone());
        let mut failover = self.failover(None);
        while let Some((place, site)) = failover.next() {
            let said = site.describe_manifest(repository, &reference).await;
            let answer = match said.map(|described| described.digest) {
                Ok(Some(said)) if place > 0 && said != *known => {
                    Err(self.disagreed(place, repository, &reference, known, Some(said)))
                }
                Ok(None) if place > 0 => Err(Error::bad("does not say what a tag means")),
                Err(Error::NotFound) if place == 0 => Ok(None),
                answer => answer,
            };
            if let Some(answer) = failover.accept(answer) {
                return answer;
            }
        }
        Err(failover.error())
    }

    /// Fetches a manifest. If it is requested by digest, its bytes are verified; a tag may mean any manifest.
    ///
    /// If a manifest fetched by tag does not have the digest that the upstream names, it is fetched once more:
    /// accidental damage does not happen twice in the same way. If the bytes are the same again, they are accepted, and
    /// the named digest is considered wrong.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongDigest`], [`Error::TooLarge`], and any error of a request.
    pub async fn manifest(&self, repository: &RepositoryName, reference: &Reference) -> Result<FetchedManifest, Error> {
        self.manifest_known_as(repository, reference, None).await
    }

    /// As [`Client::manifest`], for a tag that is known to mean `known`: a fallback may only send that manifest.
    ///
    /// # Errors
    /// As [`Client::manifest`]; if no fallback sends it, the error of the endpoint.
    pub async fn manifest_known_as(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<FetchedManifest, Error> {
        let known = match reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => known,
        };
        let mut failover = self.failover(None);
        while let Some((place, site)) = failover.next() {
            let mut answer = site.manifest(repository, reference).await;
            if place > 0 {
                answer = self.check_agreement(place, repository, reference, known, answer);
            }
            if let Some(answer) = failover.accept(answer) {
                return answer;
            }
        }
        Err(failover.error())
    }

    /// Accepts what a fallback has sent if it has the known digest, or, if none is known, the digest that the fallback
    /// names.
    fn check_agreement(
        &self,
        place: usize,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
        answer: Result<FetchedManifest, Error>,
    ) -> Result<FetchedManifest, Error> {
        match (answer, known) {
            (Err(Error::WrongDigest), Some(known)) => Err(self.disagreed(place, repository, reference, known, None)),
            (Ok(fetched), Some(known)) if !is_of(known, &fetched) => {
                let said = Some(Digest::sha256(&fetched.bytes));
                Err(self.disagreed(place, repository, reference, known, said))
            }
            (Ok(fetched), None) if !fetched.is_as_said => Err(Error::WrongDigest),
            (answer, _) => answer,
        }
    }

    /// Asks whether a blob exists, and how large it is; `None` if the upstream does not tell the size.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such blob, and any error of a request.
    pub async fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Error> {
        let mut failover = self.failover(Some(digest));
        while let Some((_, site)) = failover.next() {
            if let Some(answer) = failover.accept(site.head_blob(repository, digest).await) {
                return answer;
            }
        }
        Err(failover.error())
    }

    /// Fetches a blob. The caller verifies it, and reports if it [was wrong](Self::was_wrong).
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such blob, and any error of a request. Once the blob is being sent, a body
    /// that breaks off or stalls is resumed; errors come as the stream's last item.
    pub async fn blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<BlobBody, Error> {
        let mut failover = self.failover(Some(digest));
        while let Some((place, site)) = failover.next() {
            let answer = site.blob(repository, digest).await;
            if answer.is_ok() {
                self.serves(place, digest);
            }
            if let Some(answer) = failover.accept(answer) {
                return answer;
            }
        }
        Err(failover.error())
    }

    /// Fetches a part of a blob, which must not be empty. `None` if the upstream does not support ranges.
    ///
    /// # Errors
    /// As [`Client::blob`].
    pub async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<Option<BlobStream>, Error> {
        let mut failover = self.failover(Some(digest));
        while let Some((place, site)) = failover.next() {
            let answer = site.blob_part(repository, digest, part.clone()).await;
            if let Ok(Some(_)) = &answer {
                self.serves(place, digest);
            }
            if let Some(answer) = failover.accept(answer) {
                return answer;
            }
        }
        Err(failover.error())
    }

    /// Notes that a blob did not have its digest. Returns whether it came from a fallback: that fallback is not asked
    /// for it again, and another one may have it.
    pub fn was_wrong(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        let Some(place) = self.inner.served.get(digest) else { return false };
        self.inner.served.invalidate(digest);
        self.inner.distrusted.insert((digest.clone(), place), ());
        self.disagreed(place, repository, &Reference::Digest(digest.clone()), digest, None);
        true
    }

    pub(crate) fn site_client(&self, place: usize) -> SiteClient {
        SiteClient { site: self.inner.sites[place].clone(), priority: self.priority, hops: self.hops.clone() }
    }

    fn failover<'c>(&'c self, digest: Option<&'c Digest>) -> Failover<'c> {
        Failover { client: self, digest, next: 0, error: None }
    }

    /// Remembers which site serves a blob.
    fn serves(&self, place: usize, digest: &Digest) {
        if place > 0 {
            self.inner.served.insert(digest.clone(), place);
        } else if self.inner.sites.len() > 1 {
            self.inner.served.invalidate(digest);
        }
    }

    /// Reports a fallback that is not trusted, and returns the error for the caller.
    fn disagreed(
        &self,
        place: usize,
        repository: &RepositoryName,
        reference: &Reference,
        known: &Digest,
        said: Option<Digest>,
    ) -> Error {
        let (endpoint, upstream) = (self.inner.sites[place].endpoint.clone(), &self.inner.upstream);
        let what = match &said {
            Some(said) => format!("says that it is `{said}`"),
            None => "sends something else for it".to_owned(),
        };
        tracing::warn!(
            upstream.id = %upstream, upstream.endpoint = %endpoint, upstream.repository = %repository,
            "fallback `{endpoint}` of upstream `{upstream}` is not believed: `{reference}` of `{repository}` is known to be \
             `{known}`, and it {what}"
        );
        self.inner.metrics.count_disagreement(upstream);
        let disagreement = Disagreement {
            endpoint,
            repository: repository.clone(),
            reference: reference.clone(),
            known: known.clone(),
            said,
            at: Instant::now(),
        };
        let mut all = self.inner.disagreements.lock();
        all.truncate(DISAGREEMENTS - 1);
        all.push_front(disagreement);
        Error::WrongDigest
    }
}

/// Tries the endpoint, and then its fallbacks in order, while the endpoint is away or limits our requests.
struct Failover<'c> {
    client: &'c Client,
    /// The requested content.
    digest: Option<&'c Digest>,
    next: usize,
    /// The endpoint's error.
    error: Option<Error>,
}

impl Failover<'_> {
    /// The next site to ask, with its index; `None` if all were tried.
    fn next(&mut self) -> Option<(usize, SiteClient)> {
        let inner = &self.client.inner;
        let is_trusted = |place: &usize| {
            *place == 0 || self.digest.is_none_or(|digest| !inner.distrusted.contains_key(&(digest.clone(), *place)))
        };
        let place = (self.next..inner.sites.len()).find(is_trusted)?;
        self.next = place + 1;
        Some((place, self.client.site_client(place)))
    }

    /// Takes an answer; returns `None` if another site should be asked. The failure of a fallback says nothing about
    /// what the upstream has.
    fn accept<T>(&mut self, answer: Result<T, Error>) -> Option<Result<T, Error>> {
        let inner = &self.client.inner;
        match (answer, self.error.is_some()) {
            (Err(error), false) if error.may_retry() => {
                self.error = Some(error);
                None
            }
            (Err(why), true) => {
                let (upstream, endpoint) = (&inner.upstream, &inner.sites[self.next - 1].endpoint);
                tracing::debug!(
                    upstream.id = %upstream, error = %why,
                    "fallback `{endpoint}` of upstream `{upstream}` does not help: {why}"
                );
                None
            }
            (answer, _) => Some(answer),
        }
    }

    /// The error of the endpoint.
    fn error(self) -> Error {
        self.error.unwrap_or_else(Error::timed_out)
    }
}

impl EndpointHealth {
    /// Whether both counted and uncounted requests may be sent to it.
    pub fn is_asked(&self) -> bool {
        match self.health.state {
            State::Healthy | State::CredentialRefused | State::Throttled { everything: false, .. } => true,
            State::Throttled { everything: true, .. } | State::Away { .. } => false,
        }
    }
}

fn is_of(digest: &Digest, fetched: &FetchedManifest) -> bool {
    let mut verifier = entrepot_domain::Verifier::new(digest.clone());
    verifier.update(&fetched.bytes);
    verifier.finish()
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("upstream", &self.inner.upstream).finish_non_exhaustive()
    }
}
