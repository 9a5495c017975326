//! A limit of requests like Docker Hub's: only fetches of manifests count, not HEAD requests or anything else; what is
//! left is reported in the answers.

use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// A limit, and how much of it was used.
#[derive(Debug, Default)]
pub(super) struct Limit {
    set: Option<(u64, Duration)>,
    /// When the window began.
    began: Option<Instant>,
    /// How much was counted in this window.
    taken: u64,
    /// How much was counted in total.
    counted: usize,
}

/// Whether a request may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Answered,
    TooMany,
}

impl Limit {
    pub(super) fn set(&mut self, requests: u64, window: Duration) {
        (self.set, self.began, self.taken) = (Some((requests, window)), None, 0);
    }

    pub(super) fn counted(&self) -> usize {
        self.counted
    }

    /// Uses up a part of the limit, as if by others with the same account.
    pub(super) fn take(&mut self, requests: u64) {
        self.begin();
        self.taken += requests;
    }

    /// Counts a request that would be answered with a manifest.
    pub(super) fn ask(&mut self, request: &Parts) -> Verdict {
        let counts = request.method == Method::GET && is_manifest(request);
        self.counted += usize::from(counts);
        self.begin();
        match self.set {
            Some((requests, _)) if counts && self.taken >= requests => Verdict::TooMany,
            Some(_) | None => {
                self.taken += u64::from(counts);
                Verdict::Answered
            }
        }
    }

    /// Adds to the answer to a request for a manifest what is left.
    pub(super) fn tell(&self, request: &Parts, headers: &mut HeaderMap) {
        let Some((requests, window)) = self.set.filter(|_| is_manifest(request)) else { return };
        let seconds = window.as_secs();
        let left = requests.saturating_sub(self.taken);
        for (name, value) in [
            ("ratelimit-limit", format!("{requests};w={seconds}")),
            ("ratelimit-remaining", format!("{left};w={seconds}")),
            ("docker-ratelimit-source", "192.0.2.1".to_owned()),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value).expect("is ASCII"));
        }
    }

    fn begin(&mut self) {
        let is_over = |began: Instant| self.set.is_some_and(|(_, window)| began.elapsed() >= window);
        if self.began.is_none_or(is_over) {
            (self.began, self.taken) = (Some(Instant::now()), 0);
        }
    }
}

fn is_manifest(request: &Parts) -> bool {
    request.uri.path().contains("/manifests/")
}
