//! `Link` of upstreams: the next page is found, there is none, or the header is reported as unreadable.

#![no_main]

#[allow(dead_code)]
#[path = "../../upstream/src/link.rs"]
mod link;
#[allow(dead_code)]
#[path = "../../upstream/src/scan.rs"]
mod scan;

use http::HeaderMap;
use http::header::{HeaderValue, LINK};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|lines: Vec<&[u8]>| {
    let values = lines.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok());
    let headers: HeaderMap = values.map(|value| (LINK, value)).collect();
    if let Ok(Some(target)) = link::next(&headers) {
        assert!(target.is_ascii() && !target.contains('>'));
    }
});
