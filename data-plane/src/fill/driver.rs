//! The driver of one fill: it carries out the effects of the domain's state machine and reports the results to it.

mod fetch;
mod follow;
mod store;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use entrepot_domain::fill::{Effect, Event, Fill, Outcome, Phase, Unread, is_worth_fetching_ahead, longest};
use entrepot_domain::{Digest, ResourceId, Verifier};
use entrepot_records::Content;
use entrepot_runtime::{Backoff, chain};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::{Instrument as _, Span, field, info, info_span, instrument, warn};

use super::landing::{End, Head, Landing, Progress};
use super::pass_through::PassThrough;
use super::spool::Spool;
use super::upload::Uploading;
use super::{CHUNK_BYTES, FetchTurn, Fills, SETTINGS};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::failpoint;
use crate::lease::{Claim, Holder, Lease, LeaseKey};
use crate::peers::Following;
use crate::repository::within_limit;
use store::OwnObject;

/// Runs one fill to its end, and reports everything through `progress`.
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
        own: OwnObject::new(fills),
        found: None,
        lease: None,
        holder: None,
        leader: None,
        following: None,
        called_at: None,
        rest: Backoff::new(follow::REST.0, follow::REST.1),
        is_confirmed: false,
        uncoordinated: None,
        turn: None,
        attempt: 0,
        spool: None,
        is_open: false,
        body: None,
        passed_over_bytes: 0,
        has_ended_early: false,
        ahead: None,
        verifier: Verifier::new(digest.clone()),
        upload: None,
        completing: None,
        verified_since: None,
        config: None,
        failure: None,
        unread: Unread::default(),
        said_bytes: None,
        tick,
        began: Instant::now(),
    };
    let (mut state, first) = Fill::start(SETTINGS);
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
    /// The object that this fill writes.
    own: OwnObject,
    /// The content that another fill has stored.
    found: Option<Content>,
    /// Our lease, unless another node has it or leases are unavailable.
    lease: Option<Lease>,
    /// The holder of the lease, according to the last claim.
    holder: Option<Holder>,
    /// The node of that holder.
    leader: Option<ResourceId>,
    /// That node's fill.
    following: Option<Following>,
    /// How many bytes had landed when that node was called again because it had broken off, and the waits between such calls.
    called_at: Option<u64>,
    rest: Backoff,
    /// Whether the upstream has confirmed that our repository has the blob.
    is_confirmed: bool,
    /// The permission to fetch without a lease.
    uncoordinated: Option<FetchTurn>,
    /// The permission to fetch.
    turn: Option<Arc<FetchTurn>>,
    /// How often the landed bytes were discarded.
    attempt: u32,
    spool: Option<Spool>,
    /// Whether everything is known about the blob that can be known before it has landed.
    is_open: bool,
    /// The bytes that land in order.
    body: Option<Body>,
    /// How many bytes at the beginning of that body have landed already.
    passed_over_bytes: u64,
    /// Whether that body has ended too early.
    has_ended_early: bool,
    /// Where the next bytes of the part ahead land, where the part ends, and its body.
    ahead: Option<(u64, u64, Body)>,
    verifier: Verifier,
    /// The upload to the store, while we lead.
    upload: Option<Uploading>,
    /// Whether the store has the whole content, as soon as that is known.
    completing: Option<BoxFuture<'static, bool>>,
    /// Since when everything is verified.
    verified_since: Option<Instant>,
    /// The bytes, as long as they are few enough to be an image's configuration.
    config: Option<BytesMut>,
    failure: Option<PullError>,
    unread: Unread,
    /// The size that the sender of the bytes has given.
    said_bytes: Option<u64>,
    tick: Interval,
    began: Instant,
}

impl Driver<'_> {
    /// Tells readers how far the fill is.
    fn tell(&self, state: &Fill) {
        self.landing.about().is_at(state);
        let reach = state.reach();
        let is_told = self.is_open && state.may_begin();
        let (phase, attempt, size_bytes) = (state.phase(), self.attempt, state.size_bytes());
        let spool = self.spool.as_ref().filter(|_| self.is_open);
        self.progress.send_if_modified(|progress| {
            let before = (
                progress.phase,
                progress.attempt,
                progress.is_told,
                progress.head.as_ref().map(|head| head.size_bytes),
            );
            progress.head = spool.map(|spool| Head { spool: spool.clone(), size_bytes });
            (progress.phase, progress.attempt, progress.is_told) = (phase, attempt, is_told);
            let after = (phase, attempt, is_told, progress.head.as_ref().map(|head| head.size_bytes));
            let has_moved = progress.reach != reach || before != after;
            progress.reach = reach;
            if phase == Phase::Leading {
                progress.leader = None;
            } else if phase == Phase::Following && progress.leader != self.leader {
                progress.leader.clone_from(&self.leader);
            }
            has_moved
        });
    }

    async fn carry_out(&mut self, effect: Effect, state: &Fill) -> Option<Event> {
        match effect {
            Effect::Look => Some(self.look().await),
            Effect::Claim => Some(self.claim(None).await),
            Effect::TakeOver => {
                let lost = self.holder.take();
                Some(self.claim(lost.as_ref()).await)
            }
            Effect::Follow(from) => self.follow(from).await,
            Effect::BeginUpload => {
                self.begin_upload(state).await;
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
                (self.body, self.following) = (None, None);
                None
            }
            Effect::Hash(part) => Some(self.hash_spooled(part).await),
            Effect::ReadStore(from) => Some(self.read_store(from).await),
            Effect::Verify => Some(self.verify().await),
            Effect::Commit => match self.upload.take() {
                Some(upload) => {
                    let completing = upload.complete(state.landed_bytes()).instrument(info_span!("fill.commit"));
                    self.completing = Some(completing.boxed());
                    None
                }
                None => Some(Event::CommitFailed),
            },
            Effect::Link => {
                self.commit_found().await;
                Some(Event::Committed)
            }
            Effect::Discard => {
                self.attempt += 1;
                (self.spool, self.is_open, self.ahead, self.config) = (None, false, None, None);
                (self.body, self.following) = (None, None);
                self.verifier = Verifier::new(self.digest.clone());
                None
            }
            Effect::AbortUpload => {
                // In the background, since no reader waits for it.
                self.upload = None;
                None
            }
            Effect::ReleaseLease => {
                failpoint::hit("fill.before_release");
                // In the background, too.
                (self.lease, self.uncoordinated) = (None, None);
                None
            }
        }
    }

    async fn look(&mut self) -> Event {
        match within_limit(self.fills.inner.repositories.find_delivered(self.digest, self.fill)).await {
            Ok(Some(content)) => {
                self.found = Some(content);
                Event::Found
            }
            Ok(None) => Event::Absent,
            Err(_) => Event::StoreAway,
        }
    }

    /// Asks for the lease, which `lost` may still have.
    async fn claim(&mut self, lost: Option<&Holder>) -> Event {
        self.following = None;
        let key = LeaseKey::content(self.fill.origin, self.digest);
        let event = match self.fills.leases().claim(&key, lost).await {
            Claim::Busy(holder) => {
                self.leader = holder.node();
                self.holder = Some(holder);
                return Event::Busy;
            }
            Claim::Granted(lease) => {
                self.lease = Some(lease);
                Event::Granted
            }
            Claim::Uncoordinated => Event::Uncoordinated,
        };
        failpoint::hit("fill.after_claim");
        event
    }

    /// The largest accepted size of content whose size is only known from its readers' manifests.
    fn limit(&self) -> u64 {
        self.landing.limit().unwrap_or(u64::MAX).min(self.fills.inner.largest_blob)
    }

    /// Notes that everything is known about the blob that can be known before it has landed. Returns the next event if
    /// it is too large to be stored.
    fn open(&mut self, size_bytes: Option<u64>) -> Option<Event> {
        self.said_bytes = size_bytes;
        let expected_bytes = size_bytes.or_else(|| self.landing.limit()).unwrap_or_default();
        if self.spool.as_ref().is_some_and(|spool| !spool.has_room_for(expected_bytes)) {
            return Some(Event::SpoolFailed);
        }
        self.is_open = true;
        if self.config.is_none() && size_bytes.is_some_and(|size| size <= SETTINGS.whole_bytes) {
            self.config = Some(BytesMut::new());
        }
        None
    }

    async fn open_spool(&mut self) -> Option<Event> {
        if self.spool.is_none() {
            match Spool::create(&self.fills.inner.spool_dir, self.fills.inner.largest_blob).await {
                Ok(spool) => self.spool = Some(spool),
                Err(error) => return Some(spool_failed(&error)),
            }
        }
        None
    }

    /// Waits for the next event while bytes land.
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
            let leader = async {
                match &mut self.following {
                    Some(following) => following.next().await,
                    None => std::future::pending().await,
                }
            };
            let completing = async {
                match &mut self.completing {
                    Some(completing) => completing.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                is_stored = completing => return self.finish_store(is_stored, state).await,
                chunk = body => return self.land(chunk, state).await,
                word = leader => return self.hear(word, state).await,
                chunk = ahead => return self.land_ahead(chunk).await,
                _ = self.tick.tick() => if let Some(event) = self.look_around(state) { return event },
            }
        }
    }

    async fn land_in_order(&mut self, chunk: Bytes, landed: u64) -> Event {
        if let Err(event) = self.spool(landed, chunk.clone()).await {
            return event;
        }
        let bytes = chunk.len() as u64;
        self.hash(&chunk, landed);
        Event::Landed(bytes)
    }

    async fn spool(&mut self, at: u64, chunk: Bytes) -> Result<(), Event> {
        let Some(spool) = &self.spool else { return Err(Event::SpoolFailed) };
        let written = timeout(limits::SPOOL_WRITE, spool.write(at, chunk)).await;
        written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(|error| spool_failed(&error))
    }

    /// Adds bytes that start at `at` to the hash and the upload.
    fn hash(&mut self, bytes: &[u8], at: u64) {
        self.verifier.update(bytes);
        if let Some(config) = &mut self.config {
            config.extend_from_slice(bytes);
        }
        if let Some(upload) = &self.upload {
            upload.may_send(at + bytes.len() as u64);
        }
    }

    /// Hashes some of the bytes that have landed ahead.
    async fn hash_spooled(&mut self, part: Range<u64>) -> Event {
        let len = (part.end - part.start).min(CHUNK_BYTES as u64);
        let Some(spool) = &self.spool else { return Event::SpoolFailed };
        match spool.read(part.start, len as usize).await {
            Ok(bytes) => {
                self.hash(&bytes, part.start);
                Event::Hashed(len)
            }
            Err(error) => spool_failed(&error),
        }
    }

    /// Checks what readers and the node want meanwhile.
    fn look_around(&mut self, state: &Fill) -> Option<Event> {
        if self.verified_since.is_some_and(|since| since.elapsed() >= limits::COMMIT_LATE) {
            self.verified_since = None;
            return Some(Event::CommitLate);
        }
        if self.began.elapsed() > longest(state.size_bytes()) {
            return Some(self.broken(self.away()));
        }
        let readers = self.landing.about().reader_count();
        if self.fills.inner.tasks.stopping().is_cancelled() {
            // They continue from where they are, so they should be close.
            let (followers, from) = self.landing.about().followed_from();
            let are_close = from.is_none_or(|from| state.landed_bytes() <= from + limits::CLOSE_BYTES);
            if readers <= followers && are_close {
                return Some(Event::Draining { readers: false, followers: followers > 0 });
            }
        }
        let (landed, size, now) = (state.landed_bytes(), state.size_bytes(), self.began.elapsed());
        let is_over = self.unread.is_over(readers, landed, size, now);
        if is_over && self.fills.leave_unread(self.fill.origin, self.digest, self.landing) {
            return Some(Event::Abandoned);
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
            Outcome::Stored if state.is_verified() => ("stored", End::Whole),
            Outcome::Stored => ("found", End::Found),
            Outcome::Uncached => ("uncached", End::Whole),
            Outcome::Failed => ("failed", End::Failed(failure.unwrap_or(PullError::GaveUp))),
            Outcome::Abandoned => ("given_up", End::Failed(PullError::GaveUp)),
            Outcome::HandedOver => ("handed_over", End::Failed(PullError::GaveUp)),
            Outcome::PassedThrough => ("passed_through", End::PassedThrough(Arc::new(self.pass_through(state)))),
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
            End::Failed(_) if word == "handed_over" => info!(
                content.digest = %digest, rule.name = %rule, size_bytes = landed,
                "handed the fill of `{digest}` under `{rule}` over to a node that follows, since this one stops"
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
                "passes `{digest}` under `{rule}` through to each reader, since the spool does not take it"
            ),
            End::Found => {}
        }
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    fn pass_through(&self, state: &Fill) -> PassThrough {
        PassThrough {
            fills: self.fills.clone(),
            fill: self.fill.clone(),
            digest: self.digest.clone(),
            size_bytes: state.size_bytes().or(self.said_bytes),
            landed: self.spool.clone().map(|spool| (spool, state.landed_bytes())),
        }
    }

    fn broken(&mut self, error: PullError) -> Event {
        self.failure = Some(error);
        Event::Broken
    }

    fn away(&self) -> PullError {
        let (rule, upstream) = (self.fill.rule.id.clone(), self.fill.source.upstream.id.clone());
        PullError::UpstreamAway { rule, upstream, status: None }
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
