//! Answers requests.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use super::Core;
use super::auth::{Auth, TOKEN_PATH};
use super::body::{Body, Delivery, body};
use super::content::{Content, Found};
use super::limit::Verdict;
use super::script::Fault;
use super::wire::HardEnd;
use crate::images::OCI_INDEX;

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An answer before it is sent.
struct Draft {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
    delivery: Delivery,
    length: Length,
}

/// The value of `Content-Length`.
#[derive(Clone, Copy)]
enum Length {
    /// The true length plus this difference.
    Announced(i64),
    /// There is none.
    Unsaid,
}

/// Answers one request. An error closes the connection without an answer.
pub(super) async fn answer(core: Arc<Core>, request: Request<Incoming>, hard: HardEnd) -> io::Result<Response<Body>> {
    let (mut request, incoming) = request.into_parts();
    if request.uri.path() == super::REPORT_PATH {
        return Ok(Response::new(body(
            core.log.report().to_string().into(),
            Delivery::default(),
            Arc::default(),
            hard,
        )));
    }
    let live = core.log.asked(&request);
    let (barriers, faults) = core.script.lock().take(&format!("{} {}", request.method, request.uri.path()));
    let form = incoming.collect().await.map_err(io::Error::other)?.to_bytes();
    for barrier in barriers {
        barrier.pass().await;
    }
    if faults.iter().any(|fault| matches!(fault, Fault::NoRanges)) {
        request.headers.remove(header::RANGE);
    }
    let mut draft = draft(&core, &request, &form);
    draft.limit(&core, &request);
    for fault in faults {
        befall(&core, &fault).await?;
        draft.spoil(fault, &request);
    }
    live.answered(draft.status.as_u16());
    let mut response = Response::new(());
    *response.status_mut() = draft.status;
    *response.headers_mut() = draft.headers;
    if let Length::Announced(off_by) = draft.length {
        let length = (draft.bytes.len() as u64).saturating_add_signed(off_by);
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    let bytes = if request.method == Method::HEAD { Bytes::new() } else { draft.bytes };
    Ok(response.map(|()| body(bytes, draft.delivery, live, hard)))
}

/// What a fault does to a request before there is an answer.
async fn befall(core: &Core, fault: &Fault) -> io::Result<()> {
    if let Fault::Silence = fault {
        std::future::pending::<()>().await;
    }
    if let Fault::Delay(wait) = fault {
        tokio::time::sleep(*wait).await;
    }
    if let Fault::HangUp = fault {
        return Err(io::Error::other("hung up by the script"));
    }
    if let Fault::ExpireTokens = fault {
        core.tokens.lock().revoke();
    }
    Ok(())
}

fn draft(core: &Core, request: &Parts, form: &[u8]) -> Draft {
    let path = request.uri.path();
    if path == TOKEN_PATH {
        let (status, value) = core.tokens.lock().give(request, form);
        return Draft::json(status, &value);
    }
    let target = target(path);
    if path != "/v2/" && target.is_none() {
        return Draft::error(StatusCode::NOT_FOUND, "UNSUPPORTED");
    }
    if core.tokens.lock().auth == Auth::Unwanted && request.headers.contains_key(header::AUTHORIZATION) {
        return Draft::error(StatusCode::BAD_REQUEST, "DENIED");
    }
    if let Err(challenge) = core.tokens.lock().admit(request, target.map(|(repository, ..)| repository), &core.base) {
        let mut draft = Draft::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        if !challenge.is_empty() {
            draft.header(header::WWW_AUTHENTICATE, &challenge);
        }
        return draft;
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return Draft::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    }
    let Some((repository, kind, name)) = target else { return Draft::json(StatusCode::OK, &json!({})) };
    let content = core.content.lock();
    if kind == Kind::Referrers && content.hides_referrers {
        return Draft::error(StatusCode::NOT_FOUND, "UNSUPPORTED");
    }
    let (found, unknown) = match kind {
        Kind::Tags => return Draft::tags(&content, repository, request.uri.query().unwrap_or_default()),
        Kind::Referrers => return Draft::referrers(&content.referrers(repository, name)),
        Kind::Manifest => (content.manifest(repository, name), "MANIFEST_UNKNOWN"),
        Kind::Blob => (content.blob(repository, name), "BLOB_UNKNOWN"),
    };
    match found {
        None => Draft::error(StatusCode::NOT_FOUND, unknown),
        Some(found) => Draft::content(found, request.headers.get(header::RANGE).filter(|_| kind == Kind::Blob)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// The repository, and the part of it.
fn target(path: &str) -> Option<(&str, Kind, &str)> {
    let path = path.strip_prefix("/v2/")?;
    if let Some(repository) = path.strip_suffix("/tags/list") {
        return Some((repository, Kind::Tags, ""));
    }
    if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        return Some((repository, Kind::Manifest, reference));
    }
    if let Some((repository, digest)) = path.rsplit_once("/referrers/") {
        return Some((repository, Kind::Referrers, digest));
    }
    path.rsplit_once("/blobs/").map(|(repository, digest)| (repository, Kind::Blob, digest))
}

impl Draft {
    /// Refuses requests beyond the limit like Docker Hub: without a `Retry-After`.
    fn limit(&mut self, core: &Core, request: &Parts) {
        // A request without a login is not counted.
        if self.status == StatusCode::UNAUTHORIZED {
            return;
        }
        let mut limit = core.limit.lock();
        if limit.ask(request) == Verdict::TooMany {
            *self = Self::error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS");
        }
        limit.tell(request, &mut self.headers);
    }

    fn json(status: StatusCode, value: &serde_json::Value) -> Self {
        let bytes = value.to_string().into();
        let mut draft = Self {
            status,
            headers: HeaderMap::new(),
            bytes,
            delivery: Delivery::default(),
            length: Length::Announced(0),
        };
        draft.header(header::CONTENT_TYPE, "application/json");
        draft
    }

    fn error(status: StatusCode, code: &str) -> Self {
        Self::json(status, &json!({ "errors": [{ "code": code, "message": "said by the fake upstream" }] }))
    }

    /// One page of tags, with a link to the next one.
    fn tags(content: &Content, repository: &str, query: &str) -> Self {
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let Some(tags) = content.tags(repository) else { return Self::error(StatusCode::NOT_FOUND, "NAME_UNKNOWN") };
        let asked = parameter("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let most = if content.tags_page == 0 { asked } else { asked.min(content.tags_page) };
        let last = parameter("last").unwrap_or_default();
        let behind: Vec<&String> = tags.iter().filter(|tag| tag.as_str() > last).collect();
        let page = &behind[..behind.len().min(most)];
        let mut draft = Self::json(StatusCode::OK, &json!({ "name": repository, "tags": page }));
        if let Some(last) = page.last().filter(|_| page.len() < behind.len()) {
            draft.header(header::LINK, &format!("</v2/{repository}/tags/list?n={asked}&last={last}>; rel=\"next\""));
        }
        draft
    }

    fn referrers(descriptors: &[serde_json::Value]) -> Self {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors });
        let mut draft = Self::json(StatusCode::OK, &index);
        draft.header(header::CONTENT_TYPE, OCI_INDEX);
        draft
    }

    fn content(found: Found, range: Option<&HeaderValue>) -> Self {
        let mut draft = Self::json(StatusCode::OK, &json!({}));
        draft.header(header::CONTENT_TYPE, &found.media_type);
        draft.header(DIGEST, &found.digest);
        draft.header(header::ACCEPT_RANGES, "bytes");
        let size = found.bytes.len();
        draft.bytes = found.bytes;
        match range.and_then(|range| parse_range(range.to_str().ok()?, size)) {
            None => {}
            Some(Some(Range { start, end })) => {
                draft.status = StatusCode::PARTIAL_CONTENT;
                draft.header(header::CONTENT_RANGE, &format!("bytes {start}-{}/{size}", end - 1));
                draft.bytes = draft.bytes.slice(start..end);
            }
            Some(None) => {
                draft = Self::error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
                draft.header(header::CONTENT_RANGE, &format!("bytes */{size}"));
            }
        }
        draft
    }

    fn header(&mut self, name: HeaderName, value: &str) {
        self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("the script's headers are legal"));
    }

    fn spoil(&mut self, fault: Fault, request: &Parts) {
        match fault {
            // These affect the request, not its answer.
            Fault::Silence | Fault::Delay(_) | Fault::HangUp | Fault::NoRanges | Fault::ExpireTokens => {}
            Fault::StallAfter(bytes) => self.delivery.stall_after = Some(bytes),
            Fault::CutAfter(bytes) => self.delivery.cut_after = Some(bytes),
            Fault::ResetAfter(bytes) => {
                self.delivery.cut_after = Some(bytes);
                self.delivery.resets = true;
            }
            Fault::EndAfter(bytes) => {
                self.delivery.end_after = Some(bytes);
                self.length = Length::Unsaid;
            }
            Fault::Rate(rate) => self.delivery.bytes_per_second = Some(rate.max(1)),
            Fault::FlipBit => self.flip_bit(self.bytes.len() / 2),
            Fault::FlipBitAt(at) => self.flip_bit(usize::try_from(at).unwrap_or(usize::MAX)),
            Fault::DigestHeader(digest) => self.header(DIGEST, &digest),
            Fault::NoDigestHeader => {
                self.headers.remove(DIGEST);
            }
            Fault::NoLength => self.length = Length::Unsaid,
            Fault::WrongLength(off_by) => {
                self.length = Length::Announced(off_by);
                self.delivery.ends_short = off_by > 0;
            }
            Fault::Html => {
                *self = Self::json(StatusCode::OK, &json!({}));
                self.header(header::CONTENT_TYPE, "text/html; charset=utf-8");
                self.bytes = "<!doctype html><title>Sign in</title>".into();
            }
            Fault::Status(status, retry_after) => {
                *self = Self::error(StatusCode::from_u16(status).expect("the script's status is legal"), "UNKNOWN");
                if let Some(retry_after) = retry_after {
                    self.header(header::RETRY_AFTER, &retry_after);
                }
            }
            Fault::Redirect(status, location) => {
                self.spoil(Fault::Status(status, None), request);
                self.header(header::LOCATION, &location);
            }
            Fault::RedirectToOrigin(origin) => {
                let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
                self.spoil(Fault::Redirect(307, format!("{origin}{path}")), request);
            }
            Fault::Header(name, value) => {
                self.header(HeaderName::try_from(name).expect("the script's headers are legal"), &value);
            }
            Fault::Body(bytes) => self.bytes = bytes.into(),
        }
    }

    fn flip_bit(&mut self, at: usize) {
        let mut bytes = self.bytes.to_vec();
        let at = at.min(bytes.len().saturating_sub(1));
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        self.bytes = bytes.into();
    }
}

/// The single range that is requested; `None` if it is not understood, `Some(None)` if it is outside of the content.
fn parse_range(text: &str, size: usize) -> Option<Option<Range<usize>>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = if first.is_empty() {
        (size.saturating_sub(last.parse().ok()?), size)
    } else {
        let last = if last.is_empty() { usize::MAX } else { last.parse().ok()? };
        (first.parse().ok()?, last.saturating_add(1).min(size))
    };
    Some((start < end).then_some(start..end))
}
