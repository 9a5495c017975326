//! The way to the service: the library's own HTTP client, with answers told apart that the library lumps together.

use async_trait::async_trait;
use http::{Method, StatusCode};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, Result};

/// How much of an answer that refuses is looked at and kept.
const KEPT_BYTES: usize = 600;
/// The longest answer that is read for it.
const READ_BYTES: u64 = 64 * 1024;

/// What services say about a bucket that is not there, which a missing object is not.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"];

/// An answer that the library would report without its status.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no such bucket")]
    NoBucket,
    #[error("the range begins behind the end")]
    BehindEnd,
    #[error("the service answered {status}: {text}")]
    Status { status: StatusCode, text: String },
}

#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Transport { inner }))
    }
}

#[derive(Debug)]
struct Transport {
    inner: HttpClient,
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_head = request.method() == Method::HEAD;
        let response = self.inner.execute(request).await?;
        let status = response.status();
        match status.as_u16() {
            // A HEAD that finds nothing says nothing either.
            404 if is_head => Ok(response),
            404 => {
                let (parts, text) = read(response).await?;
                if NO_BUCKET.iter().any(|said| text.contains(said)) {
                    return Err(refused(Refusal::NoBucket));
                }
                Ok(HttpResponse::from_parts(parts, text.into()))
            }
            416 => Err(refused(Refusal::BehindEnd)),
            // Conditions are what the library tells apart itself.
            100..300 | 304 | 409 | 412 => Ok(response),
            _ => {
                let (_, mut text) = read(response).await?;
                let end = (0..=KEPT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0));
                Err(refused(Refusal::Status { status, text }))
            }
        }
    }
}

/// An answer with its body as text, which is empty where that is too long.
async fn read(response: HttpResponse) -> Result<(http::response::Parts, String), HttpError> {
    let (parts, body) = response.into_parts();
    let length = parts.headers.get(http::header::CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length| length > READ_BYTES) {
        return Ok((parts, String::new()));
    }
    let bytes = body.bytes().await?;
    Ok((parts, String::from_utf8_lossy(&bytes).into_owned()))
}

fn refused(refusal: Refusal) -> HttpError {
    // Unknown: the library does not try such a request again, which is done above.
    HttpError::new(HttpErrorKind::Unknown, refusal)
}
