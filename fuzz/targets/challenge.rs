//! `WWW-Authenticate` of upstreams: whatever it contains is parsed or skipped.

#![no_main]

#[allow(dead_code)]
#[path = "../../upstream/src/challenge.rs"]
mod challenge;
#[allow(dead_code)]
#[path = "../../upstream/src/scan.rs"]
mod scan;

use challenge::Challenge;
use http::HeaderMap;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|headers: Vec<&[u8]>| {
    let values = headers.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok());
    let headers: HeaderMap = values.map(|value| (WWW_AUTHENTICATE, value)).collect();
    if let Some(Challenge::Bearer { realm, service, scope }) = Challenge::of(&headers) {
        assert!(!realm.scheme().is_empty() && service.as_deref() != Some("") && scope.as_deref() != Some(""));
    }
});
