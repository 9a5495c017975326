//! The driver of one fill: carries out the steps of the domain's state machine and reports what came of them.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use entrepot_domain::fill::{Event, Fill, Outcome, Step, is_worth_finishing};
use entrepot_domain::manifest::platform_of_config;
use entrepot_domain::{Digest, Verifier};
use entrepot_runtime::chain;
use entrepot_store::{Key, Upload, layout};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tracing::{Instrument as _, Span, field, info, info_span, instrument, warn};
use uuid::Uuid;

use super::landing::{End, Head, Landing, Progress};
use super::spool::Spool;
use super::{Fills, HELD_BY_US};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::failpoint;
use crate::http::route::Asked;
use crate::lease::{Claim, Lease, LeaseKey, Patience};
use crate::repository::within_limit;
use crate::resolve::{asking, failure};

/// A blob of at most this size is verified whole before its first byte leaves.
const WHOLE_BYTES: u64 = 1024 * 1024;
/// How many bytes at the end of a larger one are held back until it is verified.
const HELD_BACK_BYTES: u64 = 64 * 1024;
/// How much goes into the store at once.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// Runs one fill to its end. Everything is reported through `progress`.
#[instrument(name = "fill", skip_all, fields(
    content.digest = %digest, rule.name = %fill.rule.id, fill.outcome = field::Empty, size_bytes = field::Empty))]
pub(super) async fn drive(
    fills: &Fills,
    fill: &FillFrom,
    digest: &Digest,
    progress: watch::Sender<Progress>,
    landing: &Landing,
) {
    let mut driver = Driver {
        fills,
        fill,
        digest,
        progress,
        landing,
        object: layout::blob(digest, Uuid::now_v7()),
        lease: None,
        patience: fills.leases().patience(),
        upload: None,
        head: None,
        landed: 0,
        config: None,
        failure: None,
        unread_since: None,
        began: Instant::now(),
    };
    let (mut state, first) = Fill::start();
    let mut steps: VecDeque<Step> = first.iter().copied().collect();
    while let Some(step) = steps.pop_front() {
        if let Some(event) = driver.carry_out(step).await {
            let (next, more) = state.on(event);
            state = next;
            steps.extend(more);
        }
    }
    driver.finish(state);
}

struct Driver<'a> {
    fills: &'a Fills,
    fill: &'a FillFrom,
    digest: &'a Digest,
    progress: watch::Sender<Progress>,
    landing: &'a Landing,
    object: Key,
    /// Ours, unless another has it or nobody can say.
    lease: Option<Lease>,
    patience: Patience,
    /// On its way into the store; `None` when the store does not take it.
    upload: Option<Box<dyn Upload>>,
    /// What readers of a small blob get only with its bytes.
    head: Option<Head>,
    landed: u64,
    /// The bytes, while they are few enough to be an image's configuration.
    config: Option<BytesMut>,
    failure: Option<PullError>,
    /// Since when nobody reads.
    unread_since: Option<Instant>,
    began: Instant,
}

/// Why a blob did not land.
enum Unfinished {
    /// For readers to know.
    Failed(PullError),
    /// There are none.
    Unread,
}

impl From<PullError> for Unfinished {
    fn from(error: PullError) -> Self {
        Self::Failed(error)
    }
}

impl Driver<'_> {
    async fn carry_out(&mut self, step: Step) -> Option<Event> {
        match step {
            Step::Look => Some(match within_limit(self.fills.inner.repositories.stored(self.digest)).await {
                Ok(Some(_)) => Event::Found,
                Ok(None) => Event::Absent,
                Err(_) => Event::StoreAway,
            }),
            Step::Claim => Some(self.claim().await),
            Step::Wait => Some(if self.patience.wait().await { Event::Waited } else { Event::OutOfPatience }),
            Step::Transfer => Some(match self.transfer().await {
                Ok(()) => Event::Verified,
                Err(Unfinished::Unread) => Event::Abandoned,
                Err(Unfinished::Failed(failure)) => {
                    self.failure = Some(failure);
                    Event::TransferFailed
                }
            }),
            Step::Commit => {
                let committed = self.commit().instrument(info_span!("fill.commit")).await;
                Some(if committed { Event::Committed } else { Event::CommitFailed })
            }
            Step::ReleaseTail => {
                let head = self.head.take();
                self.progress.send_modify(|progress| {
                    progress.released = self.landed;
                    progress.head = head.or(progress.head.take());
                });
                None
            }
            Step::AbortUpload => {
                if let Some(upload) = self.upload.take() {
                    // What cannot be aborted now is removed when the store is opened again.
                    let _ = within_limit(upload.abort()).await;
                }
                None
            }
            Step::ReleaseLease => {
                failpoint::hit("fill.before_release");
                // It is given back in the background: no reader waits for that.
                self.lease = None;
                None
            }
        }
    }

    async fn claim(&mut self) -> Event {
        let key = LeaseKey::content(self.fill.origin, self.digest);
        match self.fills.leases().claim(&key).await {
            Claim::Busy => return Event::Busy,
            Claim::Granted(lease) => self.lease = Some(lease),
            Claim::Uncoordinated => {}
        }
        failpoint::hit("fill.after_claim");
        Event::Granted
    }

    /// Lands the blob: spool, hash and upload take the same bytes.
    async fn transfer(&mut self) -> Result<(), Unfinished> {
        let _turn = self.fills.turn().await?;
        let client = &self.fill.source.client;
        let body = asking(self.fill, "GET", client.blob(&self.fill.repository, self.digest)).await;
        let mut body = body.map_err(|error| failure(self.fill, Asked::Blob, &error))?;
        let spool = Spool::create(&self.fills.inner.spool_dir).await.map_err(spool_away)?;
        let size_bytes = match body.size_bytes {
            Some(size) => Some(size),
            // A size that is only said on asking lets clients see that a body was cut short.
            None => {
                asking(self.fill, "HEAD", client.head_blob(&self.fill.repository, self.digest)).await.ok().flatten()
            }
        };
        failpoint::hit("fill.after_head");
        self.begin_upload().await;
        let head = Head { spool: spool.clone(), size_bytes };
        let whole_first = size_bytes.is_some_and(|size| size <= WHOLE_BYTES);
        if whole_first {
            self.config = Some(BytesMut::new());
            self.head = Some(head);
        } else {
            self.progress.send_modify(|progress| progress.head = Some(head));
        }

        let mut verifier = Verifier::new(self.digest.clone());
        let mut part = BytesMut::new();
        while let Some(chunk) = body.stream.next().await {
            let chunk = chunk.map_err(|error| failure(self.fill, Asked::Blob, &error))?;
            if size_bytes.is_some_and(|size| self.landed + chunk.len() as u64 > size) {
                return Err(self.bad("it is larger than the upstream said").into());
            }
            verifier.update(&chunk);
            self.land(&spool, &mut part, chunk).await?;
            self.release(whole_first);
            if self.is_given_up(size_bytes) {
                return Err(Unfinished::Unread);
            }
        }
        if size_bytes.is_some_and(|size| self.landed != size) {
            return Err(self.bad("it is smaller than the upstream said").into());
        }
        if !verifier.finish() {
            return Err(self.bad("it does not hash to its digest").into());
        }
        failpoint::hit("fill.after_verification");
        self.upload_part(part.freeze()).await;
        Ok(())
    }

    /// Whether nobody has read for a while, and what is left is too much to be fetched for nobody.
    fn is_given_up(&mut self, size_bytes: Option<u64>) -> bool {
        if self.progress.receiver_count() > HELD_BY_US || is_worth_finishing(self.landed, size_bytes) {
            self.unread_since = None;
            return false;
        }
        let since = *self.unread_since.get_or_insert_with(Instant::now);
        since.elapsed() >= limits::UNREAD_FILL && self.fills.leave_unread(self.fill.origin, self.digest, &self.progress)
    }

    async fn land(&mut self, spool: &Spool, part: &mut BytesMut, chunk: Bytes) -> Result<(), PullError> {
        spool.write(self.landed, chunk.clone()).await.map_err(spool_away)?;
        self.landed += chunk.len() as u64;
        if let Some(config) = &mut self.config {
            config.extend_from_slice(&chunk);
        }
        if self.upload.is_some() {
            part.extend_from_slice(&chunk);
            if part.len() >= PART_BYTES {
                self.upload_part(part.split().freeze()).await;
            }
        }
        Ok(())
    }

    /// Lets readers have what has landed, but for the tail.
    fn release(&self, whole_first: bool) {
        if !whole_first {
            let released = self.landed.saturating_sub(HELD_BACK_BYTES);
            self.progress.send_modify(|progress| progress.released = released);
        }
    }

    async fn begin_upload(&mut self) {
        self.upload = within_limit(self.fills.inner.repositories.store.begin_upload(&self.object)).await.ok();
    }

    /// A store that does not take a part gets no more of them; the readers do not notice.
    async fn upload_part(&mut self, bytes: Bytes) {
        let Some(upload) = self.upload.as_mut().filter(|_| !bytes.is_empty()) else { return };
        if within_limit(upload.part(bytes)).await.is_err()
            && let Some(upload) = self.upload.take()
        {
            let _ = within_limit(upload.abort()).await;
        }
        failpoint::hit("fill.after_first_part");
    }

    /// Gives the content its key and lets the repositories that may show it do so. Returns whether it is stored.
    async fn commit(&mut self) -> bool {
        let Some(upload) = self.upload.take() else { return false };
        if within_limit(upload.complete()).await.is_err() {
            return false;
        }
        failpoint::hit("fill.after_upload");
        let platform = self.config.as_deref().and_then(platform_of_config);
        while let Some((repository, fill)) = self.landing.next_to_link() {
            let repositories = &self.fills.inner.repositories;
            let link =
                repositories.link_blob(&repository, &fill, self.digest, &self.object, self.landed, platform.clone());
            if let Err(error) = within_limit(link).await {
                warn!("blob `{}` is not linked in `{repository}`: {error}", self.digest);
            }
        }
        true
    }

    fn finish(mut self, state: Fill) {
        let outcome = match state {
            Fill::Finished(outcome) => outcome,
            // The state machine ends whenever its driver has nothing left to do.
            Fill::Looking
            | Fill::Claiming
            | Fill::Waiting
            | Fill::LookingAgain
            | Fill::Transferring
            | Fill::Committing => Outcome::Failed,
        };
        let transferred = self.progress.borrow().head.is_some();
        let (word, end) = match (outcome, transferred) {
            (Outcome::Stored, true) => ("stored", End::Whole),
            (Outcome::Stored, false) => ("found", End::Found),
            (Outcome::Uncached, _) => ("uncached", End::Whole),
            (Outcome::Failed, _) if self.failure.is_none() => ("given_up", End::Failed(PullError::Busy)),
            (Outcome::Failed, _) => ("failed", End::Failed(self.failure.take().unwrap_or(PullError::Busy))),
        };
        Span::current().record("fill.outcome", word).record("size_bytes", self.landed);
        self.fills.inner.metrics.observe(word, self.began.elapsed());
        match &end {
            End::Failed(_) if word == "given_up" => info!(
                content.digest = %self.digest, rule.name = %self.fill.rule.id, size_bytes = self.landed,
                "gave up filling `{}` under `{}`, which nobody reads any more", self.digest, self.fill.rule.id
            ),
            End::Whole => info!(
                content.digest = %self.digest, rule.name = %self.fill.rule.id, size_bytes = self.landed,
                duration_ms = self.began.elapsed().as_millis(), "filled `{}` under `{}`", self.digest, self.fill.rule.id
            ),
            End::Failed(error) => warn!(
                content.digest = %self.digest, rule.name = %self.fill.rule.id, size_bytes = self.landed,
                "could not fill `{}` under `{}`: {error}", self.digest, self.fill.rule.id
            ),
            End::Found => {}
        }
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    fn bad(&self, what: &str) -> PullError {
        let (rule, upstream) = (self.fill.rule.id.clone(), self.fill.source.upstream.id.clone());
        PullError::BadContent { rule, upstream, what: what.to_owned() }
    }
}

fn spool_away(error: std::io::Error) -> PullError {
    warn!(error = %chain(&error), "the spool cannot be written");
    PullError::StoreAway
}
