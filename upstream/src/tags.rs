//! Lists of tags, page by page, within limits.

use entrepot_domain::upstream::RequestKind;
use entrepot_domain::{RepositoryName, Tag};
use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::body;
use crate::client::Client;
use crate::error::Error;
use crate::pages::{Pages, next_page};
use crate::site::SiteClient;

/// How many tags are requested at once. Some upstreams send fewer, and some send all of them.
const PAGE: usize = 1000;

/// One page as the upstream sends it. For a repository without tags it may contain `null`.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Client {
    /// All tags of a repository, in byte order. Listed names that are not legal tags are left out. Fallbacks are not
    /// asked, since their lists may be incomplete.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such repository, [`Error::TooLarge`], and any error of a request.
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, Error> {
        let site = self.site_client(0);
        let tags = tokio::time::timeout(site.requests().limits.list, site.all_tags(repository)).await;
        tags.unwrap_or_else(|_| Err(Error::timed_out()))
    }
}

impl SiteClient {
    async fn all_tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, Error> {
        let limits = self.requests().limits;
        let mut pages = Pages::begin(self.site.endpoint.tags_url(repository, PAGE));
        let mut tags = Vec::new();
        for _ in 0..limits.list_pages {
            let (page, next) = self.tags_page(pages.url()).await.map_err(|error| pages.failure(error))?;
            tags.extend(page.iter().filter_map(|tag| tag.parse::<Tag>().ok()));
            if tags.len() > limits.tags_count {
                return Err(Error::bad(format!("lists more than {} tags", limits.tags_count)));
            }
            match next {
                Some(next) => pages.turn(next)?,
                None => {
                    // Upstreams list in different orders.
                    tags.sort_unstable();
                    tags.dedup();
                    return Ok(tags);
                }
            }
        }
        Err(Error::bad(format!("lists its tags on more than {} pages", limits.list_pages)))
    }

    /// One page, and the URL of the next one.
    async fn tags_page(&self, url: &Url) -> Result<(Vec<String>, Option<Url>), Error> {
        let requests = self.requests();
        let mut ask = self.ask(RequestKind::List, Method::GET, url.clone());
        ask.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let ask = &ask;
        let read = |until| async move {
            let response = requests.ask(ask, until).await?;
            if response.status() != StatusCode::OK {
                return Err(requests.refusal(&response));
            }
            body::require_identity(&response)?;
            let next = next_page(url, &response)?;
            let bytes = body::read(response, requests.limits.tags_page_bytes, requests.limits.stall).await?;
            Ok((bytes, next))
        };
        let (bytes, next) = self.with_retries(RequestKind::List, read).await?;
        let page: Page = serde_json::from_slice(&bytes).map_err(|_| Error::bad("sends a list of tags that is none"))?;
        Ok((page.tags.unwrap_or_default(), next))
    }
}
