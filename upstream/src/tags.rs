//! Lists of tags: page by page, as far as the upstream leads on, within limits.

use entrepot_domain::upstream::RequestKind;
use entrepot_domain::{RepositoryName, Tag};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::body;
use crate::client::Client;
use crate::error::Error;
use crate::request::Ask;
use crate::site::Via;

/// How many tags are asked for at once. Some upstreams give fewer, and some all that there are.
const PAGE: usize = 1000;

/// One page, as the upstream sends it. A repository without tags may have `null`.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Client {
    /// All tags of a repository, in byte order. What the upstream lists and is no tag is left out. Fallbacks are not asked:
    /// nothing says whether their lists are complete.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such repository, [`Error::TooLarge`], and all that can happen to a request.
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, Error> {
        let via = self.via(0);
        let tags = tokio::time::timeout(via.requests().limits.list, via.all_tags(repository)).await;
        tags.unwrap_or_else(|_| Err(Error::timed_out()))
    }
}

impl Via {
    async fn all_tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, Error> {
        let limits = self.requests().limits;
        let mut url = self.site.endpoint.tags_url(repository, PAGE);
        let mut tags = Vec::new();
        for _ in 0..limits.list_pages {
            let (page, next) = self.tags_page(&url).await?;
            tags.extend(page.iter().filter_map(|tag| tag.parse::<Tag>().ok()));
            if tags.len() > limits.tags_count {
                return Err(Error::bad(format!("lists more than {} tags", limits.tags_count)));
            }
            match next {
                Some(next) => url = next,
                None => {
                    // Upstreams do not agree on an order.
                    tags.sort_unstable();
                    tags.dedup();
                    return Ok(tags);
                }
            }
        }
        Err(Error::bad(format!("lists its tags on more than {} pages", limits.list_pages)))
    }

    /// One page, and where the next one is.
    async fn tags_page(&self, url: &Url) -> Result<(Vec<String>, Option<Url>), Error> {
        let requests = self.requests();
        let mut ask = Ask::new(RequestKind::List, Method::GET, url.clone());
        ask.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let ask = &ask;
        let read = |until| async move {
            let response = requests.ask(ask, until).await?;
            if response.status() != StatusCode::OK {
                return Err(requests.refusal(&response));
            }
            body::require_identity(&response)?;
            let next = next_page(url, response.headers())?;
            let bytes = body::read(response, requests.limits.tags_page_bytes, requests.limits.stall).await?;
            Ok((bytes, next))
        };
        let (bytes, next) = self.patiently(RequestKind::List, read).await?;
        let page: Page = serde_json::from_slice(&bytes).map_err(|_| Error::bad("sends a list of tags that is none"))?;
        Ok((page.tags.unwrap_or_default(), next))
    }
}

/// Where the next page is, if there is one: at the same place, since an answer must not send requests elsewhere.
pub(crate) fn next_page(url: &Url, headers: &HeaderMap) -> Result<Option<Url>, Error> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let Some(target) = links.flat_map(|line| line.split(", ")).find_map(next_target) else { return Ok(None) };
    let next = url.join(target).ok().filter(|next| next.origin() == url.origin());
    next.map(Some).ok_or_else(|| Error::bad("names a next page at another place"))
}

/// The target of a link whose relation is `next`.
fn next_target(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let mut parameters = parameters.split(';').map(str::trim);
    let is_next = |parameter: &str| {
        let relation = parameter.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("rel"));
        relation.is_some_and(|(_, value)| value.trim().trim_matches('"').eq_ignore_ascii_case("next"))
    };
    parameters.any(is_next).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_link_says_and_nowhere_else() {
        let url: Url = "https://registry.example:8443/v2/a/tags/list?n=1000".parse().unwrap();
        let next = |links: &[&str]| {
            let headers = links.iter().map(|link| (LINK, HeaderValue::from_str(link).unwrap())).collect();
            next_page(&url, &headers).map(|next| next.map(|next| next.to_string()))
        };
        let second = "https://registry.example:8443/v2/a/tags/list?last=x&n=2";
        for links in [
            &["</v2/a/tags/list?last=x&n=2>; rel=\"next\""][..],
            &["<https://registry.example:8443/v2/a/tags/list?last=x&n=2>;rel=next"],
            &["<list?last=x&n=2>; title=\"more\"; REL=\"NEXT\""],
            &["</first>; rel=\"first\", </v2/a/tags/list?last=x&n=2>; rel=\"next\""],
            &["</first>; rel=\"first\"", "</v2/a/tags/list?last=x&n=2>; rel=\"next\""],
        ] {
            assert_eq!(next(links).unwrap().as_deref(), Some(second), "{links:?}");
        }
        for links in [&[][..], &["</x>; rel=\"last\""], &["nonsense"], &["<>"]] {
            assert_eq!(next(links).unwrap(), None, "{links:?}");
        }
        for elsewhere in
            ["https://other.example/v2/", "http://registry.example:8443/", "//registry.example/", "file:///"]
        {
            assert!(next(&[&format!("<{elsewhere}>; rel=\"next\"")]).is_err(), "{elsewhere}");
        }
    }
}
