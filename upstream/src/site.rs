//! Requests for manifests and blobs to one endpoint of an upstream.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::upstream::{Endpoint, RequestKind};
use entrepot_domain::{Digest, MediaType, Priority, Reference, RepositoryName, Verifier};
use futures_util::stream::BoxStream;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE, VIA,
};
use reqwest::{Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::body;
use crate::error::Error;
use crate::request::{Ask, Requests};
use crate::resume;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One endpoint of an upstream.
pub(crate) struct Site {
    pub(crate) endpoint: Endpoint,
    pub(crate) requests: Requests,
}

/// One endpoint of an upstream, for requests of one priority.
#[derive(Clone)]
pub(crate) struct SiteClient {
    pub(crate) site: Arc<Site>,
    pub(crate) priority: Priority,
    /// The registries that the request has come through, this one last: `Via`.
    pub(crate) hops: HeaderValue,
}

/// An upstream's description of a manifest that it has not sent. Nothing of it is verified, and any of it may be
/// missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescribedManifest {
    /// The manifest's digest.
    pub digest: Option<Digest>,
    /// The manifest's media type.
    pub media_type: Option<MediaType>,
    /// The manifest's size.
    pub size_bytes: Option<u64>,
}

/// A manifest as the upstream sent it. One that was asked for by digest is verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// The manifest, byte for byte.
    pub bytes: Bytes,
    /// The upstream's `Content-Type`.
    pub content_type: Option<String>,
    /// Whether the bytes have the digest that the upstream says, if it says one.
    pub is_as_said: bool,
}

/// A blob's bytes as they arrive, not verified. The stream ends after its first error.
pub type BlobStream = BoxStream<'static, Result<Bytes, Error>>;

/// A blob that is being sent.
pub struct BlobBody {
    /// The blob's size, if the upstream says it.
    pub size_bytes: Option<u64>,
    /// The blob's bytes.
    pub stream: BlobStream,
}

impl SiteClient {
    pub(crate) fn requests(&self) -> &Requests {
        &self.site.requests
    }

    /// A request for this kind of content.
    pub(crate) fn ask(&self, kind: RequestKind, method: Method, url: Url) -> Ask {
        let mut ask = Ask::new(kind, method, url);
        ask.headers.insert(VIA, self.hops.clone());
        ask
    }

    /// Sends a request, with the retries of [`Requests::with_retries`].
    pub(crate) async fn with_retries<T, F>(&self, kind: RequestKind, attempt: impl Fn(Instant) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.requests().with_retries(self.priority, kind, attempt).await
    }

    /// Asks what `reference` means now, without fetching it. The description is empty if the upstream answers no HEAD.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such manifest, and all that can happen to a request.
    pub(crate) async fn describe_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<DescribedManifest, Error> {
        let ask = self.manifest_ask(Method::HEAD, repository, reference);
        let requests = self.requests();
        let response = self.with_retries(ask.kind, |until| requests.ask(&ask, until)).await?;
        let headers = response.headers();
        match response.status().as_u16() {
            200 => Ok(DescribedManifest {
                digest: header(headers, DOCKER_CONTENT_DIGEST),
                media_type: header::<String>(headers, CONTENT_TYPE).and_then(|text| MediaType::known(&text)),
                size_bytes: content_length(headers),
            }),
            // Registries without HEAD answer in each of these ways.
            400 | 403 | 405 | 501 => Ok(DescribedManifest::default()),
            _ => Err(requests.refusal(&response)),
        }
    }

    /// Fetches a manifest. Its bytes are verified if it is asked for by digest; for a tag, any bytes may come.
    ///
    /// If the bytes for a tag do not have the digest that the upstream says, they are fetched again: a transfer is
    /// damaged by chance, and not twice in the same way. If the same bytes come again, they count, and the header does
    /// not.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongDigest`], [`Error::TooLarge`], and all that can happen to a request.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        let ask = self.manifest_ask(Method::GET, repository, reference);
        let fetch = || self.with_retries(ask.kind, |until| self.fetch_manifest(&ask, reference, until));
        let first = fetch().await?;
        if first.is_as_said {
            return Ok(first);
        }
        let again = fetch().await?;
        if again.is_as_said || again.bytes == first.bytes { Ok(again) } else { Err(Error::WrongDigest) }
    }

    async fn fetch_manifest(
        &self,
        ask: &Ask,
        reference: &Reference,
        head_until: Instant,
    ) -> Result<FetchedManifest, Error> {
        let requests = self.requests();
        let response = requests.ask(ask, head_until).await?;
        if response.status() != StatusCode::OK {
            return Err(requests.refusal(&response));
        }
        body::require_identity(&response)?;
        let content_type: Option<String> = header(response.headers(), CONTENT_TYPE);
        if body::is_web_page(response.headers()) {
            return Err(Error::bad("answers with a web page instead of a manifest; is its endpoint right?"));
        }
        let said: Option<Digest> = header(response.headers(), DOCKER_CONTENT_DIGEST);
        let bytes = body::read(response, requests.limits.manifest_bytes, requests.limits.stall).await?;
        let is = |digest: &Digest| {
            let mut verifier = Verifier::new(digest.clone());
            verifier.update(&bytes);
            verifier.finish()
        };
        let is_as_said = match reference {
            Reference::Digest(digest) if !is(digest) => return Err(Error::WrongDigest),
            Reference::Digest(_) => true,
            Reference::Tag(_) => said.as_ref().is_none_or(is),
        };
        Ok(FetchedManifest { bytes, content_type, is_as_said })
    }

    /// Asks whether a blob exists. Returns its size; `None` if the upstream does not say it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such blob, and all that can happen to a request.
    pub(crate) async fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Error> {
        let requests = self.requests();
        let url = self.site.endpoint.blob_url(repository, digest);
        let ask = self.ask(RequestKind::Blob, Method::HEAD, url.clone());
        let response = self.with_retries(ask.kind, |until| requests.ask(&ask, until)).await?;
        match (response.status().as_u16(), content_length(response.headers())) {
            (200, Some(size_bytes)) => return Ok(Some(size_bytes)),
            // There is no length, or no HEAD: the URLs of redirects are often signed for GET alone.
            (200 | 400 | 403 | 405 | 501, _) => {}
            _ => return Err(requests.refusal(&response)),
        }
        let whole = self.ask(RequestKind::Blob, Method::GET, url);
        let mut first = whole.clone();
        first.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        for ask in [first, whole] {
            let response = self.with_retries(ask.kind, |until| requests.ask(&ask, until)).await?;
            match response.status().as_u16() {
                200 => return Ok(content_length(response.headers())),
                // An empty blob has no first byte, and so no such range.
                206 | 416 => return Ok(size_in_content_range(response.headers())),
                400 if ask.headers.contains_key(RANGE) => {}
                _ => return Err(requests.refusal(&response)),
            }
        }
        Ok(None)
    }

    /// Fetches a blob. The caller verifies it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such blob, and all that can happen to a request. A body that breaks off or stalls
    /// is resumed; if that fails, the error is the stream's last item.
    pub(crate) async fn blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<BlobBody, Error> {
        let requests = self.requests();
        let ask = self.ask(RequestKind::Blob, Method::GET, self.site.endpoint.blob_url(repository, digest));
        let response = self.with_retries(ask.kind, |until| requests.ask(&ask, until)).await?;
        if response.status() != StatusCode::OK {
            return Err(requests.refusal(&response));
        }
        body::require_identity(&response)?;
        let size_bytes = content_length(response.headers());
        Ok(BlobBody { size_bytes, stream: resume::stream(self.clone(), ask, response) })
    }

    /// Fetches a part of a blob, which is not empty. `None` if the upstream does not serve this part.
    ///
    /// # Errors
    /// As [`Self::blob`].
    pub(crate) async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<Option<BlobStream>, Error> {
        let requests = self.requests();
        let mut ask = self.ask(RequestKind::Blob, Method::GET, self.site.endpoint.blob_url(repository, digest));
        ask.headers.insert(RANGE, resume::range_header(part.start, Some(part.end)));
        let response = self.with_retries(ask.kind, |until| requests.ask(&ask, until)).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                body::require_identity(&response)?;
                Ok(resume::part(self.clone(), ask, response, part))
            }
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::BAD_REQUEST => Ok(None),
            _ => Err(requests.refusal(&response)),
        }
    }

    pub(crate) fn manifest_ask(&self, method: Method, repository: &RepositoryName, reference: &Reference) -> Ask {
        let kind = if method == Method::HEAD { RequestKind::ManifestHead } else { RequestKind::Manifest };
        let mut ask = self.ask(kind, method, self.site.endpoint.manifest_url(repository, reference));
        ask.headers.insert(ACCEPT, accepted_manifests());
        ask
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

/// All four types in one line, since some registries convert or refuse types that are not listed; then any other type.
fn accepted_manifests() -> HeaderValue {
    let types = MediaType::KNOWN.iter().map(MediaType::as_str).chain(["*/*"]).collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(types).expect("media types are visible ASCII")
}

pub(crate) fn header<T: std::str::FromStr>(headers: &HeaderMap, name: HeaderName) -> Option<T> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, CONTENT_LENGTH)
}

pub(crate) fn size_in_content_range(headers: &HeaderMap) -> Option<u64> {
    let range: String = header(headers, CONTENT_RANGE)?;
    range.rsplit_once('/')?.1.parse().ok()
}
