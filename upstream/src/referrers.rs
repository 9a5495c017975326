//! What refers to a manifest, as far as the upstream leads on, within limits.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers", and its tag schema for registries that do not know
//! the API: there, an index under a tag that is made of the digest holds the same.

use entrepot_domain::referrer::{self, Referrer};
use entrepot_domain::upstream::RequestKind;
use entrepot_domain::{Digest, Manifest, MediaType, Reference, RepositoryName};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::body;
use crate::client::Client;
use crate::error::Error;
use crate::request::Ask;
use crate::site::{Via, header};
use crate::tags::next_page;

/// What an upstream says to a question for referrers.
enum Page {
    Of {
        referrers: Vec<Referrer>,
        next: Option<Url>,
    },
    /// It does not know the API, or there is no such repository.
    Unknown,
}

impl Client {
    /// All manifests of a repository that refer to the one with this digest. There are none to what does not exist.
    /// Fallbacks are not asked: nothing says whether their lists are complete.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] if there are too many, and all that can happen to a request.
    pub async fn referrers(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Referrer>, Error> {
        let via = self.via(0);
        let limit = via.requests().limits.list;
        let referrers = tokio::time::timeout(limit, via.all_referrers(repository, digest)).await;
        let mut referrers = referrers.unwrap_or_else(|_| Err(Error::timed_out()))?;
        // What cannot be fetched through here is no use to anybody who asks here.
        referrers.retain(|referrer| referrer.digest.is_some());
        Ok(referrers)
    }
}

impl Via {
    async fn all_referrers(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Referrer>, Error> {
        let limits = self.requests().limits;
        let mut url = self.site.endpoint.referrers_url(repository, digest);
        let (mut all, mut bytes) = (Vec::new(), 0);
        for number in 0..limits.list_pages {
            let (referrers, next) = match self.referrers_page(&url).await? {
                Page::Of { referrers, next } => (referrers, next),
                Page::Unknown if number == 0 => return self.tagged_referrers(repository, digest).await,
                Page::Unknown => return Err(Error::bad("names a next page of referrers that there is not")),
            };
            bytes += referrers.iter().map(|referrer| referrer.descriptor.len()).sum::<usize>();
            all.extend(referrers);
            // Clients take no longer answer than a manifest may be.
            if all.len() > limits.referrers_count || bytes > limits.manifest_bytes {
                return Err(Error::bad(format!(
                    "names more than {} referrers, or {} bytes of them",
                    limits.referrers_count, limits.manifest_bytes
                )));
            }
            match next {
                Some(next) => url = next,
                None => return Ok(all),
            }
        }
        Err(Error::bad(format!("lists referrers on more than {} pages", limits.list_pages)))
    }

    async fn referrers_page(&self, url: &Url) -> Result<Page, Error> {
        let requests = self.requests();
        let mut ask = Ask::new(RequestKind::List, Method::GET, url.clone());
        // Some registries send who asks for what they do not know to a web page.
        ask.stops_at = Some(StatusCode::SEE_OTHER);
        ask.headers.insert(ACCEPT, HeaderValue::from_static(MediaType::OciIndex.as_str()));
        let ask = &ask;
        let read = |until| async move {
            let response = requests.ask(ask, until).await?;
            match response.status() {
                StatusCode::OK => {}
                // Registries that do not know the path say so in each of these ways.
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
            let next = next_page(url, response.headers())?;
            let bytes = body::read(response, requests.limits.manifest_bytes, requests.limits.stall).await?;
            Ok(Some((bytes, next)))
        };
        let Some((bytes, next)) = self.patiently(RequestKind::List, read).await? else { return Ok(Page::Unknown) };
        let referrers = Referrer::read_index(&bytes).map_err(|_| not_a_list())?;
        Ok(Page::Of { referrers, next })
    }

    /// The referrers under the tag that is made of the digest; none if there is no such tag.
    async fn tagged_referrers(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Referrer>, Error> {
        let reference = Reference::Tag(referrer::fallback_tag(digest));
        let fetched = match self.manifest(repository, &reference).await {
            Ok(fetched) => fetched,
            Err(Error::NotFound) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // Some registries answer with the manifest itself for a tag that looks like its digest; another index under
        // this tag was not put there by whoever refers to something.
        let manifest = Manifest::parse(fetched.content_type.as_deref(), &fetched.bytes).map_err(|_| not_a_list())?;
        if manifest.media_type != MediaType::OciIndex || Digest::of(digest.algorithm(), &fetched.bytes) == *digest {
            return Ok(Vec::new());
        }
        let referrers = Referrer::read_index(&fetched.bytes).map_err(|_| not_a_list())?;
        let limits = self.requests().limits;
        if referrers.len() > limits.referrers_count {
            return Err(Error::bad(format!("names more than {} referrers", limits.referrers_count)));
        }
        Ok(referrers)
    }
}

fn not_a_list() -> Error {
    Error::bad("sends a list of referrers that is none")
}
