//! The part of a fill that comes from the upstream: in order, and ahead.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use entrepot_domain::fill::{Event, Fill, Phase};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{Body, Driver};
use crate::error::{Asked, PullError};
use crate::failpoint;
use crate::upstream;

impl Driver<'_> {
    pub(super) async fn take_turn(&mut self) -> Result<(), PullError> {
        if self.lease.is_none() && self.uncoordinated.is_none() {
            self.uncoordinated = Some(self.fills.uncoordinated_turn(self.fill).await?);
        }
        if self.turn.is_none() {
            self.turn = Some(Arc::new(self.fills.turn(self.fill).await?));
        }
        Ok(())
    }

    /// Requests the bytes from `from` on.
    pub(super) async fn fetch(&mut self, from: u64, state: &Fill) -> Option<Event> {
        if self.turn.is_none() {
            return Some(Event::Broken);
        }
        if let Some(event) = self.open_spool().await {
            return Some(event);
        }
        if let Some(size) = state.size_bytes().filter(|_| from > 0) {
            match self.part(from..size).await {
                Ok(Some(body)) => {
                    self.body = Some(body);
                    return None;
                }
                // It comes from the start again, and what has landed is skipped.
                Ok(None) => {}
                Err(error) => return Some(self.broken(error)),
            }
        }
        let said = match self.fetch_whole(from).await {
            Ok(said) => said,
            Err(error) => return Some(self.broken(error)),
        };
        let size_bytes = match said {
            Some(size) => Some(size),
            // The size in the manifest is enough: a client with the manifest notices if the body is cut short.
            None if self.landing.limit().is_some() => None,
            // If the size is known after asking for it, clients can notice that.
            None => {
                let client = self.fill.pull_client();
                let asked = client.head_blob(&self.fill.repository, self.digest);
                upstream::request(self.fill, "HEAD", asked).await.ok().flatten()
            }
        };
        failpoint::hit("fill.after_head");
        self.open(size_bytes).or_else(|| size_bytes.map(Event::Sized))
    }

    /// Requests the whole blob, of which the first bytes have landed already. Returns its size, if the upstream gives
    /// it.
    async fn fetch_whole(&mut self, known_bytes: u64) -> Result<Option<u64>, PullError> {
        let client = self.fill.pull_client();
        let body = upstream::request(self.fill, "GET", client.blob(&self.fill.repository, self.digest)).await;
        let body = body.map_err(|error| upstream::failure(self.fill, Asked::Blob, &error))?;
        let fill = self.fill.clone();
        self.body = Some(body.stream.map_err(move |error| upstream::failure(&fill, Asked::Blob, &error)).boxed());
        self.passed_over_bytes = known_bytes;
        Ok(body.size_bytes)
    }

    /// Requests a part; `None` if the upstream does not support ranges.
    pub(super) async fn part(&mut self, part: Range<u64>) -> Result<Option<Body>, PullError> {
        let client = self.fill.pull_client();
        let body =
            upstream::request(self.fill, "GET", client.blob_part(&self.fill.repository, self.digest, part)).await;
        let body = body.map_err(|error| upstream::failure(self.fill, Asked::Blob, &error))?;
        let fill = self.fill.clone();
        Ok(body.map(|body| body.map_err(move |error| upstream::failure(&fill, Asked::Blob, &error)).boxed()))
    }

    pub(super) async fn fetch_ahead(&mut self, part: Range<u64>) -> Option<Event> {
        let start = part.start;
        match self.part(part).await {
            Ok(Some(body)) => {
                self.ahead = Some((start, start, body));
                None
            }
            Ok(None) => Some(Event::AheadRefused),
            Err(_) => Some(Event::AheadEnded),
        }
    }

    /// Lands the next bytes in order: in the spool, in the hash and in the upload.
    pub(super) async fn land(&mut self, chunk: Option<Result<Bytes, PullError>>, state: &Fill) -> Event {
        let mut chunk = match chunk {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => {
                self.body = None;
                return self.broken(error);
            }
            None => {
                self.body = None;
                return match state.size_bytes() {
                    Some(size) if state.phase() == Phase::Leading => self.fetch_rest(state.landed_bytes()..size).await,
                    Some(_) | None => Event::Ended,
                };
            }
        };
        let known = self.passed_over_bytes.min(chunk.len() as u64);
        self.passed_over_bytes -= known;
        chunk.advance(known as usize);
        let landed = state.landed_bytes();
        if state.size_bytes().is_some_and(|size| landed + chunk.len() as u64 > size) {
            return self.broken(self.bad("it is larger than the upstream said"));
        }
        if state.size_bytes().is_none() && landed + chunk.len() as u64 > self.limit() {
            return self.broken(self.bad("it is larger than any manifest says"));
        }
        // Bytes that have landed ahead do not land again.
        chunk.truncate(usize::try_from(state.room_bytes()).unwrap_or(usize::MAX));
        self.land_in_order(chunk, landed).await
    }

    /// Requests the missing bytes after a body that ended properly, but too early. An upstream that has the whole blob
    /// does not do that twice.
    pub(super) async fn fetch_rest(&mut self, rest: Range<u64>) -> Event {
        if std::mem::replace(&mut self.has_ended_early, true) {
            return self.broken(self.bad("it is smaller than the upstream said"));
        }
        let from = rest.start;
        let fetched = match self.part(rest).await {
            Ok(Some(body)) => {
                self.body = Some(body);
                Ok(())
            }
            // An upstream without ranges is asked for the whole blob.
            Ok(None) => self.fetch_whole(from).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match fetched {
            Ok(()) => Event::Landed(0),
            Err(error) => self.broken(error),
        }
    }

    pub(super) async fn land_ahead(&mut self, chunk: Option<Result<Bytes, PullError>>) -> Event {
        let (at, chunk) = match (&mut self.ahead, chunk) {
            (Some((_, at, _)), Some(Ok(chunk))) => (std::mem::replace(at, *at + chunk.len() as u64), chunk),
            // The missing bytes come later, in order.
            _ => {
                self.ahead = None;
                return Event::AheadEnded;
            }
        };
        let bytes = chunk.len() as u64;
        match self.spool(at, chunk).await {
            Ok(()) => Event::AheadLanded(bytes),
            Err(event) => event,
        }
    }
}
