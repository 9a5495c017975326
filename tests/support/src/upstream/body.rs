//! Bodies that may stall, break off or be slow.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::time::Instant;

use super::log::Live;
use super::wire::HardEnd;

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

const CHUNK_BYTES: usize = 64 * 1024;

/// How a body is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivery {
    pub(super) stall_after: Option<u64>,
    pub(super) cut_after: Option<u64>,
    pub(super) end_after: Option<u64>,
    /// Whether the body ends before its declared length.
    pub(super) ends_short: bool,
    /// Whether the connection ends with a reset when the body is cut.
    pub(super) resets: bool,
    pub(super) bytes_per_second: Option<u64>,
}

struct Sending {
    rest: Bytes,
    sent_bytes: u64,
    delivery: Delivery,
    live: Arc<Live>,
    hard: HardEnd,
    began: Instant,
}

/// A body that sends `bytes` according to `delivery`, and counts them in the log. `hard` ends its connection.
pub(super) fn body(mut bytes: Bytes, delivery: Delivery, live: Arc<Live>, hard: HardEnd) -> Body {
    bytes.truncate(delivery.end_after.and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX));
    let sending = Sending { rest: bytes, sent_bytes: 0, delivery, live, hard, began: Instant::now() };
    StreamBody::new(stream::try_unfold(sending, next)).boxed_unsync()
}

async fn next(mut sending: Sending) -> io::Result<Option<(Frame<Bytes>, Sending)>> {
    let left_until = |end: Option<u64>| end.map_or(u64::MAX, |end| end.saturating_sub(sending.sent_bytes));
    let (until_stall, until_cut) = (left_until(sending.delivery.stall_after), left_until(sending.delivery.cut_after));
    if until_cut == 0 {
        sending.hard.set(sending.delivery.resets);
        leave_the_buffer().await;
        return Err(io::Error::other("cut by the script"));
    }
    if until_stall == 0 {
        std::future::pending::<()>().await;
    }
    if sending.rest.is_empty() {
        if sending.delivery.ends_short {
            leave_the_buffer().await;
        }
        return Ok(None);
    }
    let mut size = CHUNK_BYTES;
    if let Some(rate) = sending.delivery.bytes_per_second {
        // Twenty pieces per second.
        size = usize::try_from(rate / 20).unwrap_or(size).clamp(1, size);
        // Measured from the beginning, since each sleep is a little too long.
        let due = (sending.sent_bytes as f64 + size as f64) / rate as f64;
        tokio::time::sleep_until(sending.began + Duration::from_secs_f64(due)).await;
    }
    let bound = usize::try_from(until_stall.min(until_cut)).unwrap_or(usize::MAX);
    let chunk = sending.rest.split_to(size.min(bound).min(sending.rest.len()));
    sending.sent_bytes += chunk.len() as u64;
    sending.live.sent(chunk.len());
    Ok(Some((Frame::data(chunk), sending)))
}

/// Buffered data is sent when the body has nothing more for a moment; otherwise it would be lost with the connection.
async fn leave_the_buffer() {
    tokio::task::yield_now().await;
}
