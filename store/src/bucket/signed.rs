//! Requests to S3 that the library can sign but does not offer to send.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use object_store::Error;
use object_store::aws::AmazonS3;
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody, HttpResponse};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer as _};

/// How long the signature of a request is valid.
const SIGNED: Duration = Duration::from_secs(60);

/// Signs requests and sends them.
#[derive(Clone)]
pub(super) struct Signed {
    pub(super) s3: Arc<AmazonS3>,
    pub(super) http: HttpClient,
}

impl Signed {
    /// Sends a request without a body, and returns any answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &Path,
        query: &[(&str, &str)],
        headers: HeaderMap,
    ) -> Result<HttpResponse, Error> {
        let mut options = SignedUrlOptions::new().with_query(query.iter().copied());
        options.signed_headers = headers.clone();
        let url = self.s3.signed_url_opts(method.clone(), path, SIGNED, &options).await?;
        let (mut parts, body) = HttpRequest::new(HttpRequestBody::empty()).into_parts();
        parts.uri = url.as_str().parse().map_err(generic)?;
        (parts.method, parts.headers) = (method, headers);
        self.http.execute(HttpRequest::from_parts(parts, body)).await.map_err(generic)
    }
}

pub(super) fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "S3", source: source.into() }
}
