//! A blob's body that continues where it broke off, without its reader noticing.
//!
//! The missing part is requested as a range (RFC 9110, §14.2), through the whole walk of a request, so that tokens and
//! signed URLs are fresh. The range only saves time: if the upstream answers in any other way than with the rest, it is
//! asked for the whole blob, and the bytes that were read already are skipped, so the reader gets nothing twice. As
//! before, these are only the upstream's bytes: the caller verifies the whole.

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
use crate::site::{SiteClient, content_length, header, size_in_content_range};

/// After this much progress, the next break counts as a first one.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// A body that is being read.
pub(crate) struct Resuming {
    site: SiteClient,
    ask: Ask,
    response: Response,
    /// How many bytes were handed out in total.
    read_bytes: u64,
    /// How many bytes of the current response are skipped because an earlier response had them.
    passed_over_bytes: u64,
    size_bytes: Option<u64>,
    /// The end of the requested range, if it is not the blob's end.
    end: Option<u64>,
    has_ended: bool,
    /// Whether the upstream failed to serve a range as requested.
    gives_no_ranges: bool,
    /// The upstream's identifier of this blob, if it has one.
    etag: Option<HeaderValue>,
    /// The waits before resuming; ends after enough breaks in a row.
    waits: ExponentialBackoff,
    /// Where the first of these breaks was.
    broke_off_at: u64,
}

/// The bytes of `response`, which answers `ask` with a whole blob. The stream ends after its first error.
pub(crate) fn stream(site: SiteClient, ask: Ask, response: Response) -> BoxStream<'static, Result<Bytes, Error>> {
    let size_bytes = content_length(response.headers());
    resuming(site, ask, response, 0, size_bytes, None)
}

/// The bytes of `response`, which answers `ask` with `part` of a blob; `None` if it has another part.
pub(crate) fn part(
    site: SiteClient,
    mut ask: Ask,
    response: Response,
    part: Range<u64>,
) -> Option<BoxStream<'static, Result<Bytes, Error>>> {
    let (first, size_bytes) = content_range(response.headers())?;
    ask.headers.remove(RANGE);
    let is_it = first == part.start && size_bytes.is_none_or(|size| part.end <= size);
    is_it.then(|| resuming(site, ask, response, part.start, size_bytes, Some(part.end)))
}

fn resuming(
    site: SiteClient,
    ask: Ask,
    response: Response,
    read_bytes: u64,
    size_bytes: Option<u64>,
    end: Option<u64>,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let waits = waits(&site.requests().limits);
    let resuming = Resuming {
        site,
        ask,
        size_bytes,
        end,
        etag: strong_etag(response.headers()),
        response,
        read_bytes,
        passed_over_bytes: 0,
        has_ended: false,
        gives_no_ranges: false,
        waits,
        broke_off_at: read_bytes,
    };
    stream::try_unfold(
        resuming,
        |mut resuming| async move { Ok(resuming.next().await?.map(|chunk| (chunk, resuming))) },
    )
    .boxed()
}

/// The value of `Range` from `first` to the byte before `end`, or to the last byte.
pub(crate) fn range_header(first: u64, end: Option<u64>) -> HeaderValue {
    let last = end.map(|end| end.saturating_sub(1).to_string()).unwrap_or_default();
    HeaderValue::try_from(format!("bytes={first}-{last}")).expect("is ASCII")
}

impl Resuming {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let stall = self.site.requests().limits.stall;
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

    /// Whether a body that has ended is complete, as far as its size is known.
    fn is_whole(&self) -> bool {
        self.passed_over_bytes == 0 && self.end.or(self.size_bytes).is_none_or(|end| self.read_bytes >= end)
    }

    /// Requests the rest. `error` is the reason, and is returned in the end if nothing helps.
    async fn go_on(&mut self, error: Error) -> Result<(), Error> {
        let site = self.site.clone();
        let requests = site.requests();
        if self.end.or(self.size_bytes).is_some_and(|end| self.read_bytes >= end) {
            self.has_ended = true;
            return Ok(());
        }
        if self.read_bytes - self.broke_off_at >= PROGRESS_BYTES {
            self.waits = waits(&requests.limits);
            self.broke_off_at = self.read_bytes;
        }
        let Some(wait) = self.waits.next() else { return Err(error) };
        tracing::debug!(error = %error, read_bytes = self.read_bytes, "asking an upstream for the rest of a blob");
        tokio::time::sleep(wait).await;
        if self.read_bytes > 0 && !self.gives_no_ranges {
            let mut ask = self.ask.clone();
            // Some upstreams serve a range only if its end is given.
            ask.headers.insert(RANGE, range_header(self.read_bytes, self.end.or(self.size_bytes)));
            if let Some(etag) = &self.etag {
                ask.headers.insert(IF_RANGE, etag.clone());
            }
            let response = site.with_retries(ask.kind, |until| requests.ask(&ask, until)).await?;
            let headers = response.headers();
            match response.status() {
                StatusCode::PARTIAL_CONTENT
                    if self.is_the_rest(headers) && body::require_identity(&response).is_ok() =>
                {
                    self.go_on_with(response, 0);
                    return Ok(());
                }
                StatusCode::OK => return self.go_on_from_start(response, error),
                StatusCode::RANGE_NOT_SATISFIABLE if self.is_all_there_is(headers) => {
                    self.has_ended = true;
                    return Ok(());
                }
                _ => {}
            }
            self.gives_no_ranges = true;
        }
        let response = site.with_retries(self.ask.kind, |until| requests.ask(&self.ask, until)).await?;
        match response.status() {
            StatusCode::OK => self.go_on_from_start(response, error),
            _ => {
                let refusal = requests.refusal(&response);
                // Any other answer says nothing about the blob.
                let is_final = matches!(refusal, Error::NotFound | Error::Denied { .. });
                Err(if is_final { refusal } else { error })
            }
        }
    }

    fn go_on_with(&mut self, response: Response, passed_over_bytes: u64) {
        (self.response, self.passed_over_bytes) = (response, passed_over_bytes);
    }

    /// Continues with an answer that has the whole blob; fails with `error` if that is a different blob by now.
    fn go_on_from_start(&mut self, response: Response, error: Error) -> Result<(), Error> {
        if body::require_identity(&response).is_err() || !self.is_of_this_size(content_length(response.headers())) {
            return Err(error);
        }
        self.go_on_with(response, self.read_bytes);
        Ok(())
    }

    /// Whether a body of unknown length broke off after all of it had arrived.
    fn is_all_there_is(&self, headers: &HeaderMap) -> bool {
        self.end.is_none() && self.size_bytes.is_none() && size_in_content_range(headers) == Some(self.read_bytes)
    }

    /// Whether a part is the missing one.
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

/// An entity tag that guarantees the same bytes; weak ones do not (RFC 9110, §8.8.1).
fn strong_etag(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned()
}

/// The first byte of a part, and the size of the whole if given: `bytes 5-9/10`.
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
