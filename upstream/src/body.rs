//! Response bodies: read as a whole up to a limit, or streamed, and with a limit for every wait.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

use crate::error::Error;
use crate::transport::from_network;

/// How much of an unwanted answer is read so that its connection can be reused.
const DISCARDED_BYTES: usize = 64 * 1024;
const DISCARD_WAIT: Duration = Duration::from_secs(1);

/// Reads a whole body, which must be small enough to arrive within `wait`.
pub(crate) async fn read(response: Response, limit_bytes: usize, wait: Duration) -> Result<Bytes, Error> {
    let body = tokio::time::timeout(wait, read_all(response, limit_bytes)).await;
    body.unwrap_or_else(|_| Err(Error::timed_out()))
}

async fn read_all(mut response: Response, limit_bytes: usize) -> Result<Bytes, Error> {
    let too_large = || Error::TooLarge { limit_bytes };
    let expected = response.content_length().unwrap_or(0);
    if expected > limit_bytes as u64 {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(from_network)? {
        if body.len() + chunk.len() > limit_bytes {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Reads a little of an unwanted body, so that its connection can be reused.
pub(crate) async fn discard(mut response: Response) {
    let drained = async {
        let mut seen_bytes = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            seen_bytes += chunk.len();
            if seen_bytes > DISCARDED_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_WAIT, drained).await;
}

/// Whether the content is a web page.
pub(crate) fn is_web_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes().trim_ascii_start().to_ascii_lowercase());
    content_type.is_some_and(|text| text.starts_with(b"text/html") || text.starts_with(b"application/xhtml"))
}

/// Refuses an encoded body, since its bytes are not those that the digest identifies.
pub(crate) fn require_identity(response: &Response) -> Result<(), Error> {
    match response.headers().get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(_) => Err(Error::bad("sends its content with a `Content-Encoding` that was not asked for")),
    }
}

/// The next bytes of a body; `None` at its end.
pub(crate) async fn next(response: &mut Response, stall: Duration) -> Result<Option<Bytes>, Error> {
    let chunk = tokio::time::timeout(stall, response.chunk()).await;
    chunk.map_err(|_| Error::timed_out())?.map_err(from_network)
}
