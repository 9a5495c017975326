//! The nodes, the store and the lease, and how each step changes them.

use std::ops::Range;

use super::*;

/// One life of a node: the node, and how often it has been restarted.
pub(super) type Life = (u8, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::fill) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) lease: Option<Life>,
    pub(super) redis_away: bool,
    /// Which chunks of the stored content are wrong.
    pub(super) object: Option<u8>,
    pub(super) was_stored: bool,
    /// Uploads that no node knows of any more.
    pub(super) orphans: u8,
    pub(super) faults: u8,
    /// How often each chunk was fetched from the upstream.
    pub(super) fetched: [u8; CHUNKS],
    /// Whether a lease was given back by somebody who does not own it.
    pub(super) stolen: bool,
    /// Whether a fill was left before its end, because nobody read it or its node stopped.
    pub(super) is_left: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) life: u8,
    pub(super) fill: Fill,
    /// The node's next effects that others can see.
    pub(super) effects: Vec<Effect>,
    pub(super) leader: Option<Life>,
    /// The next chunk that the upstream sends.
    pub(super) body: Option<u8>,
    /// The next chunk of the second request, and the chunk at which that request ends.
    pub(super) ahead: Option<(u8, u8)>,
    /// The next chunk that the store sends.
    pub(super) store: Option<u8>,
    /// Which chunks on the spool are wrong.
    pub(super) bad: u8,
    /// Whether a wrong chunk was hashed.
    pub(super) hashed_bad: bool,
    /// Which chunks of the open upload are wrong.
    pub(super) upload: Option<u8>,
    pub(super) readers: Vec<Reader>,
    pub(super) draining: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    pub(super) at: u8,
    pub(super) end: u8,
    /// Which chunks were wrong when the reader got them.
    pub(super) bad: u8,
    pub(super) outcome: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reading {
    Open,
    Complete,
    Aborted,
}

pub(super) fn bit(chunk: u8) -> u8 {
    1 << chunk
}

impl Node {
    pub(super) fn new(life: u8, setup: &Setup, readers: Vec<Reader>) -> Self {
        let settings = FillSettings { whole_bytes: 0, held_back_bytes: 1 };
        let (fill, effects) = setup.mutant.start(settings);
        Self {
            life,
            fill,
            effects,
            leader: None,
            body: None,
            ahead: None,
            store: None,
            bad: 0,
            hashed_bad: false,
            upload: None,
            readers,
            draining: false,
        }
    }

    /// Whether others can follow it.
    pub(super) fn leads(&self) -> bool {
        matches!(
            self.fill.phase(),
            Phase::LookingAgain
                | Phase::Leading
                | Phase::Adopting
                | Phase::Verifying
                | Phase::Committing
                | Phase::Finished(Outcome::Stored | Outcome::Uncached)
        )
    }

    pub(super) fn is_read(&self) -> bool {
        self.readers.iter().any(|reader| reader.outcome == Reading::Open)
    }

    /// Lands a chunk in its place.
    pub(super) fn put(&mut self, chunk: u8, is_bad: bool) {
        self.bad = if is_bad { self.bad | bit(chunk) } else { self.bad & !bit(chunk) };
    }

    /// Hashes chunks that lie in order, and adds them to the upload.
    pub(super) fn hash(&mut self, chunks: Range<u8>) {
        let mask = chunks.fold(0, |mask, chunk| mask | bit(chunk)) & self.bad;
        self.hashed_bad |= mask != 0;
        self.upload = self.upload.map(|upload| upload | mask);
    }
}

impl World {
    pub(super) fn step(&mut self, at: usize, event: Event, setup: &Setup) {
        let fill = self.nodes[at].fill.clone();
        let (fill, effects) = setup.mutant.step(fill, event);
        self.nodes[at].fill = fill;
        self.nodes[at].effects.extend(effects);
        self.settle(at, setup);
    }

    /// Carries out the effects that no other node can see.
    pub(super) fn settle(&mut self, at: usize, setup: &Setup) {
        while let Some(effect) = self.nodes[at].effects.first().cloned() {
            let node = &mut self.nodes[at];
            let event = match effect {
                Effect::Look
                | Effect::Claim
                | Effect::TakeOver
                | Effect::Verify
                | Effect::Commit
                | Effect::ReleaseLease => return,
                Effect::Follow(_) => None,
                Effect::BeginUpload => {
                    let landed = node.fill.landed_bytes() as u8;
                    node.upload = Some(node.bad & (bit(landed) - 1));
                    if setup.mutant == Mutant::TrustsMidstate {
                        node.hashed_bad = false;
                    }
                    None
                }
                Effect::Fetch(from) => {
                    node.body = Some(from as u8);
                    Some(Event::Sized(u64::from(setup.chunks)))
                }
                Effect::FetchAhead(part) => {
                    node.ahead = Some((part.start as u8, part.end as u8));
                    None
                }
                Effect::StopAhead => {
                    node.ahead = None;
                    None
                }
                Effect::AdoptAhead => {
                    node.body = node.ahead.take().map(|(next, _)| next);
                    None
                }
                Effect::HangUp => {
                    (node.body, node.store) = (None, None);
                    None
                }
                Effect::Hash(part) => {
                    node.hash(part.start as u8..part.end as u8);
                    Some(Event::Hashed(part.end - part.start))
                }
                Effect::ReadStore(from) => {
                    node.store = Some(from as u8);
                    Some(Event::Sized(u64::from(setup.chunks)))
                }
                Effect::Discard => {
                    (node.bad, node.hashed_bad, node.body, node.ahead) = (0, false, None, None);
                    None
                }
                // No other node sees links.
                Effect::Link => Some(Event::Committed),
                Effect::AbortUpload => {
                    node.upload = None;
                    if setup.mutant == Mutant::DeletesByKey {
                        self.object = None;
                    }
                    None
                }
            };
            self.nodes[at].effects.remove(0);
            if let Some(event) = event {
                let fill = self.nodes[at].fill.clone();
                let (fill, effects) = setup.mutant.step(fill, event);
                self.nodes[at].fill = fill;
                self.nodes[at].effects.extend(effects);
            }
        }
    }

    /// Carries out an effect that others can see. `fails` costs a fault.
    pub(super) fn carry_out(&mut self, at: usize, fails: bool, setup: &Setup) -> Option<()> {
        let me = (at as u8, self.nodes[at].life);
        let effect = self.nodes[at].effects.first()?.clone();
        let event = match effect {
            Effect::Look if fails => Some(Event::StoreAway),
            Effect::Look if self.object.is_some() => Some(Event::Found),
            Effect::Look => Some(Event::Absent),
            Effect::Commit if fails => Some(Event::CommitFailed),
            Effect::Commit => match self.nodes[at].upload.take() {
                Some(upload) => {
                    self.object.get_or_insert(upload);
                    self.was_stored = true;
                    Some(Event::Committed)
                }
                None => Some(Event::CommitFailed),
            },
            _ if fails => return None,
            Effect::Verify => Some(if self.nodes[at].hashed_bad { Event::Wrong } else { Event::Right }),
            Effect::Claim | Effect::TakeOver if self.redis_away => Some(Event::Uncoordinated),
            Effect::Claim | Effect::TakeOver => {
                let lost = self.nodes[at].leader.filter(|_| effect == Effect::TakeOver);
                match self.lease {
                    Some(holder) if holder != me && Some(holder) != lost => {
                        self.nodes[at].leader = Some(holder);
                        Some(Event::Busy)
                    }
                    _ => {
                        self.lease = Some(me);
                        Some(Event::Granted)
                    }
                }
            }
            Effect::ReleaseLease => {
                if setup.mutant == Mutant::ReleasesAnyLease {
                    self.stolen |= self.lease.is_some_and(|holder| holder != me);
                    self.lease = None;
                } else if !self.redis_away {
                    self.lease = self.lease.filter(|holder| *holder != me);
                }
                None
            }
            other => unreachable!("{other:?} is carried out at once"),
        };
        self.nodes[at].effects.remove(0);
        match event {
            Some(event) => self.step(at, event, setup),
            None => self.settle(at, setup),
        }
        Some(())
    }

    /// Lands the next chunk of the upstream's body.
    pub(super) fn fetch(&mut self, at: usize, is_bad: bool, setup: &Setup) -> Option<()> {
        let node = &mut self.nodes[at];
        let chunk = node.body?;
        if node.fill.room_bytes() == 0 {
            return None;
        }
        self.fetched[usize::from(chunk)] += 1;
        node.body = Some(chunk + 1).filter(|next| *next < setup.chunks);
        node.put(chunk, is_bad);
        node.hash(chunk..chunk + 1);
        self.step(at, Event::Landed(1), setup);
        Some(())
    }

    pub(super) fn fetch_ahead(&mut self, at: usize, is_bad: bool, setup: &Setup) -> Option<()> {
        let node = &mut self.nodes[at];
        let (chunk, end) = node.ahead?;
        self.fetched[usize::from(chunk)] += 1;
        node.put(chunk, is_bad);
        node.ahead = Some((chunk + 1, end)).filter(|(next, end)| next < end);
        let has_ended = node.ahead.is_none();
        self.step(at, Event::AheadLanded(1), setup);
        if has_ended {
            self.step(at, Event::AheadEnded, setup);
        }
        Some(())
    }

    /// Reads a chunk from the store, where another node has put the content.
    pub(super) fn read_store(&mut self, at: usize, setup: &Setup) -> Option<()> {
        let chunk = self.nodes[at].store?;
        let Some(object) = self.object else {
            self.nodes[at].store = None;
            self.step(at, Event::Broken, setup);
            return Some(());
        };
        let node = &mut self.nodes[at];
        node.store = Some(chunk + 1);
        node.put(chunk, object & bit(chunk) != 0);
        node.hash(chunk..chunk + 1);
        self.step(at, Event::Landed(1), setup);
        Some(())
    }

    /// The node that this one follows, if it is up and leads.
    pub(super) fn leader(&self, at: usize) -> Option<&Node> {
        let (leader, life) = self.nodes[at].leader?;
        self.nodes.get(usize::from(leader)).filter(|node| node.life == life && node.leads())
    }

    pub(super) fn peer(&mut self, at: usize, is_bad: bool, setup: &Setup) -> Option<()> {
        let next = self.nodes[at].fill.landed_bytes();
        let leader = self.leader(at).filter(|leader| leader.fill.landed_bytes() > next)?;
        let chunk = next as u8;
        let is_bad = is_bad || leader.bad & bit(chunk) != 0;
        let node = &mut self.nodes[at];
        node.put(chunk, is_bad);
        node.hash(chunk..chunk + 1);
        if node.fill.size_bytes().is_none() {
            self.step(at, Event::Sized(u64::from(setup.chunks)), setup);
        }
        self.step(at, Event::Landed(1), setup);
        Some(())
    }

    /// A reader takes its next chunk, or learns how the fill ended.
    pub(super) fn send(&mut self, at: usize, reader: usize, setup: &Setup) -> Option<()> {
        let object = self.object;
        let node = &mut self.nodes[at];
        let until = setup.mutant.until(&node.fill, u64::from(node.readers[reader].at));
        let (bad, phase) = (node.bad, node.fill.phase());
        let reader = &mut node.readers[reader];
        if reader.outcome != Reading::Open {
            return None;
        }
        if until > u64::from(reader.at) {
            reader.bad |= bad & bit(reader.at);
            reader.at += 1;
            if reader.at == reader.end {
                reader.outcome = Reading::Complete;
            }
            return Some(());
        }
        match phase {
            // The reader gets the rest from the store.
            Phase::Finished(Outcome::Stored) => match object {
                Some(object) => {
                    reader.bad |= (reader.at..reader.end).fold(0, |mask, chunk| mask | bit(chunk)) & object;
                    reader.outcome = Reading::Complete;
                }
                None => reader.outcome = Reading::Aborted,
            },
            // The reader continues alone, with bytes that it verifies itself.
            Phase::Finished(Outcome::PassedThrough) if bad == 0 => reader.outcome = Reading::Complete,
            Phase::Finished(_) => reader.outcome = Reading::Aborted,
            _ => return None,
        }
        Some(())
    }

    pub(super) fn crash(&mut self, at: usize, setup: &Setup) {
        let node = &self.nodes[at];
        self.orphans += u8::from(node.upload.is_some());
        let fresh = |reader: &Reader| Reader { at: 0, bad: 0, outcome: Reading::Open, ..*reader };
        let readers = node.readers.iter().filter(|reader| reader.end == setup.chunks).map(fresh).collect();
        self.nodes[at] = Node::new(node.life + 1, setup, readers);
    }

    /// Whether everything has ended: no reader waits and no upload is open.
    pub(super) fn is_at_rest(&self) -> bool {
        self.orphans == 0
            && self.nodes.iter().all(|node| !node.is_read() && node.upload.is_none() && node.effects.is_empty())
    }
}

impl World {
    pub(super) fn is_followed(&self, at: u8) -> bool {
        let me = Some((at, self.nodes[usize::from(at)].life));
        self.nodes.iter().any(|node| node.leader == me && node.fill.phase() == Phase::Following)
    }

    pub(super) fn is_fetched_at_most(&self, times: u8) -> bool {
        self.fetched.iter().all(|fetched| *fetched <= times)
    }
}
