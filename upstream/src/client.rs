//! The client for one upstream: its endpoint, and its fallbacks where that is away or limits our requests.
//!
//! The endpoint's word counts. A fallback may only repeat it: what it sends for a digest has that digest, and a tag that is
//! known means there what it meant when the endpoint last said so, or the fallback is not believed. A tag that nobody
//! knows is taken from the first whose content is what it says. What a fallback lacks or refuses says nothing.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use entrepot_domain::upstream::Endpoint;
use entrepot_domain::{Digest, Priority, Reference, RepositoryName, ResourceId, Tag, Upstream};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::account::{Account, Unmetered};
use crate::circuit::{Health, State};
use crate::error::{BuildError, Error};
use crate::limits::Limits;
use crate::metrics::RequestMetrics;
use crate::request::Requests;
use crate::site::{BlobBody, BlobStream, DescribedManifest, FetchedManifest, Site, Via};

/// How many disagreements are remembered.
const DISAGREEMENTS: usize = 16;
/// For how long a fallback is not asked for content that was wrong there.
const DISTRUSTED_FOR: Duration = Duration::from_secs(600);
/// For how long it is known which fallback a blob comes from: longer than any fill takes.
const SERVED_FOR: Duration = Duration::from_secs(7 * 3600);
/// How many blobs that is known of.
const SERVED: u64 = 10_000;

/// The client for one upstream. Clones share connections, tokens and all else.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    priority: Priority,
}

struct Inner {
    upstream: ResourceId,
    /// The endpoint, and its fallbacks in the order in which to ask.
    sites: Vec<Arc<Site>>,
    /// Which fallback a blob comes from.
    served: Cache<Digest, usize>,
    /// Content that was wrong at a fallback.
    distrusted: Cache<(Digest, usize), ()>,
    disagreements: Mutex<VecDeque<Disagreement>>,
    metrics: RequestMetrics,
}

/// A fallback said something else than what was known, and was not believed.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// Which fallback.
    pub endpoint: Endpoint,
    /// The repository there.
    pub repository: RepositoryName,
    /// What was asked for.
    pub reference: Reference,
    /// What the tag means as far as is known, or what content was asked for.
    pub known: Digest,
    /// What the fallback said that the tag means; `None` if its content did not have the digest.
    pub said: Option<Digest>,
    /// When.
    pub at: Instant,
}

/// What is known of one endpoint of an upstream.
#[derive(Clone, Debug)]
pub struct EndpointHealth {
    /// Which one.
    pub endpoint: Endpoint,
    /// What is known of it.
    pub health: Health,
}

impl Client {
    /// Makes the client for `upstream`.
    ///
    /// # Errors
    /// If its authorities cannot be read, or TLS cannot be set up.
    pub fn new(upstream: &Upstream, limits: Limits) -> Result<Self, BuildError> {
        Self::measured(upstream, limits, &RequestMetrics::none(), Arc::new(Unmetered))
    }

    /// As [`Client::new`], with every request measured, and taken from what `account` may ask for.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn measured(
        upstream: &Upstream,
        limits: Limits,
        metrics: &RequestMetrics,
        account: Arc<dyn Account>,
    ) -> Result<Self, BuildError> {
        // An endpoint that is silent must leave time for another.
        let shared = u32::from(!upstream.fallback_endpoints.is_empty()) + 1;
        let limits = Limits { head: limits.head / shared, ..limits };
        let site = |of: &Upstream, account| {
            let requests = Requests::new(of, limits, metrics, account)?;
            Ok(Arc::new(Site { endpoint: of.endpoint.clone(), requests }))
        };
        let mut sites = vec![site(upstream, account)?];
        for endpoint in &upstream.fallback_endpoints {
            let place = endpoint.host_and_port();
            let port = place.port.unwrap_or_default();
            // It is another's, unless the operator says that it may have the credential.
            let may_have = upstream.allow_hosts.iter().any(|host| host.covers(&place.host, port));
            let credential = upstream.credential.clone().filter(|_| may_have);
            let fallback = Upstream { endpoint: endpoint.clone(), credential, ..upstream.clone() };
            sites.push(site(&fallback, Arc::new(Unmetered))?);
        }
        let inner = Inner {
            upstream: upstream.id.clone(),
            sites,
            served: Cache::builder().max_capacity(SERVED).time_to_live(SERVED_FOR).build(),
            distrusted: Cache::builder().max_capacity(SERVED).time_to_live(DISTRUSTED_FOR).build(),
            disagreements: Mutex::default(),
            metrics: metrics.clone(),
        };
        Ok(Self { inner: Arc::new(inner), priority: Priority::Pull })
    }

    /// The same client, asking for the sake of `priority`.
    #[must_use]
    pub fn at(&self, priority: Priority) -> Self {
        Self { inner: self.inner.clone(), priority }
    }

    /// What is known of the endpoint from what requests have shown.
    pub fn health(&self) -> Health {
        self.via(0).site.requests.circuit.health()
    }

    /// What is known of the endpoint and of its fallbacks, in the order in which they are asked.
    pub fn endpoints(&self) -> Vec<EndpointHealth> {
        let known = |site: &Arc<Site>| EndpointHealth {
            endpoint: site.endpoint.clone(),
            health: site.requests.circuit.health(),
        };
        self.inner.sites.iter().map(known).collect()
    }

    /// The last disagreements, the latest first.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        self.inner.disagreements.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Asks what `reference` means now, without fetching it.
    ///
    /// `None` if the upstream does not say: it answers no HEAD, or names no digest. Then only fetching it tells.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such manifest, and all that can happen to a request.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<Digest>, Error> {
        Ok(self.describe_manifest(repository, reference).await?.digest)
    }

    /// Asks what `reference` means now, and all that is said of it without fetching it.
    ///
    /// # Errors
    /// As [`Client::head_manifest`].
    pub async fn describe_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<DescribedManifest, Error> {
        let mut tour = self.tour(None);
        while let Some((_, via)) = tour.next() {
            if let Some(answer) = tour.heard(via.describe_manifest(repository, reference).await) {
                return answer;
            }
        }
        Err(tour.error())
    }

    /// As [`Client::head_manifest`] for a tag that meant `known` when the upstream last said so: a fallback may say the
    /// same, and nothing else.
    ///
    /// # Errors
    /// As [`Client::head_manifest`]; that of the endpoint, if no fallback says the same.
    pub async fn confirm_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        known: &Digest,
    ) -> Result<Option<Digest>, Error> {
        let reference = Reference::Tag(tag.clone());
        let mut tour = self.tour(None);
        while let Some((place, via)) = tour.next() {
            let said = via.describe_manifest(repository, &reference).await;
            let answer = match said.map(|described| described.digest) {
                Ok(Some(said)) if place > 0 && said != *known => {
                    Err(self.disagreed(place, repository, &reference, known, Some(said)))
                }
                Ok(None) if place > 0 => Err(Error::bad("does not say what a tag means")),
                answer => answer,
            };
            if let Some(answer) = tour.heard(answer) {
                return answer;
            }
        }
        Err(tour.error())
    }

    /// Fetches a manifest. Its bytes are verified if it is asked for by digest; behind a tag there may be any.
    ///
    /// What comes for a tag and is not what the upstream says of it is fetched once more: bytes are damaged by chance, and
    /// not twice in the same way. If they are the same again, they count and not what is said.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongDigest`], [`Error::TooLarge`], and all that can happen to a request.
    pub async fn manifest(&self, repository: &RepositoryName, reference: &Reference) -> Result<FetchedManifest, Error> {
        self.manifest_known_as(repository, reference, None).await
    }

    /// As [`Client::manifest`] where the tag is known to mean `known`: a fallback may send that, and nothing else.
    ///
    /// # Errors
    /// As [`Client::manifest`]; that of the endpoint, if no fallback sends it.
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
        let mut tour = self.tour(None);
        while let Some((place, via)) = tour.next() {
            let mut answer = via.manifest(repository, reference).await;
            if place > 0 {
                answer = self.agreed(place, repository, reference, known, answer);
            }
            if let Some(answer) = tour.heard(answer) {
                return answer;
            }
        }
        Err(tour.error())
    }

    /// What a fallback has sent, if it is what is known, or else what the fallback itself says it is.
    fn agreed(
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

    /// Asks whether a blob is there, and how large it is; `None` if the upstream does not say how large.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such blob, and all that can happen to a request.
    pub async fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Error> {
        let mut tour = self.tour(Some(digest));
        while let Some((_, via)) = tour.next() {
            if let Some(answer) = tour.heard(via.head_blob(repository, digest).await) {
                return answer;
            }
        }
        Err(tour.error())
    }

    /// Fetches a blob. The caller verifies it, and says so if it [was wrong](Self::was_wrong).
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such blob, and all that can happen to a request. Once the blob is on its
    /// way, a body that breaks off or stalls is gone on with; errors come as the stream's last item.
    pub async fn blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<BlobBody, Error> {
        let mut tour = self.tour(Some(digest));
        while let Some((place, via)) = tour.next() {
            let answer = via.blob(repository, digest).await;
            if answer.is_ok() {
                self.serves(place, digest);
            }
            if let Some(answer) = tour.heard(answer) {
                return answer;
            }
        }
        Err(tour.error())
    }

    /// Fetches a part of a blob, which is not empty. `None` if the upstream gives no parts.
    ///
    /// # Errors
    /// As [`Client::blob`].
    pub async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<Option<BlobStream>, Error> {
        let mut tour = self.tour(Some(digest));
        while let Some((place, via)) = tour.next() {
            let answer = via.blob_part(repository, digest, part.clone()).await;
            if let Ok(Some(_)) = &answer {
                self.serves(place, digest);
            }
            if let Some(answer) = tour.heard(answer) {
                return answer;
            }
        }
        Err(tour.error())
    }

    /// Takes in that a blob did not have its digest. Whether it came from a fallback: that one is not asked for it again,
    /// and another may have it.
    pub fn was_wrong(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        let Some(place) = self.inner.served.get(digest) else { return false };
        self.inner.served.invalidate(digest);
        self.inner.distrusted.insert((digest.clone(), place), ());
        self.disagreed(place, repository, &Reference::Digest(digest.clone()), digest, None);
        true
    }

    pub(crate) fn via(&self, place: usize) -> Via {
        Via { site: self.inner.sites[place].clone(), priority: self.priority }
    }

    fn tour<'c>(&'c self, digest: Option<&'c Digest>) -> Tour<'c> {
        Tour { client: self, digest, next: 0, error: None }
    }

    /// Notes where a blob comes from.
    fn serves(&self, place: usize, digest: &Digest) {
        if place > 0 {
            self.inner.served.insert(digest.clone(), place);
        } else if self.inner.sites.len() > 1 {
            self.inner.served.invalidate(digest);
        }
    }

    /// Tells of a fallback that is not believed, and says what that means to who has asked.
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
        self.inner.metrics.disagreed(upstream);
        let disagreement = Disagreement {
            endpoint,
            repository: repository.clone(),
            reference: reference.clone(),
            known: known.clone(),
            said,
            at: Instant::now(),
        };
        let mut all = self.inner.disagreements.lock().unwrap_or_else(PoisonError::into_inner);
        all.truncate(DISAGREEMENTS - 1);
        all.push_front(disagreement);
        Error::WrongDigest
    }
}

/// The endpoint, and its fallbacks in their order if that is away or limits our requests.
struct Tour<'c> {
    client: &'c Client,
    /// For which content.
    digest: Option<&'c Digest>,
    next: usize,
    /// What the endpoint failed with.
    error: Option<Error>,
}

impl Tour<'_> {
    /// Whom to ask next.
    fn next(&mut self) -> Option<(usize, Via)> {
        let inner = &self.client.inner;
        let is_trusted = |place: &usize| {
            *place == 0 || self.digest.is_none_or(|digest| !inner.distrusted.contains_key(&(digest.clone(), *place)))
        };
        let place = (self.next..inner.sites.len()).find(is_trusted)?;
        self.next = place + 1;
        Some((place, self.client.via(place)))
    }

    /// Takes in an answer; `None` if another one is to be asked. What a fallback fails with says nothing of what the
    /// upstream has.
    fn heard<T>(&mut self, answer: Result<T, Error>) -> Option<Result<T, Error>> {
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

    /// It fails as the endpoint did.
    fn error(self) -> Error {
        self.error.unwrap_or_else(Error::timed_out)
    }
}

impl EndpointHealth {
    /// Whether it is asked for what counts and what does not.
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
