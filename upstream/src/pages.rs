//! Lists that come page by page: finding the next page, and failing if it cannot be fetched.
//!
//! A list that is cut short would say that something does not exist. So anything unclear is an error, never the end of
//! the list.

use std::collections::HashSet;

use reqwest::Response;
use url::Url;

use crate::error::Error;
use crate::link;

/// The longest query that a link to a page may have.
const QUERY_BYTES: usize = 2 * 1024;

/// A walk along the pages of one list.
pub(crate) struct Pages {
    url: Url,
    /// The pages requested so far.
    seen: HashSet<Url>,
}

impl Pages {
    /// A walk that begins with the page at `url`.
    pub(crate) fn begin(url: Url) -> Self {
        Self { url, seen: HashSet::new() }
    }

    /// The URL of the current page.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn is_first(&self) -> bool {
        self.seen.is_empty()
    }

    /// Moves on to the `next` page.
    ///
    /// # Errors
    /// If that page was requested before.
    pub(crate) fn turn(&mut self, next: Url) -> Result<(), Error> {
        self.seen.insert(std::mem::replace(&mut self.url, next));
        if self.seen.contains(&self.url) {
            return Err(Error::bad("lists in a circle: its next page is one that it has given before"));
        }
        Ok(())
    }

    /// The error for a page that cannot be fetched. Every page after the first one exists, since the upstream has said
    /// so.
    pub(crate) fn failure(&self, error: Error) -> Error {
        if self.is_first() {
            return error;
        }
        if let Error::Denied { status, .. } = error {
            return Error::bad(format!("refuses the next page that it names (status {status})"));
        }
        if matches!(error, Error::NotFound) { Error::bad("does not have the next page that it names") } else { error }
    }
}

/// The URL of the page after the one at `url`, according to `response`; `None` if it is the last one.
///
/// Only the query of the link is used: a link must not lead elsewhere, and registries behind another name or path do
/// not know their own address.
///
/// # Errors
/// If the response announces a next page without a usable link, or with a link to another place.
pub(crate) fn next_page(url: &Url, response: &Response) -> Result<Option<Url>, Error> {
    let next =
        link::next(response.headers()).map_err(|_| Error::bad("names a next page in a way that is not understood"))?;
    next.map(|target| page(url, response.url(), &target)).transpose()
}

/// The page to which a link leads that came from `from`, requested at `url`.
fn page(url: &Url, from: &Url, target: &str) -> Result<Url, Error> {
    let elsewhere = || Error::bad("names a next page at another place");
    let link = from.join(target).map_err(|_| elsewhere())?;
    if link.origin() != from.origin() && link.origin() != url.origin() {
        return Err(elsewhere());
    }
    let query = link.query().filter(|query| !query.is_empty());
    let query = query.ok_or_else(|| Error::bad("names a next page without saying which"))?;
    if query.len() > QUERY_BYTES {
        return Err(Error::bad(format!("names a next page by more than {QUERY_BYTES} bytes")));
    }
    let mut page = url.clone();
    page.set_query(Some(query));
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "https://registry.example:8443/v2/a/tags/list?n=1000";

    fn next(target: &str) -> Result<String, String> {
        let url = PAGE.parse().unwrap();
        page(&url, &url, target).map(|next| next.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn of_a_link_its_query_is_taken_as_it_is_and_nothing_else() {
        for (target, query) in [
            ("/v2/a/tags/list?last=x&n=2", "last=x&n=2"),
            ("https://registry.example:8443/v2/a/tags/list?last=x&n=2", "last=x&n=2"),
            ("/v2/tags/list?last=x", "last=x"),
            ("list?next_page=gAAAA%2B%3D", "next_page=gAAAA%2B%3D"),
            ("?a=b%20c+d", "a=b%20c+d"),
            ("/v2/other/../../x?q=/..", "q=/.."),
        ] {
            assert_eq!(next(target), Ok(format!("https://registry.example:8443/v2/a/tags/list?{query}")), "{target}");
        }
    }

    #[test]
    fn a_link_that_leads_elsewhere_or_nowhere_is_an_error() {
        for target in [
            "https://other.example/v2/?last=x",
            "http://registry.example:8443/?last=x",
            "//registry.example/?last=x",
            "https://registry.example/v2/a/tags/list?last=x",
            "file:///?last=x",
            "https://[",
        ] {
            assert!(next(target).is_err_and(|why| why.contains("at another place")), "{target}");
        }
        for target in ["/v2/a/tags/list", "?", "list#last=x"] {
            assert!(next(target).is_err_and(|why| why.contains("without saying which")), "{target}");
        }
        // A link to the page itself is noticed when the walk moves on.
        assert_eq!(next("").as_deref(), Ok(PAGE));
        assert!(next(&format!("?last={}", "x".repeat(2043))).is_ok());
        assert!(next(&format!("?last={}", "x".repeat(2044))).is_err_and(|why| why.contains("2048 bytes")));
    }

    #[test]
    fn a_page_is_asked_for_once_and_one_that_is_missing_is_no_missing_list() {
        let mut pages = Pages::begin(PAGE.parse().unwrap());
        assert!(matches!(pages.failure(Error::NotFound), Error::NotFound));
        let url = |query| format!("https://registry.example:8443/v2/a/tags/list?{query}").parse().unwrap();
        pages.turn(url("last=b")).unwrap();
        assert!(matches!(pages.failure(Error::NotFound), Error::BadAnswer { .. }));
        assert!(matches!(pages.failure(Error::timed_out()), Error::Away { .. }));
        assert!(pages.turn(PAGE.parse().unwrap()).is_err());
    }
}
