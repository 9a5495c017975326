//! Answers to pulls: exact bytes, exact media type, and the headers that clients use.
//!
//! Source: OCI distribution specification 1.1 "Pull"; RFC 9110 for ranges and conditions; RFC 9211 for Cache-Status.

pub(crate) mod referrers;
pub(crate) mod tags;

use std::ops::Range;

use chrono::{DateTime, Utc};
use entrepot_domain::range::{Wanted, wanted};
use entrepot_domain::{Digest, MediaType, Reference};
use entrepot_records as records;
use futures_util::StreamExt as _;
use http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::body::{self, Body, Cut};
use crate::error::PullError;
use crate::outcome::Outcome;
use crate::repository::{Ready, Repositories, within_limit};
use crate::resolve::{Blob, Content, Resolved, UpstreamHead};
use crate::target;
use crate::trail::{self, Note};

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const WARNING: HeaderName = HeaderName::from_static("warning");

/// For content that is served although the store, which may have newer data, does not answer.
const STORE_AWAY: HeaderValue = HeaderValue::from_static("entrepot; hit; detail=store-away");

/// Content with a digest never changes.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable, no-transform");
/// Caches in between must ask us what a tag means.
const MOVABLE: HeaderValue = HeaderValue::from_static("no-cache, no-transform");

/// The answer with the content of a pull; `None` if the content is gone since it was found, or turns out to be damaged,
/// and has to be looked for again.
pub(crate) async fn content(
    request: &Parts,
    wanted: &target::Content,
    content: Content,
    repositories: &Repositories,
    now: DateTime<Utc>,
) -> Result<Option<Response<Body>>, PullError> {
    match (content, wanted) {
        (Content::Manifest(resolved), target::Content::Manifest(reference)) => {
            Ok(Some(manifest(request, reference, resolved, now)))
        }
        (Content::ManifestHead(head), target::Content::Manifest(reference)) => {
            Ok(Some(manifest_head(request, reference, &head)))
        }
        (Content::Blob(found), target::Content::Blob(digest)) => blob(request, digest, found, repositories).await,
        (Content::Blob(_), target::Content::Manifest(_))
        | (Content::Manifest(_) | Content::ManifestHead(_), target::Content::Blob(_)) => Err(PullError::Internal),
    }
}

/// The answer with a manifest, exactly as it was verified, whatever the client says that it accepts.
///
/// For a tag, `Age` says how long ago the upstream last confirmed it.
fn manifest(request: &Parts, reference: &Reference, resolved: Resolved, now: DateTime<Utc>) -> Response<Body> {
    let mut response = Response::new(body::empty());
    stamp(&mut response, resolved.outcome);
    let headers = response.headers_mut();
    content_headers(headers, &resolved.digest);
    headers.insert(CONTENT_TYPE, content_type(&resolved.media_type));
    headers.insert(CACHE_CONTROL, if matches!(reference, Reference::Tag(_)) { MOVABLE } else { IMMUTABLE });
    if let Some(at) = resolved.validated {
        headers.insert(AGE, (now - at).to_std().unwrap_or_default().as_secs().into());
    }
    warning(headers, resolved.outcome, "this tag", resolved.validated);
    if matches_etag(&request.headers, &resolved.digest) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    response.headers_mut().insert(CONTENT_LENGTH, resolved.bytes.len().into());
    *response.body_mut() = body::full(resolved.bytes);
    response
}

/// A manifest's type. Each fits into a header.
fn content_type(media_type: &MediaType) -> HeaderValue {
    let octets = HeaderValue::from_static("application/octet-stream");
    HeaderValue::from_str(media_type.as_str()).unwrap_or(octets)
}

/// The answer to who asks what a manifest is that is not here, as its upstream says it.
fn manifest_head(request: &Parts, reference: &Reference, head: &UpstreamHead) -> Response<Body> {
    let mut response = Response::new(body::empty());
    stamp(&mut response, Outcome::Bypass);
    let headers = response.headers_mut();
    content_headers(headers, &head.digest);
    headers.insert(CONTENT_TYPE, content_type(&head.media_type));
    headers.insert(CACHE_CONTROL, if matches!(reference, Reference::Tag(_)) { MOVABLE } else { IMMUTABLE });
    if matches_etag(&request.headers, &head.digest) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    response.headers_mut().insert(CONTENT_LENGTH, head.size_bytes.into());
    response
}

/// The answer with a blob, or the requested part of it.
async fn blob(
    request: &Parts,
    digest: &Digest,
    blob: Blob,
    repositories: &Repositories,
) -> Result<Option<Response<Body>>, PullError> {
    let (size_bytes, outcome) = match &blob {
        Blob::Stored { ready, outcome } => (Some(ready.size_bytes()), *outcome),
        Blob::Landing(landed) => (landed.size_bytes, landed.outcome()),
        Blob::Known { size_bytes } => (*size_bytes, Outcome::Miss),
    };
    let mut response = Response::new(body::empty());
    stamp(&mut response, outcome);
    let headers = response.headers_mut();
    content_headers(headers, digest);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if matches_etag(&request.headers, digest) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(Some(response));
    }
    let range = match size_bytes.map(|size| (size, wanted(range_header(request, digest), size))) {
        None | Some((_, Wanted::Whole)) => None,
        Some((size, Wanted::Part(range))) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            content_range(response.headers_mut(), &format!("bytes {}-{}/{size}", range.start, range.end - 1));
            Some(range)
        }
        Some((size, Wanted::Unsatisfiable)) => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            content_range(response.headers_mut(), &format!("bytes */{size}"));
            response.headers_mut().insert(CONTENT_LENGTH, 0.into());
            return Ok(Some(response));
        }
    };
    if let Some(length) = range.as_ref().map(|range| range.end - range.start).or(size_bytes) {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    let Some(body) = blob_body(blob, digest, range, repositories).await? else { return Ok(None) };
    *response.body_mut() = body;
    Ok(Some(response))
}

async fn blob_body(
    blob: Blob,
    digest: &Digest,
    range: Option<Range<u64>>,
    repositories: &Repositories,
) -> Result<Option<Body>, PullError> {
    match blob {
        Blob::Stored { ready: Ready::Small(bytes), .. } => {
            let at = |end: u64| usize::try_from(end).unwrap_or(usize::MAX).min(bytes.len());
            Ok(Some(body::full(match range {
                Some(range) => bytes.slice(at(range.start)..at(range.end)),
                None => bytes,
            })))
        }
        Blob::Stored { ready: Ready::Large(records::Content { object, size_bytes }), .. } => {
            let read = repositories.open(&object, range.unwrap_or(0..size_bytes), digest);
            let Some(bytes) = within_limit(read).await? else {
                // It may have been deleted while its presence was held in memory.
                repositories.memory.forget(&object);
                return Ok(None);
            };
            let damaged = repositories.damaged.clone();
            Ok(Some(body::stream(bytes.map(move |chunk| {
                chunk.map_err(|error| {
                    damaged.note_if(&error);
                    Cut::because(error)
                })
            }))))
        }
        Blob::Landing(landed) => Ok(Some(body::stream(landed.stream(range)))),
        Blob::Known { .. } => Ok(Some(body::empty())),
    }
}

/// Adds how the answer came about.
fn stamp(response: &mut Response<Body>, outcome: Outcome) {
    response.extensions_mut().insert(outcome);
    response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(cache_status(outcome)));
    if trail::has(&Note::LastKnown) && !matches!(outcome, Outcome::Miss | Outcome::Follow | Outcome::Bypass) {
        response.headers_mut().insert(CACHE_STATUS, STORE_AWAY);
    }
}

/// Warns a client about content that its upstream should have confirmed.
fn warning(headers: &mut HeaderMap, outcome: Outcome, what: &str, confirmed: Option<DateTime<Utc>>) {
    if outcome == Outcome::Stale {
        let since = confirmed.map_or_else(|| "never".to_owned(), |at| format!("at {}", at.format("%FT%TZ")));
        let text = format!(r#"299 - "the upstream does not confirm {what} now; it last did {since}""#);
        headers.extend(HeaderValue::from_str(&text).map(|value| (WARNING, value)));
    }
}

fn content_headers(headers: &mut HeaderMap, digest: &Digest) {
    // A digest is a legal header value, quoted or not.
    headers.extend(HeaderValue::from_str(&digest.to_string()).map(|value| (DIGEST, value)));
    headers.extend(HeaderValue::from_str(&format!("\"{digest}\"")).map(|value| (ETAG, value)));
}

fn cache_status(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Hit => "entrepot; hit",
        Outcome::Revalidated => "entrepot; hit; detail=revalidated",
        Outcome::Miss => "entrepot; fwd=miss; stored",
        Outcome::Follow => "entrepot; fwd=miss; collapsed; detail=follow",
        Outcome::Background => "entrepot; hit; detail=background",
        Outcome::Stale => "entrepot; hit; detail=stale",
        Outcome::Bypass => "entrepot; fwd=bypass",
    }
}

/// `If-None-Match` with a list, or `*`. Weak tags match as well, since equal digests mean equal bytes.
fn matches_etag(headers: &HeaderMap, digest: &Digest) -> bool {
    let wanted = digest.to_string();
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == wanted)
}

/// The range that applies: none on HEAD, and none if `If-Range` names other bytes.
fn range_header<'r>(request: &'r Parts, digest: &Digest) -> Option<&'r str> {
    if request.method == Method::HEAD {
        return None;
    }
    let same = match request.headers.get(IF_RANGE) {
        None => true,
        Some(tag) => tag.to_str().is_ok_and(|tag| tag.trim_matches('"') == digest.to_string()),
    };
    request.headers.get(RANGE).filter(|_| same)?.to_str().ok()
}

fn content_range(headers: &mut HeaderMap, text: &str) {
    headers.extend(HeaderValue::from_str(text).map(|value| (CONTENT_RANGE, value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> Parts {
        let mut builder = http::Request::get("/");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn r_pull_06_conditions_compare_digests() {
        let digest = Digest::sha256(b"x");
        for (value, matches) in [
            (format!("\"{digest}\""), true),
            (format!("W/\"{digest}\""), true),
            (format!("\"a\", \"{digest}\""), true),
            ("*".to_owned(), true),
            ("\"a\"".to_owned(), false),
        ] {
            assert_eq!(matches_etag(&request(&[("if-none-match", &value)]).headers, &digest), matches, "{value}");
        }
    }

    #[test]
    fn r_range_07_if_range_with_another_digest_gets_the_whole() {
        let digest = Digest::sha256(b"x");
        let same = format!("\"{digest}\"");
        assert_eq!(range_header(&request(&[("range", "bytes=1-"), ("if-range", &same)]), &digest), Some("bytes=1-"));
        assert_eq!(range_header(&request(&[("range", "bytes=1-"), ("if-range", "\"y\"")]), &digest), None);
        assert_eq!(range_header(&request(&[("range", "bytes=1-")]), &digest), Some("bytes=1-"));
    }
}
