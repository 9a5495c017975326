//! The library's own HTTP client, extended to distinguish answers that the library treats alike, and to keep the time at
//! which they were given.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use http::header::DATE;
use http::{Method, StatusCode};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, Result};

/// How much of a refusing answer is examined and kept.
const KEPT_BYTES: usize = 600;
/// The longest answer that is read for that.
const READ_BYTES: u64 = 64 * 1024;

/// How services report a missing bucket, in contrast to a missing object.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"];

/// When the service gave an answer, by its own clock. The library hands it on with what is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct SaidAt(pub(super) DateTime<Utc>);

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
        let mut response = self.inner.execute(request).await?;
        let date = response.headers().get(DATE).and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
        if let Some(date) = date {
            response.extensions_mut().insert(SaidAt(date.to_utc()));
        }
        let status = response.status();
        match status.as_u16() {
            // An unsuccessful HEAD has no body.
            404 if is_head => Ok(response),
            404 => {
                let (parts, text) = read(response).await?;
                if NO_BUCKET.iter().any(|said| text.contains(said)) {
                    return Err(refusal_error(Refusal::NoBucket));
                }
                Ok(HttpResponse::from_parts(parts, text.into()))
            }
            416 => Err(refusal_error(Refusal::BehindEnd)),
            // The library itself distinguishes conditions.
            100..300 | 304 | 409 | 412 => Ok(response),
            _ => {
                let (_, mut text) = read(response).await?;
                let end = (0..=KEPT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0));
                Err(refusal_error(Refusal::Status { status, text }))
            }
        }
    }
}

/// An answer and its body as text; the text is empty if the body is too long.
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

fn refusal_error(refusal: Refusal) -> HttpError {
    // The kind `Unknown` keeps the library from repeating the request, which is done above.
    HttpError::new(HttpErrorKind::Unknown, refusal)
}
