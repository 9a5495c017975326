//! Bytes on their way from one end of a connection to the other.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{Condition, Shared, until_moving};

/// How much is read at once, and how many such pieces are on their way at most.
const PIECE_BYTES: usize = 16 * 1024;
const PIECES: usize = 16;
/// A slow link sends this many pieces each second.
const PIECES_PER_SECOND: u64 = 20;

/// When the next byte may go in one direction of a slow link.
#[derive(Default)]
pub(super) struct Lane(Mutex<Option<Instant>>);

impl Lane {
    /// Forgets what was booked.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes the next place, and says when it is.
    fn book(&self, bytes: usize, bytes_per_second: u64) -> Instant {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        let due = free.map_or(now, |free| free.max(now)) + takes;
        *free = Some(due);
        due
    }
}

/// Carries bytes both ways until both ends have said all that they had to say. What an end's failure means to the other
/// one is not told before the link moves.
pub(super) async fn carry(
    near: &mut TcpStream,
    far: &mut TcpStream,
    shared: &Shared,
    condition: &mut watch::Receiver<Condition>,
) -> io::Result<()> {
    near.set_nodelay(true)?;
    let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
    let [there, back] = &shared.lanes;
    let carried = tokio::try_join!(
        one_way(from_near, to_far, there, shared, condition.clone()),
        one_way(from_far, to_near, back, shared, condition.clone()),
    );
    until_moving(condition).await;
    carried.map(|_| ())
}

async fn one_way(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    lane: &Lane,
    shared: &Shared,
    condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    let (taken, given) = mpsc::channel(PIECES);
    tokio::try_join!(take(from, taken), give(given, to, lane, shared, condition)).map(|_| ())
}

async fn take(mut from: impl AsyncRead + Unpin, taken: mpsc::Sender<(Instant, Bytes)>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        let piece = (Instant::now(), Bytes::copy_from_slice(&buffer[..length]));
        if length == 0 || taken.send(piece).await.is_err() {
            return Ok(());
        }
    }
}

async fn give(
    mut given: mpsc::Receiver<(Instant, Bytes)>,
    mut to: impl AsyncWrite + Unpin,
    lane: &Lane,
    shared: &Shared,
    mut condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    while let Some((came, mut bytes)) = given.recv().await {
        while !bytes.is_empty() {
            until_moving(&mut condition).await;
            let now = *condition.borrow_and_update();
            if let Some(due) = Some(came + now.delay).filter(|due| *due > Instant::now()) {
                // Another condition may have another delay.
                until(due, &mut condition).await;
                continue;
            }
            let mut length = bytes.len();
            if let Some(rate) = now.bytes_per_second {
                length = length.min(usize::try_from(rate / PIECES_PER_SECOND).unwrap_or(length).max(1));
                until(lane.book(length, rate), &mut condition).await;
                until_moving(&mut condition).await;
            }
            to.write_all(&bytes.split_to(length)).await?;
            shared.bytes.fetch_add(length as u64, Ordering::SeqCst);
        }
    }
    until_moving(&mut condition).await;
    to.shutdown().await
}

/// Waits for an instant, or for a change.
async fn until(due: Instant, condition: &mut watch::Receiver<Condition>) {
    tokio::select! {
        () = sleep_until(due) => {}
        _ = condition.changed() => {}
    }
}
