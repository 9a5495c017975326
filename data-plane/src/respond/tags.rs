//! Answers with lists of tags.
//!
//! Source: OCI distribution specification 1.1, "Listing tags"; RFC 8288 for the link to the next page.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{RepositoryName, Tag};
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LINK};
use http::{HeaderValue, Response};
use serde::Serialize;

use super::{MOVABLE, stamp, warning};
use crate::body::{self, Body};
use crate::resolve::TagList;
use crate::target::TagPage;

#[derive(Serialize)]
struct Answer<'a> {
    name: &'a str,
    tags: Vec<&'a str>,
}

/// The answer to a client that requested one page, using this `name`.
pub(crate) fn response(name: &RepositoryName, page: &TagPage, list: &TagList, now: DateTime<Utc>) -> Response<Body> {
    let answer = Answer { name: name.as_str(), tags: list.tags.iter().map(Tag::as_str).collect() };
    // Plain strings can always be written as JSON.
    let bytes = Bytes::from(serde_json::to_vec(&answer).unwrap_or_default());
    let mut response = Response::new(body::empty());
    stamp(&mut response, list.outcome);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, bytes.len().into());
    headers.insert(CACHE_CONTROL, MOVABLE);
    if let Some(at) = list.listed {
        headers.insert(AGE, (now - at).to_std().unwrap_or_default().as_secs().into());
    }
    warning(headers, list.outcome, "this list of tags", list.listed);
    // An empty page has no last tag, so a link would lead nowhere.
    if let Some(last) = list.tags.last().filter(|_| list.has_more) {
        let link = format!("</v2/{name}/tags/list?n={}&last={last}>; rel=\"next\"", page.count);
        headers.extend(HeaderValue::from_str(&link).map(|value| (LINK, value)));
    }
    *response.body_mut() = body::full(bytes);
    response
}
