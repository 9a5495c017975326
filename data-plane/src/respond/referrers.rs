//! Lists of what refers to a manifest, as they are answered.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers". Each answer is one page: no list is longer than
//! clients take.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::MediaType;
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response};

use super::{MOVABLE, stamp, warning};
use crate::body::{self, Body};
use crate::resolve::ReferrerList;
use crate::target::ReferrerFilter;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The answer to a client: an index, be it an empty one.
pub(crate) fn response(filter: &ReferrerFilter, list: &ReferrerList, now: DateTime<Utc>) -> Response<Body> {
    let taken = list.referrers.iter().filter(|referrer| filter.takes(referrer));
    let descriptors: Vec<&str> = taken.map(|referrer| &*referrer.descriptor).collect();
    let media_type = MediaType::OciIndex.as_str();
    let text = descriptors.join(",");
    let bytes = Bytes::from(format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{text}]}}"#));
    let mut response = Response::new(body::empty());
    stamp(&mut response, list.outcome);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_LENGTH, bytes.len().into());
    headers.insert(CACHE_CONTROL, MOVABLE);
    if !filter.artifact_types.is_empty() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(at) = list.listed {
        headers.insert(AGE, (now - at).to_std().unwrap_or_default().as_secs().into());
    }
    warning(headers, list.outcome, "this list of referrers", list.listed);
    *response.body_mut() = body::full(bytes);
    response
}
