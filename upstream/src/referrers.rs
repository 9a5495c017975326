//! The referrers of a manifest, page by page, within limits.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers", and its tag schema for registries without that API:
//! they keep the same index under a tag made of the digest.

use entrepot_domain::manifest::OCI_INDEX;
use entrepot_domain::referrer::{self, Referrer};
use entrepot_domain::upstream::RequestKind;
use entrepot_domain::{Digest, Manifest, MediaType, Reference, RepositoryName};
use futures_util::{StreamExt as _, stream};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::body;
use crate::client::Client;
use crate::error::Error;
use crate::pages::{Pages, next_page};
use crate::site::{SiteClient, header};

/// How many manifests are fetched at a time to find out their types.
const READS_AT_ONCE: usize = 8;

/// The answer of an upstream to a request for referrers.
enum Page {
    Of {
        referrers: Vec<Referrer>,
        next: Option<Url>,
    },
    /// It does not support the API, or the repository does not exist.
    Unknown,
}

impl Client {
    /// All manifests of a repository that refer to the one with this digest. If that does not exist, the list is empty.
    /// Fallbacks are not asked, since their lists may be incomplete.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] if there are too many, and any error of a request.
    pub async fn referrers(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Referrer>, Error> {
        let site = self.site_client(0);
        let limit = site.requests().limits.list;
        let referrers = tokio::time::timeout(limit, site.all_referrers(repository, digest)).await;
        let mut referrers = referrers.unwrap_or_else(|_| Err(Error::timed_out()))?;
        // Clients could not fetch these through us.
        referrers.retain(|referrer| referrer.digest.is_some());
        Ok(referrers)
    }
}

impl SiteClient {
    async fn all_referrers(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Referrer>, Error> {
        let limits = self.requests().limits;
        let mut pages = Pages::begin(self.site.endpoint.referrers_url(repository, digest));
        let (mut all, mut bytes) = (Vec::new(), 0);
        for _ in 0..limits.list_pages {
            let page = self.referrers_page(pages.url()).await.map_err(|error| pages.failure(error))?;
            let (referrers, next) = match page {
                Page::Of { referrers, next } => (referrers, next),
                Page::Unknown if pages.is_first() => return self.tagged_referrers(repository, digest).await,
                Page::Unknown => return Err(pages.failure(Error::NotFound)),
            };
            bytes += referrers.iter().map(|referrer| referrer.descriptor.len()).sum::<usize>();
            all.extend(referrers);
            // Clients accept no longer answer than the largest manifest.
            if all.len() > limits.referrers_count || bytes > limits.manifest_bytes {
                return Err(Error::bad(format!(
                    "names more than {} referrers, or {} bytes of them",
                    limits.referrers_count, limits.manifest_bytes
                )));
            }
            match next {
                Some(next) => pages.turn(next)?,
                None => return Ok(all),
            }
        }
        Err(Error::bad(format!("lists referrers on more than {} pages", limits.list_pages)))
    }

    async fn referrers_page(&self, url: &Url) -> Result<Page, Error> {
        let requests = self.requests();
        let mut ask = self.ask(RequestKind::List, Method::GET, url.clone());
        // Some registries redirect requests that they do not know to a web page.
        ask.stops_at = Some(StatusCode::SEE_OTHER);
        ask.headers.insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
        let ask = &ask;
        let read = |until| async move {
            let response = requests.ask(ask, until).await?;
            match response.status() {
                StatusCode::OK => {}
                // Registries that do not know the path answer in one of these ways.
                StatusCode::NOT_FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_ACCEPTABLE
                | StatusCode::NOT_IMPLEMENTED => return Ok(None),
                _ => return Err(requests.refusal(&response)),
            }
            let content_type: Option<String> = header(response.headers(), CONTENT_TYPE);
            let is_index = content_type.and_then(|text| text.parse().ok()) == Some(MediaType::OciIndex);
            if !is_index {
                return Ok(None);
            }
            body::require_identity(&response)?;
            let next = next_page(url, &response)?;
            let bytes = body::read(response, requests.limits.manifest_bytes, requests.limits.stall).await?;
            Ok(Some((bytes, next)))
        };
        let Some((bytes, next)) = self.with_retries(RequestKind::List, read).await? else { return Ok(Page::Unknown) };
        let referrers = Referrer::read_index(&bytes).map_err(|_| not_a_list())?;
        Ok(Page::Of { referrers, next })
    }

    /// The referrers under the tag made of the digest; empty if there is no such tag.
    async fn tagged_referrers(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Referrer>, Error> {
        let reference = Reference::Tag(referrer::fallback_tag(digest));
        let fetched = match self.manifest(repository, &reference).await {
            Ok(fetched) => fetched,
            Err(Error::NotFound) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // Some registries answer a tag that looks like a digest with the manifest itself. An index of another kind
        // under this tag was not written for referrers.
        let manifest = Manifest::parse(fetched.content_type.as_deref(), &fetched.bytes).map_err(|_| not_a_list())?;
        if manifest.media_type != MediaType::OciIndex || Digest::of(digest.algorithm(), &fetched.bytes) == *digest {
            return Ok(Vec::new());
        }
        let referrers = Referrer::read_index(&fetched.bytes).map_err(|_| not_a_list())?;
        let limits = self.requests().limits;
        if referrers.len() > limits.referrers_count {
            return Err(Error::bad(format!("names more than {} referrers", limits.referrers_count)));
        }
        Ok(self.typed(repository, referrers).await)
    }

    /// The same list, with the types of the manifests filled in where the list omits them. Clients write these lists,
    /// while our answer must contain the types. A manifest that cannot be read in time stays as it is.
    async fn typed(&self, repository: &RepositoryName, referrers: Vec<Referrer>) -> Vec<Referrer> {
        let limits = self.requests().limits;
        let until = Instant::now() + limits.stall;
        let mut reads = 0;
        let typed = referrers.into_iter().map(|referrer| {
            let is_read = referrer.known_type().is_none() && reads < limits.referrers_read;
            reads += usize::from(is_read);
            async move {
                let Some(digest) = referrer.digest.as_ref().filter(|_| is_read) else { return referrer };
                let reading = timeout_at(until, self.type_of(repository, digest)).await;
                match reading.ok().flatten() {
                    Some(artifact_type) => referrer.with_type(&artifact_type),
                    None => referrer,
                }
            }
        });
        stream::iter(typed.collect::<Vec<_>>()).buffered(READS_AT_ONCE).collect().await
    }

    /// The type of a manifest, according to the manifest itself.
    async fn type_of(&self, repository: &RepositoryName, digest: &Digest) -> Option<String> {
        let fetched = self.manifest(repository, &Reference::Digest(digest.clone())).await.ok()?;
        let manifest = Manifest::parse(fetched.content_type.as_deref(), &fetched.bytes).ok()?;
        let referrer = Referrer::of_manifest(digest, &manifest.media_type, &fetched.bytes).ok()?;
        referrer.artifact_type.map(Into::into)
    }
}

fn not_a_list() -> Error {
    Error::bad("sends a list of referrers that is none")
}
