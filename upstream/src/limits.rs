//! The bounds of every wait and every body.

use std::time::Duration;

/// How long and how much an upstream may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Finding an address and opening one connection, TLS included.
    pub connect: Duration,
    /// From the call to the head of the answer: tokens, redirects and retries included. Clients of registries give up
    /// after 30 s without an answer, so this is less.
    pub head: Duration,
    /// One exchange with a token server.
    pub token: Duration,
    /// Without a byte in the middle of a blob, and for the whole body of a manifest.
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
    /// How many manifests may refer to one.
    pub referrers_count: usize,
    /// A whole list of tags or referrers.
    pub list: Duration,
    /// How many redirects one request may follow.
    pub redirects: usize,
    /// How often a request that met a passing trouble is made again.
    pub retries: usize,
    /// How often in a row a blob that broke off or stalled is gone on with.
    pub resumes: usize,
    /// How long to wait before the first retry; later ones wait longer, each with a random part.
    pub retry_wait: Duration,
    /// The longest `Retry-After` that is believed.
    pub retry_after: Duration,
    /// For how long at most an upstream that wants fewer requests is asked nothing.
    pub pause: Duration,
    /// How often an upstream that is away is tried. One that wants fewer requests and does not say for how long is tried after
    /// a fifth of that at first.
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
