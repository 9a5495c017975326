//! Lists of tags, as clients ask for them and as they are answered.
//!
//! Source: OCI distribution specification 1.1, "Listing tags"; RFC 8288 for the link to the next page.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{RepositoryName, Tag};
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LINK};
use http::{HeaderValue, Response};
use serde::Serialize;
use url::form_urlencoded;

use super::body::{self, Body};
use super::respond::{MOVABLE, stamp, warning};
use super::route::RouteError;
use crate::resolve::TagList;

/// The most tags in one answer, and as many as there are unless a client wants fewer.
const MOST: usize = 1000;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TagPage {
    /// How many tags at most.
    pub(crate) count: usize,
    /// The tag that they come behind; it need not exist.
    pub(crate) last: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    name: &'a str,
    tags: Vec<&'a str>,
}

impl TagPage {
    /// Reads the query of a request.
    ///
    /// # Errors
    /// If `n` is no number.
    pub(crate) fn parse(query: &str) -> Result<Self, RouteError> {
        let mut page = Self { count: MOST, last: String::new() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "n" => page.count = value.parse::<usize>().map_err(|_| RouteError::PageSize)?.min(MOST),
                "last" => page.last = value.into_owned(),
                _ => {}
            }
        }
        Ok(page)
    }
}

/// The answer to a client that asked by `name` for one page.
pub(crate) fn response(name: &RepositoryName, page: &TagPage, list: &TagList, now: DateTime<Utc>) -> Response<Body> {
    let answer = Answer { name: name.as_str(), tags: list.tags.iter().map(Tag::as_str).collect() };
    // Plain strings: nothing that JSON could not hold.
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
    // A page of nothing has no last one to go on behind, so the link would lead nowhere.
    if let Some(last) = list.tags.last().filter(|_| list.has_more) {
        let link = format!("</v2/{name}/tags/list?n={}&last={last}>; rel=\"next\"", page.count);
        headers.extend(HeaderValue::from_str(&link).map(|value| (LINK, value)));
    }
    *response.body_mut() = body::full(bytes);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_which_page_and_no_page_is_larger_than_1000() {
        let page = |count, last: &str| Ok(TagPage { count, last: last.to_owned() });
        assert_eq!(TagPage::parse(""), page(1000, ""));
        assert_eq!(TagPage::parse("n=10&last=v1.2"), page(10, "v1.2"));
        assert_eq!(TagPage::parse("last=a%2Bb&other=1&n=0"), page(0, "a+b"));
        assert_eq!(TagPage::parse("n=100000"), page(1000, ""));
        for query in ["n=", "n=-1", "n=many", "n=1.5"] {
            assert_eq!(TagPage::parse(query), Err(RouteError::PageSize), "{query}");
        }
    }
}
