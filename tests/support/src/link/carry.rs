//! Carries bytes from one end of a connection to the other.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::requests::Scanner;
use super::{Condition, Shared, until_moving};

/// How much is read at once, and how many such pieces may be on their way.
const PIECE_BYTES: usize = 16 * 1024;
const PIECES: usize = 16;
/// How many pieces a slow link sends per second.
const PIECES_PER_SECOND: u64 = 20;

/// When the next byte may be sent in one direction of a slow link.
#[derive(Default)]
pub(super) struct Lane(Mutex<Option<Instant>>);

impl Lane {
    /// Forgets all reservations.
    pub(super) fn clear(&self) {
        *self.0.lock() = None;
    }

    /// Reserves the next slot, and returns its time.
    fn book(&self, bytes: usize, bytes_per_second: u64) -> Instant {
        let mut free = self.0.lock();
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        let due = free.map_or(now, |free| free.max(now)) + takes;
        *free = Some(due);
        due
    }
}

/// Carries bytes both ways until both ends have finished. The failure of one end is passed on to the other only while
/// the link is not stalled.
pub(super) async fn carry(
    near: &mut TcpStream,
    far: &mut TcpStream,
    shared: &Shared,
    condition: &mut watch::Receiver<Condition>,
) -> io::Result<()> {
    near.set_nodelay(true)?;
    let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
    let [there, back] = &shared.lanes;
    let scanner = Scanner::new(&shared.requests);
    let carried = tokio::try_join!(
        one_way(from_near, to_far, there, Some(scanner), shared, condition.clone()),
        one_way(from_far, to_near, back, None, shared, condition.clone()),
    );
    until_moving(condition).await;
    carried.map(|_| ())
}

async fn one_way(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    lane: &Lane,
    scanner: Option<Scanner<'_>>,
    shared: &Shared,
    condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    let (taken, given) = mpsc::channel(PIECES);
    tokio::try_join!(take(from, taken, scanner), give(given, to, lane, shared, condition)).map(|_| ())
}

async fn take(
    mut from: impl AsyncRead + Unpin,
    taken: mpsc::Sender<(Instant, Bytes)>,
    mut scanner: Option<Scanner<'_>>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if let Some(scanner) = &mut scanner {
            scanner.read(&buffer[..length]);
        }
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
                // A new condition may have another delay.
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

/// Waits for a time, or for a change of the condition.
async fn until(due: Instant, condition: &mut watch::Receiver<Condition>) {
    tokio::select! {
        () = sleep_until(due) => {}
        _ = condition.changed() => {}
    }
}
