//! The upload of a fill: what has landed and is hashed is read from the spool and sent at the store's own pace.
//!
//! So a slow store does not delay any reader, and a node that takes over a fill sends the bytes that landed earlier
//! while the rest arrives.

use std::io;

use bytes::Bytes;
use entrepot_domain::Digest;
use entrepot_runtime::Tasks;
use entrepot_store::{Key, Store, Upload};
use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;

use super::spool::Spool;
use crate::failpoint;
use crate::repository::within_limit;

/// How much is sent to the store at once.
const PART_BYTES: u64 = 8 * 1024 * 1024;

/// A running upload. Dropping it aborts it.
pub(super) struct Uploading {
    hashed: watch::Sender<Hashed>,
    stored: oneshot::Receiver<bool>,
}

/// How much may be sent.
#[derive(Clone, Copy, Default)]
struct Hashed {
    bytes: u64,
    /// Whether this is all of it, and verified.
    is_whole: bool,
}

impl Uploading {
    /// Begins an upload of an object with this digest, whose bytes land in `spool`. `turn` is kept while it runs.
    pub(super) fn begin(
        tasks: &Tasks,
        store: Store,
        content: (Key, Digest),
        spool: Spool,
        turn: std::sync::Arc<super::FetchTurn>,
    ) -> Self {
        let (hashed, may_send) = watch::channel(Hashed::default());
        let (done, stored) = oneshot::channel();
        let work = async move {
            let is_stored = run(&store, &content, &spool, may_send).await;
            drop(turn);
            // If the fill was given up, nobody receives this.
            let _ = done.send(is_stored);
        };
        tasks.spawn("fill.upload", work.in_current_span());
        Self { hashed, stored }
    }

    /// Permits sending this many bytes, which have landed and are hashed.
    pub(super) fn may_send(&self, bytes: u64) {
        self.hashed.send_replace(Hashed { bytes, is_whole: false });
    }

    /// All `bytes` are there and verified: completes the object. Returns whether the store has it.
    pub(super) async fn complete(self, bytes: u64) -> bool {
        self.hashed.send_replace(Hashed { bytes, is_whole: true });
        self.stored.await.unwrap_or(false)
    }
}

async fn run(
    store: &Store,
    (object, digest): &(Key, Digest),
    spool: &Spool,
    may_send: watch::Receiver<Hashed>,
) -> bool {
    let Ok(mut upload) = within_limit(store.begin_upload(object)).await else { return false };
    if send_all(upload.as_mut(), spool, may_send).await.is_some() {
        return within_limit(upload.complete(Some(digest))).await.is_ok();
    }
    // An upload that cannot be aborted now is left to a sweep.
    let _ = within_limit(upload.abort()).await;
    false
}

/// Sends all parts; `None` if the fill was given up, or the store or the spool failed.
async fn send_all(upload: &mut dyn Upload, spool: &Spool, mut may_send: watch::Receiver<Hashed>) -> Option<()> {
    let mut sent = 0;
    loop {
        let due = |hashed: &Hashed| hashed.is_whole || hashed.bytes - sent >= PART_BYTES;
        let Hashed { bytes, is_whole } = *may_send.wait_for(due).await.ok()?;
        let len = (bytes - sent).min(PART_BYTES);
        if len > 0 {
            let part = read(spool, sent, len).await.ok()?;
            within_limit(upload.part(part)).await.ok()?;
            sent += len;
            failpoint::hit("fill.after_first_part");
        }
        if is_whole && sent == bytes {
            return Some(());
        }
    }
}

async fn read(spool: &Spool, at: u64, len: u64) -> io::Result<Bytes> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    spool.read(at, len).await
}
