//! Lists of what refers to a manifest, as clients ask for them and as they are answered.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers". Each answer is one page: no list is longer than
//! clients take.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{MediaType, Referrer};
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response};
use url::form_urlencoded;

use super::body::{self, Body};
use super::respond::{MOVABLE, stamp, warning};
use crate::resolve::ReferrerList;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Which referrers are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReferrerFilter {
    /// Those of any of these types; empty is all.
    artifact_types: Vec<String>,
}

impl ReferrerFilter {
    /// Reads the query of a request.
    pub(crate) fn parse(query: &str) -> Self {
        // Types hold `+`, which clients send as it is, too; none holds a space, which it would mean here.
        let query = query.replace('+', "%2B");
        let types = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "artifactType");
        let artifact_types = types.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty()).collect();
        Self { artifact_types }
    }

    fn takes(&self, referrer: &Referrer) -> bool {
        let is = |wanted: &String| referrer.artifact_type.as_deref() == Some(wanted.as_str());
        self.artifact_types.is_empty() || self.artifact_types.iter().any(is)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_ref_03_types_are_any_of_those_named_with_a_plus_in_either_spelling() {
        let types = |query| ReferrerFilter::parse(query).artifact_types;
        assert_eq!(types("artifactType=a%2Fb%2Bjson&artifactType=c/d+json"), ["a/b+json", "c/d+json"]);
        assert_eq!(types("artifactType=&n=3"), [""; 0]);
        let referrer = |artifact_type: Option<&str>| Referrer {
            digest: None,
            artifact_type: artifact_type.map(Into::into),
            descriptor: "{}".into(),
        };
        let filter = ReferrerFilter::parse("artifactType=a&artifactType=b");
        let taken = [Some("a"), Some("b"), Some("c"), None].map(|text| filter.takes(&referrer(text)));
        assert_eq!(taken, [true, true, false, false]);
        assert!(ReferrerFilter::default().takes(&referrer(None)));
    }
}
