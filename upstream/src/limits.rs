//! The limits of every wait and every body.

use std::time::Duration;

/// How long an upstream may take, and how much it may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Resolving a name and opening one connection, including TLS.
    pub connect: Duration,
    /// From the call to the head of the answer, including tokens, redirects and retries. Clients of registries give up
    /// after 30 s without an answer, so this is less.
    pub head: Duration,
    /// One exchange with a token server.
    pub token: Duration,
    /// A pause without a byte in the middle of a blob, and the whole body of a manifest.
    pub stall: Duration,
    /// The largest answer of a token server.
    pub token_body_bytes: usize,
    /// The largest manifest.
    pub manifest_bytes: usize,
    /// The largest page of a list of tags.
    pub tags_page_bytes: usize,
    /// How many pages a list of tags or referrers may have.
    pub list_pages: usize,
    /// How many tags a list may have.
    pub tags_count: usize,
    /// How many referrers a manifest may have.
    pub referrers_count: usize,
    /// How many referrers are fetched because the list does not tell their types.
    pub referrers_read: usize,
    /// The time for a whole list of tags or referrers.
    pub list: Duration,
    /// How many redirects one request may follow.
    pub redirects: usize,
    /// How often a request is repeated after a temporary failure.
    pub retries: usize,
    /// How often in a row a blob that broke off or stalled is resumed.
    pub resumes: usize,
    /// The wait before the first retry; later waits are longer, and all have a random part.
    pub retry_wait: Duration,
    /// The longest `Retry-After` that is respected.
    pub retry_after: Duration,
    /// The longest time for which a throttling upstream gets no requests.
    pub pause: Duration,
    /// How often an upstream that is away is tried. One that throttles without naming a time is first tried after a
    /// fifth of this.
    pub probe: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            head: Duration::from_secs(20),
            token: Duration::from_secs(10),
            stall: Duration::from_secs(15),
            token_body_bytes: 64 * 1024,
            manifest_bytes: entrepot_domain::manifest::MAX_BYTES,
            tags_page_bytes: 1024 * 1024,
            list_pages: 200,
            tags_count: 100_000,
            referrers_count: 10_000,
            referrers_read: 64,
            list: Duration::from_secs(60),
            redirects: 5,
            retries: 2,
            resumes: 8,
            retry_wait: Duration::from_millis(100),
            retry_after: Duration::from_secs(60 * 60),
            pause: Duration::from_secs(60 * 60),
            probe: Duration::from_secs(5),
        }
    }
}
