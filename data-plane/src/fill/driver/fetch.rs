//! The part of a fill that is had from the upstream: in order, and ahead of that.

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
            self.uncoordinated = Some(self.fills.uncoordinated_turn().await?);
        }
        if self.turn.is_none() {
            self.turn = Some(Arc::new(self.fills.turn().await?));
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
                // It comes from the start again, and what is known of it is passed over.
                Ok(None) => {}
                Err(error) => return Some(self.broken(error)),
            }
        }
        let client = &self.fill.source.client;
        let body = match upstream::request(self.fill, "GET", client.blob(&self.fill.repository, self.digest)).await {
            Ok(body) => body,
            Err(error) => return Some(self.broken(upstream::failure(self.fill, Asked::Blob, &error))),
        };
        let size_bytes = match body.size_bytes {
            Some(size) => Some(size),
            // A size that is only said on asking lets clients see that a body was cut short.
            None => upstream::request(self.fill, "HEAD", client.head_blob(&self.fill.repository, self.digest))
                .await
                .ok()
                .flatten(),
        };
        failpoint::hit("fill.after_head");
        let fill = self.fill.clone();
        self.body = Some(body.stream.map_err(move |error| upstream::failure(&fill, Asked::Blob, &error)).boxed());
        self.passed_over_bytes = from;
        self.open(size_bytes);
        size_bytes.map(Event::Sized)
    }

    /// Requests a part; `None` if the upstream gives none.
    pub(super) async fn part(&mut self, part: Range<u64>) -> Result<Option<Body>, PullError> {
        let client = &self.fill.source.client;
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

    /// Lands the next bytes in their order: spool, hash and upload take the same ones.
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
        // What has landed ahead is not landed again.
        chunk.truncate(usize::try_from(state.room_bytes()).unwrap_or(usize::MAX));
        self.land_in_order(chunk, landed).await
    }

    /// Requests what is missing of a body that has come to a proper end too early. No upstream that has it all does
    /// that twice.
    pub(super) async fn fetch_rest(&mut self, rest: Range<u64>) -> Event {
        let is_first = !std::mem::replace(&mut self.has_ended_early, true);
        match if is_first { self.part(rest).await } else { Ok(None) } {
            Ok(Some(body)) => {
                self.body = Some(body);
                Event::Landed(0)
            }
            Ok(None) => self.broken(self.bad("it is smaller than the upstream said")),
            Err(error) => self.broken(error),
        }
    }

    pub(super) async fn land_ahead(&mut self, chunk: Option<Result<Bytes, PullError>>) -> Event {
        let (at, chunk) = match (&mut self.ahead, chunk) {
            (Some((_, at, _)), Some(Ok(chunk))) => (std::mem::replace(at, *at + chunk.len() as u64), chunk),
            // What is missing then comes in its turn.
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
