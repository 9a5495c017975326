//! The driver of one fill: carries out the effects of the domain's state machine and reports what came of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use entrepot_domain::fill::{Effect, Event, Fill, Outcome, is_worth_fetching_ahead, is_worth_finishing, longest};
use entrepot_domain::manifest::platform_of_config;
use entrepot_domain::{Digest, Verifier};
use entrepot_runtime::chain;
use entrepot_store::{Key, Upload, layout};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::{Instrument as _, Span, field, info, info_span, instrument, warn};
use uuid::Uuid;

use super::landing::{End, Head, Landing, Progress};
use super::passage::Passage;
use super::spool::Spool;
use super::{CHUNK_BYTES, Fills, HELD_BY_US, TERMS};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::failpoint;
use crate::http::route::Asked;
use crate::lease::{Claim, Lease, LeaseKey, Patience};
use crate::repository::within_limit;
use crate::resolve::{asking, failure};

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
    let mut tick = interval(limits::FILL_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut driver = Driver {
        fills,
        fill,
        digest,
        progress,
        landing,
        object: layout::blob(digest, Uuid::now_v7()),
        found: None,
        lease: None,
        patience: fills.leases().patience(),
        turn: None,
        spool: None,
        is_open: false,
        body: None,
        passed_over_bytes: 0,
        has_ended_early: false,
        ahead: None,
        verifier: Verifier::new(digest.clone()),
        upload: None,
        part: BytesMut::new(),
        config: None,
        failure: None,
        unread_since: None,
        tick,
        began: Instant::now(),
    };
    let (mut state, first) = Fill::start(TERMS);
    let mut effects = VecDeque::from(first);
    let outcome = loop {
        driver.tell(&state);
        let event = match effects.pop_front() {
            Some(effect) => match driver.carry_out(effect, &state).await {
                Some(event) => event,
                None => continue,
            },
            None => match state.outcome() {
                Some(outcome) => break outcome,
                None => driver.next_event(&state).await,
            },
        };
        let (next, more) = state.step(event);
        state = next;
        effects.extend(more);
    };
    driver.finish(outcome, &state);
}

type Body = BoxStream<'static, Result<Bytes, PullError>>;

struct Driver<'a> {
    fills: &'a Fills,
    fill: &'a FillFrom,
    digest: &'a Digest,
    progress: watch::Sender<Progress>,
    landing: &'a Landing,
    object: Key,
    /// The object that another fill has brought.
    found: Option<Key>,
    /// Ours, unless another has it or nobody can say.
    lease: Option<Lease>,
    patience: Patience,
    /// The leave to fetch.
    turn: Option<OwnedSemaphorePermit>,
    spool: Option<Spool>,
    /// Whether all is known that will be known of the blob before it has landed.
    is_open: bool,
    /// The bytes in their order, as they come.
    body: Option<Body>,
    /// How many of them have landed before.
    passed_over_bytes: u64,
    /// Whether they have ended too early.
    has_ended_early: bool,
    /// Where the next bytes that come ahead land, and those bytes.
    ahead: Option<(u64, u64, Body)>,
    verifier: Verifier,
    /// On its way into the store; `None` when the store does not take it.
    upload: Option<Box<dyn Upload>>,
    /// What is hashed and not uploaded yet.
    part: BytesMut,
    /// The bytes, while they are few enough to be an image's configuration.
    config: Option<BytesMut>,
    failure: Option<PullError>,
    /// Since when nobody reads.
    unread_since: Option<Instant>,
    tick: Interval,
    began: Instant,
}

impl Driver<'_> {
    /// Lets readers know how far the fill is.
    fn tell(&self, state: &Fill) {
        self.landing.about().is_at(state);
        let reach = state.reach();
        let has_ended = matches!(state.outcome(), Some(Outcome::Stored | Outcome::Uncached));
        let is_tellable = self.is_open && (!state.is_whole_first() || has_ended);
        let spool = self.spool.as_ref().filter(|_| is_tellable);
        self.progress.send_if_modified(|progress| {
            let has_moved = progress.reach != reach || (progress.head.is_none() && spool.is_some());
            if let (None, Some(spool)) = (&progress.head, spool) {
                progress.head = Some(Head { spool: spool.clone(), size_bytes: state.size_bytes() });
            }
            progress.reach = reach;
            has_moved
        });
    }

    async fn carry_out(&mut self, effect: Effect, state: &Fill) -> Option<Event> {
        match effect {
            Effect::Look => Some(self.look().await),
            Effect::Claim | Effect::TakeOver => Some(self.claim().await),
            Effect::Follow(_) => Some(if self.patience.wait().await { Event::Waited } else { Event::OutOfPatience }),
            Effect::BeginUpload => {
                let store = &self.fills.inner.repositories.store;
                self.upload = within_limit(store.begin_upload(&self.object)).await.ok();
                None
            }
            Effect::Fetch(from) => self.fetch(from, state).await,
            Effect::FetchAhead(part) => self.fetch_ahead(part).await,
            Effect::StopAhead => {
                self.ahead = None;
                None
            }
            Effect::AdoptAhead => {
                self.body = self.ahead.take().map(|(_, _, body)| body);
                None
            }
            Effect::HangUp => {
                self.body = None;
                None
            }
            Effect::Hash(part) => Some(self.hash_spooled(part).await),
            Effect::ReadStore(from) => Some(self.read_store(from).await),
            Effect::Verify => Some(self.verify().await),
            Effect::Commit => {
                let committed = self.commit(state).instrument(info_span!("fill.commit")).await;
                Some(if committed { Event::Committed } else { Event::CommitFailed })
            }
            Effect::Discard => {
                (self.spool, self.is_open, self.ahead, self.config) = (None, false, None, None);
                self.verifier = Verifier::new(self.digest.clone());
                None
            }
            Effect::AbortUpload => {
                self.abort_upload().await;
                None
            }
            Effect::ReleaseLease => {
                failpoint::hit("fill.before_release");
                // It is given back in the background: no reader waits for that.
                self.lease = None;
                None
            }
        }
    }

    async fn look(&mut self) -> Event {
        match within_limit(self.fills.inner.repositories.stored(self.digest)).await {
            Ok(Some(object)) => {
                self.found = Some(object);
                Event::Found
            }
            Ok(None) => Event::Absent,
            Err(_) => Event::StoreAway,
        }
    }

    async fn claim(&mut self) -> Event {
        let key = LeaseKey::content(self.fill.origin, self.digest);
        let event = match self.fills.leases().claim(&key).await {
            Claim::Busy => return Event::Busy,
            Claim::Granted(lease) => {
                self.lease = Some(lease);
                Event::Granted
            }
            Claim::Uncoordinated => Event::Uncoordinated,
        };
        failpoint::hit("fill.after_claim");
        event
    }

    /// Requests the bytes from `from` on.
    async fn fetch(&mut self, from: u64, state: &Fill) -> Option<Event> {
        if self.turn.is_none() {
            match self.fills.turn().await {
                Ok(turn) => self.turn = Some(turn),
                Err(error) => return Some(self.broken(error)),
            }
        }
        if self.spool.is_none() {
            match Spool::create(&self.fills.inner.spool_dir).await {
                Ok(spool) => self.spool = Some(spool),
                Err(error) => return Some(spool_failed(&error)),
            }
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
        let body = match asking(self.fill, "GET", client.blob(&self.fill.repository, self.digest)).await {
            Ok(body) => body,
            Err(error) => return Some(self.broken(failure(self.fill, Asked::Blob, &error))),
        };
        let size_bytes = match body.size_bytes {
            Some(size) => Some(size),
            // A size that is only said on asking lets clients see that a body was cut short.
            None => {
                asking(self.fill, "HEAD", client.head_blob(&self.fill.repository, self.digest)).await.ok().flatten()
            }
        };
        failpoint::hit("fill.after_head");
        let fill = self.fill.clone();
        self.body = Some(body.stream.map_err(move |error| failure(&fill, Asked::Blob, &error)).boxed());
        (self.passed_over_bytes, self.is_open) = (from, true);
        if size_bytes.is_some_and(|size| size <= TERMS.whole_bytes) {
            self.config = Some(BytesMut::new());
        }
        size_bytes.map(Event::Sized)
    }

    /// Requests a part; `None` if the upstream gives none.
    async fn part(&mut self, part: Range<u64>) -> Result<Option<Body>, PullError> {
        let client = &self.fill.source.client;
        let body = asking(self.fill, "GET", client.blob_part(&self.fill.repository, self.digest, part)).await;
        let body = body.map_err(|error| failure(self.fill, Asked::Blob, &error))?;
        let fill = self.fill.clone();
        Ok(body.map(|body| body.map_err(move |error| failure(&fill, Asked::Blob, &error)).boxed()))
    }

    async fn fetch_ahead(&mut self, part: Range<u64>) -> Option<Event> {
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

    /// What happens next while bytes land.
    async fn next_event(&mut self, state: &Fill) -> Event {
        loop {
            let ahead = async {
                match &mut self.ahead {
                    Some((_, _, body)) => body.next().await,
                    None => std::future::pending().await,
                }
            };
            let body = async {
                match &mut self.body {
                    Some(body) => body.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                chunk = body => return self.land(chunk, state).await,
                chunk = ahead => return self.land_ahead(chunk).await,
                _ = self.tick.tick() => if let Some(event) = self.look_around(state) { return event },
            }
        }
    }

    /// Lands the next bytes in their order: spool, hash and upload take the same ones.
    async fn land(&mut self, chunk: Option<Result<Bytes, PullError>>, state: &Fill) -> Event {
        let mut chunk = match chunk {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return self.broken(error),
            None => {
                return match state.size_bytes() {
                    Some(size) => self.fetch_rest(state.landed_bytes()..size).await,
                    None => Event::Ended,
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
        if let Err(event) = self.spool(landed, chunk.clone()).await {
            return event;
        }
        let bytes = chunk.len() as u64;
        self.hash(chunk).await;
        Event::Landed(bytes)
    }

    /// Requests what is missing of a body that has come to a proper end too early. No upstream that has it all does
    /// that twice.
    async fn fetch_rest(&mut self, rest: Range<u64>) -> Event {
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

    async fn land_ahead(&mut self, chunk: Option<Result<Bytes, PullError>>) -> Event {
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

    async fn spool(&mut self, at: u64, chunk: Bytes) -> Result<(), Event> {
        let Some(spool) = &self.spool else { return Err(Event::SpoolFailed) };
        let written = timeout(limits::SPOOL_WRITE, spool.write(at, chunk)).await;
        written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(|error| spool_failed(&error))
    }

    /// Takes bytes in their order into the hash and the upload.
    async fn hash(&mut self, bytes: Bytes) {
        self.verifier.update(&bytes);
        if let Some(config) = &mut self.config {
            config.extend_from_slice(&bytes);
        }
        if self.upload.is_some() {
            self.part.extend_from_slice(&bytes);
            if self.part.len() >= PART_BYTES {
                self.upload_part().await;
            }
        }
    }

    /// Hashes some of what has landed ahead.
    async fn hash_spooled(&mut self, part: Range<u64>) -> Event {
        let len = (part.end - part.start).min(CHUNK_BYTES as u64);
        let Some(spool) = &self.spool else { return Event::SpoolFailed };
        match spool.read(part.start, len as usize).await {
            Ok(bytes) => {
                self.hash(bytes).await;
                Event::Hashed(len)
            }
            Err(error) => spool_failed(&error),
        }
    }

    /// Lets the rest come from the store.
    async fn read_store(&mut self, from: u64) -> Event {
        let store = &self.fills.inner.repositories.store;
        let Some(object) = self.found.clone() else { return Event::Broken };
        let Ok(Some(size)) = within_limit(store.head(&object)).await else { return Event::Broken };
        let Ok(Some(body)) = within_limit(store.read(&object, from..size)).await else { return Event::Broken };
        self.body = Some(body.map_err(|_| PullError::StoreAway).boxed());
        Event::Sized(size)
    }

    async fn verify(&mut self) -> Event {
        let verifier = std::mem::replace(&mut self.verifier, Verifier::new(self.digest.clone()));
        if !verifier.finish() {
            self.failure = Some(self.bad("it does not hash to its digest"));
            return Event::Wrong;
        }
        failpoint::hit("fill.after_verification");
        Event::Right
    }

    /// Uploads what is there. A store that does not take it gets no more; the readers do not notice.
    async fn upload_part(&mut self) {
        let bytes = self.part.split().freeze();
        let Some(upload) = self.upload.as_mut().filter(|_| !bytes.is_empty()) else { return };
        if within_limit(upload.part(bytes)).await.is_err() {
            self.abort_upload().await;
        }
        failpoint::hit("fill.after_first_part");
    }

    async fn abort_upload(&mut self) {
        self.part.clear();
        if let Some(upload) = self.upload.take() {
            // What cannot be aborted now is swept later.
            let _ = within_limit(upload.abort()).await;
        }
    }

    /// Gives the content its key and lets the repositories that may show it do so. Returns whether it is stored.
    async fn commit(&mut self, state: &Fill) -> bool {
        self.upload_part().await;
        let Some(upload) = self.upload.take() else { return false };
        if within_limit(upload.complete()).await.is_err() {
            return false;
        }
        failpoint::hit("fill.after_upload");
        let platform = self.config.as_deref().and_then(platform_of_config);
        while let Some((repository, fill)) = self.landing.next_to_link() {
            let repositories = &self.fills.inner.repositories;
            let size = state.landed_bytes();
            let link = repositories.link_blob(&repository, &fill, self.digest, &self.object, size, platform.clone());
            if let Err(error) = within_limit(link).await {
                warn!("blob `{}` is not linked in `{repository}`: {error}", self.digest);
            }
        }
        true
    }

    /// What readers and the node want meanwhile.
    fn look_around(&mut self, state: &Fill) -> Option<Event> {
        if self.began.elapsed() > longest(state.size_bytes()) {
            let (rule, upstream) = (self.fill.rule.id.clone(), self.fill.source.upstream.id.clone());
            return Some(self.broken(PullError::UpstreamAway { rule, upstream, status: None }));
        }
        let is_read = self.progress.receiver_count() > HELD_BY_US;
        if self.fills.inner.tasks.stopping().is_cancelled() && !is_read {
            return Some(Event::Draining { readers: false, followers: false });
        }
        if is_read || is_worth_finishing(state.landed_bytes(), state.size_bytes()) {
            self.unread_since = None;
        } else {
            let since = *self.unread_since.get_or_insert_with(Instant::now);
            let is_unread = since.elapsed() >= limits::UNREAD_FILL;
            if is_unread && self.fills.leave_unread(self.fill.origin, self.digest, &self.progress) {
                return Some(Event::Abandoned);
            }
        }
        let readers = self.landing.readers();
        if let Some((start, at, _)) = &self.ahead {
            return (!readers.are_in(*start, *at)).then_some(Event::Unwanted);
        }
        let (at, waited) = readers.waiting_ahead(state.landed_bytes())?;
        is_worth_fetching_ahead(at - state.landed_bytes(), waited).then_some(Event::Wanted(at))
    }

    fn finish(mut self, outcome: Outcome, state: &Fill) {
        let failure = self.failure.take();
        let (word, end) = match outcome {
            Outcome::Stored if self.spool.is_some() => ("stored", End::Whole),
            Outcome::Stored => ("found", End::Found),
            Outcome::Uncached => ("uncached", End::Whole),
            Outcome::Failed => ("failed", End::Failed(failure.unwrap_or(PullError::Busy))),
            Outcome::Abandoned | Outcome::HandedOver => ("given_up", End::Failed(PullError::Busy)),
            Outcome::PassedThrough => ("passed_through", End::PassedThrough(Arc::new(self.passage(state)))),
        };
        let landed = state.landed_bytes();
        Span::current().record("fill.outcome", word).record("size_bytes", landed);
        self.fills.inner.metrics.observe(word, self.began.elapsed());
        let (digest, rule) = (self.digest, &self.fill.rule.id);
        match &end {
            End::Failed(_) if word == "given_up" => info!(
                content.digest = %digest, rule.name = %rule, size_bytes = landed,
                "gave up filling `{digest}` under `{rule}`, which nobody reads any more"
            ),
            End::Whole => info!(
                content.digest = %digest, rule.name = %rule, size_bytes = landed,
                duration_ms = self.began.elapsed().as_millis(), "filled `{digest}` under `{rule}`"
            ),
            End::Failed(error) => warn!(
                content.digest = %digest, rule.name = %rule, size_bytes = landed,
                "could not fill `{digest}` under `{rule}`: {error}"
            ),
            End::PassedThrough(_) => warn!(
                content.digest = %digest, rule.name = %rule, size_bytes = landed,
                "passes `{digest}` under `{rule}` through to each reader, since the spool takes no bytes"
            ),
            End::Found => {}
        }
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    fn passage(&self, state: &Fill) -> Passage {
        Passage {
            fills: self.fills.clone(),
            fill: self.fill.clone(),
            digest: self.digest.clone(),
            size_bytes: state.size_bytes(),
            landed: self.spool.clone().map(|spool| (spool, state.landed_bytes())),
        }
    }

    fn broken(&mut self, error: PullError) -> Event {
        self.failure = Some(error);
        Event::Broken
    }

    fn bad(&self, what: &str) -> PullError {
        let (rule, upstream) = (self.fill.rule.id.clone(), self.fill.source.upstream.id.clone());
        PullError::BadContent { rule, upstream, what: what.to_owned() }
    }
}

fn spool_failed(error: &std::io::Error) -> Event {
    warn!(error = %chain(error), "the spool cannot be written or read");
    Event::SpoolFailed
}
