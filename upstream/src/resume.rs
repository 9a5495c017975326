//! A blob's body that goes on where it broke off: whoever reads it does not notice.
//!
//! What is missing is asked for by a range (RFC 9110, §14.2), through the whole walk of a request, so that tokens and
//! signed URLs are fresh. An upstream that sends the whole blob instead has what was read already passed over; nothing
//! is ever read twice. What comes is the upstream's word, as before: the caller verifies the whole.

use std::ops::Range;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use bytes::{Buf as _, Bytes};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};

use crate::body;

use crate::error::{Error, Trouble};
use crate::limits::Limits;
use crate::request::Ask;
use crate::site::{Via, content_length, header, size_in_content_range};

/// A body that broke off after this much more has made its way: the next break is a first one.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// A body on its way.
pub(crate) struct Resuming {
    via: Via,
    ask: Ask,
    response: Response,
    /// What has been handed out.
    read_bytes: u64,
    /// What of the response has been handed out by an earlier one.
    passed_over_bytes: u64,
    size_bytes: Option<u64>,
    /// Where what is wanted ends, if not at the blob's end.
    end: Option<u64>,
    has_ended: bool,
    /// Which blob this is to the upstream, if it says so.
    etag: Option<HeaderValue>,
    /// How long to wait before going on; ends when there were enough breaks in a row.
    waits: ExponentialBackoff,
    /// Where it broke off for the first time of these.
    broke_off_at: u64,
}

/// The bytes of `response`, which answers `ask` with a whole blob. The stream ends after its first error.
pub(crate) fn stream(via: Via, ask: Ask, response: Response) -> BoxStream<'static, Result<Bytes, Error>> {
    let size_bytes = content_length(response.headers());
    resuming(via, ask, response, 0, size_bytes, None)
}

/// The bytes of `response`, which answers `ask` with `part` of a blob; `None` if it is not that part.
pub(crate) fn part(
    via: Via,
    mut ask: Ask,
    response: Response,
    part: Range<u64>,
) -> Option<BoxStream<'static, Result<Bytes, Error>>> {
    let (first, size_bytes) = content_range(response.headers())?;
    ask.headers.remove(RANGE);
    let is_it = first == part.start && size_bytes.is_none_or(|size| part.end <= size);
    is_it.then(|| resuming(via, ask, response, part.start, size_bytes, Some(part.end)))
}

fn resuming(
    via: Via,
    ask: Ask,
    response: Response,
    read_bytes: u64,
    size_bytes: Option<u64>,
    end: Option<u64>,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let waits = waits(&via.requests().limits);
    let resuming = Resuming {
        via,
        ask,
        size_bytes,
        end,
        etag: strong_etag(response.headers()),
        response,
        read_bytes,
        passed_over_bytes: 0,
        has_ended: false,
        waits,
        broke_off_at: read_bytes,
    };
    stream::try_unfold(
        resuming,
        |mut resuming| async move { Ok(resuming.next().await?.map(|chunk| (chunk, resuming))) },
    )
    .boxed()
}

/// The value of `Range` for `first` to the byte before `end`, or to the last one.
pub(crate) fn range_header(first: u64, end: Option<u64>) -> HeaderValue {
    let last = end.map(|end| end.saturating_sub(1).to_string()).unwrap_or_default();
    HeaderValue::try_from(format!("bytes={first}-{last}")).expect("is ASCII")
}

impl Resuming {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let stall = self.via.requests().limits.stall;
        while !self.has_ended && self.end.is_none_or(|end| self.read_bytes < end) {
            match body::next(&mut self.response, stall).await {
                Ok(Some(mut chunk)) => {
                    let known = self.passed_over_bytes.min(chunk.len() as u64);
                    self.passed_over_bytes -= known;
                    chunk.advance(known as usize);
                    let left = self.end.map_or(u64::MAX, |end| end - self.read_bytes);
                    chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    self.read_bytes += chunk.len() as u64;
                    if !chunk.is_empty() {
                        return Ok(Some(chunk));
                    }
                }
                Ok(None) if self.is_whole() => self.has_ended = true,
                Ok(None) => {
                    self.go_on(Error::Away { status: None, trouble: Trouble::BrokenOff, source: None }).await?;
                }
                Err(error @ Error::Away { .. }) => self.go_on(error).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether a body that has ended has not ended too early, as far as anybody has said how large it is.
    fn is_whole(&self) -> bool {
        self.passed_over_bytes == 0 && self.end.or(self.size_bytes).is_none_or(|end| self.read_bytes >= end)
    }

    /// Asks for the rest; `error` is what made that necessary, and what comes of it in the end if nothing helps.
    async fn go_on(&mut self, error: Error) -> Result<(), Error> {
        let via = self.via.clone();
        let requests = via.requests();
        if self.read_bytes - self.broke_off_at >= PROGRESS_BYTES {
            self.waits = waits(&requests.limits);
            self.broke_off_at = self.read_bytes;
        }
        let Some(wait) = self.waits.next() else { return Err(error) };
        tracing::debug!(error = %error, read_bytes = self.read_bytes, "asking an upstream for the rest of a blob");
        tokio::time::sleep(wait).await;
        let mut ask = self.ask.clone();
        if self.read_bytes > 0 {
            ask.headers.insert(RANGE, range_header(self.read_bytes, self.end));
            if let Some(etag) = &self.etag {
                ask.headers.insert(IF_RANGE, etag.clone());
            }
        }
        let response = via.patiently(ask.kind, |until| requests.ask(&ask, until)).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            && size_in_content_range(response.headers()) == Some(self.read_bytes)
        {
            // A body of unknown length broke off when all of it was there.
            self.has_ended = true;
            return Ok(());
        }
        body::require_identity(&response)?;
        self.passed_over_bytes = match response.status() {
            StatusCode::PARTIAL_CONTENT if self.is_the_rest(response.headers()) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(Error::bad("sends another range of a blob than it was asked for"));
            }
            StatusCode::OK if self.is_of_this_size(content_length(response.headers())) => self.read_bytes,
            StatusCode::OK => return Err(Error::bad("sends a blob whose size has changed")),
            _ => return Err(requests.refusal(&response)),
        };
        self.response = response;
        Ok(())
    }

    /// Whether a part is the one that is missing.
    fn is_the_rest(&self, headers: &HeaderMap) -> bool {
        let Some((first, size_bytes)) = content_range(headers) else { return false };
        first == self.read_bytes && self.is_of_this_size(size_bytes)
    }

    fn is_of_this_size(&self, size_bytes: Option<u64>) -> bool {
        self.size_bytes.zip(size_bytes).is_none_or(|(before, now)| before == now)
    }
}

fn waits(limits: &Limits) -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(limits.retry_wait).with_max_times(limits.resumes);
    builder.with_jitter().build()
}

/// An entity tag that stands for the same bytes; weak ones do not (RFC 9110, §8.8.1).
fn strong_etag(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned()
}

/// The first byte of a part, and the size of the whole if that is said: `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text: String = header(headers, CONTENT_RANGE)?;
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, size.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_says_where_it_begins_and_how_large_the_whole_is() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-0/*", Some((0, None))),
            ("bytes */10", None),
            ("5-9/10", None),
            ("bytes 5/10", None),
            ("bytes -5/10", None),
            ("bytes 99999999999999999999-1/10", None),
        ] {
            let headers = [(CONTENT_RANGE, HeaderValue::from_static(text))].into_iter().collect();
            assert_eq!(content_range(&headers), expected, "{text}");
        }
    }
}
