//! Answers with lists of referrers.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers". Each answer is a single page: no list is longer
//! than clients accept.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::Referrer;
use entrepot_domain::manifest::OCI_INDEX;
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response};

use super::{MOVABLE, stamp, warning};
use crate::body::{self, Body};
use crate::resolve::ReferrerList;
use crate::target::ReferrerFilter;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The answer to a client: an index, which may be empty.
pub(crate) fn response(filter: &ReferrerFilter, list: &ReferrerList, now: DateTime<Utc>) -> Response<Body> {
    let taken: Vec<&Referrer> = list.referrers.iter().filter(|referrer| filter.takes(referrer)).collect();
    let descriptors: Vec<&str> = taken.iter().map(|referrer| &*referrer.descriptor).collect();
    let is_filtered = !filter.artifact_types.is_empty() && taken.iter().all(|taken| taken.known_type().is_some());
    let media_type = OCI_INDEX;
    let text = descriptors.join(",");
    let bytes = Bytes::from(format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{text}]}}"#));
    let mut response = Response::new(body::empty());
    stamp(&mut response, list.outcome);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_LENGTH, bytes.len().into());
    headers.insert(CACHE_CONTROL, MOVABLE);
    if is_filtered {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(at) = list.listed {
        headers.insert(AGE, (now - at).to_std().unwrap_or_default().as_secs().into());
    }
    warning(headers, list.outcome, "this list of referrers", list.listed);
    *response.body_mut() = body::full(bytes);
    response
}
