//! What goes wrong, and when.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::chaos::Chaos;

/// How a request goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is never answered.
    Silence,
    /// It is answered this much later.
    Delay(Duration),
    /// The connection is closed without an answer.
    HangUp,
    /// The body stops after this many bytes, and the connection stays open.
    StallAfter(u64),
    /// The connection is closed after about this many bytes of the body.
    CutAfter(u64),
    /// The connection is reset after at most this many bytes of the body: what is on its way may be lost.
    ResetAfter(u64),
    /// The body ends after this many bytes as if that were all: without a length, and with a proper end.
    EndAfter(u64),
    /// The body has one wrong bit.
    FlipBit,
    /// The body has one wrong bit in this byte, or in its last one.
    FlipBitAt(u64),
    /// `Docker-Content-Digest` says this.
    DigestHeader(String),
    /// There is no `Docker-Content-Digest`.
    NoDigestHeader,
    /// There is no `Content-Length`; the body is chunked.
    NoLength,
    /// `Content-Length` says this many bytes more, or fewer, than there are.
    WrongLength(i64),
    /// Ranges are not understood: the whole is sent.
    NoRanges,
    /// A web page with status 200.
    Html,
    /// This status, with a body in OCI's form, and perhaps a `Retry-After`.
    Status(u16, Option<String>),
    /// A redirect with this status to this place.
    Redirect(u16, String),
    /// A redirect (307) to the same path at another origin, such as `http://127.0.0.2:5555`.
    RedirectToOrigin(String),
    /// At most this many bytes each second.
    Rate(u64),
    /// All tokens that were given out so far are refused from now on. The answer itself is as it would be.
    ExpireTokens,
    /// One more header.
    Header(String, String),
    /// Another body, with everything else as it is.
    Body(Vec<u8>),
}

/// Holds answers back. Dropping it lets them go.
#[derive(Debug)]
pub struct Gate(Arc<GateState>);

#[derive(Debug)]
struct GateState {
    waiting: watch::Sender<usize>,
    release_at: watch::Sender<usize>,
}

impl Gate {
    /// Lets everything go that waits or comes.
    pub fn release(&self) {
        self.0.release_at.send_replace(0);
    }

    /// Lets everything go once `count` requests wait.
    pub fn release_at(&self, count: usize) {
        self.0.release_at.send_replace(count);
    }

    /// How many requests have come to the gate so far.
    pub fn waiting(&self) -> usize {
        *self.0.waiting.borrow()
    }

    /// Waits until `count` requests have come.
    ///
    /// # Panics
    /// If they do not within 30 s.
    pub async fn until_waiting(&self, count: usize) {
        let mut waiting = self.0.waiting.subscribe();
        let reached = timeout(Duration::from_secs(30), waiting.wait_for(|waiting| *waiting >= count)).await.is_ok();
        assert!(reached, "{} requests came to the gate within 30 s, not {count}", self.waiting());
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

/// A gate as a request sees it.
pub(super) struct Barrier(Arc<GateState>);

impl Barrier {
    pub(super) async fn pass(self) {
        self.0.waiting.send_modify(|waiting| *waiting += 1);
        let (mut waiting, mut release_at) = (self.0.waiting.subscribe(), self.0.release_at.subscribe());
        loop {
            if *waiting.borrow_and_update() >= *release_at.borrow_and_update() {
                return;
            }
            tokio::select! {
                _ = waiting.changed() => {}
                _ = release_at.changed() => {}
            }
        }
    }
}

/// The script: faults and gates with the requests they are for.
#[derive(Default)]
pub(super) struct Script {
    /// In which requests there is chaos.
    pub(super) chaos: Option<(String, Chaos)>,
    faults: Vec<(String, Fault, usize)>,
    gates: Vec<(String, Arc<GateState>)>,
}

impl Script {
    pub(super) fn add(&mut self, pattern: String, fault: Fault, times: usize) {
        self.faults.push((pattern, fault, times));
    }

    pub(super) fn clear(&mut self) {
        self.chaos = None;
        self.faults.clear();
    }

    pub(super) fn hold(&mut self, pattern: String) -> Gate {
        let state = GateState { waiting: watch::Sender::new(0), release_at: watch::Sender::new(usize::MAX) };
        let state = Arc::new(state);
        self.gates.push((pattern, state.clone()));
        Gate(state)
    }

    /// What a request meets: the gates to pass and the faults to play, which are used up by it.
    pub(super) fn take(&mut self, request: &str) -> (Vec<Barrier>, Vec<Fault>) {
        self.gates.retain(|(_, state)| *state.release_at.borrow() > 0);
        let gates = self.gates.iter().filter(|(pattern, _)| request.contains(pattern));
        let barriers = gates.map(|(_, state)| Barrier(state.clone())).collect();
        let mut faults = Vec::new();
        for (pattern, fault, times) in &mut self.faults {
            if *times > 0 && request.contains(&**pattern) {
                *times -= 1;
                faults.push(fault.clone());
            }
        }
        self.faults.retain(|(_, _, times)| *times > 0);
        if let Some((pattern, chaos)) = &mut self.chaos
            && request.contains(&**pattern)
        {
            faults.extend(chaos.fault(request));
        }
        (barriers, faults)
    }
}
