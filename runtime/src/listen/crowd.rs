//! The connections of a listener, and which one is closed first when there are too many.
//!
//! There is no limit per address, since a whole site may be behind one. When a certain share of the listener's
//! connections is in use, connections that have never sent a request are closed, the oldest first, except a few that
//! are brand-new; after these, the longest idle one of the address that has most. A connection with a request under way
//! is never closed.
//! longest idle one of the address that has most. Whoever is being answered stays.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The percentage of a listener's connections above which some are closed to make room.
const ROOMY: usize = 80;

/// How long a connection is brand-new, and how many of those are spared: one in this many of all that may be open.
const JUST_COME: (Duration, usize) = (Duration::from_secs(1), 8);

/// How many connections a listener accepts, and how long it keeps silent ones.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How many may be open at once; further ones wait to be accepted.
    pub connections: usize,
    /// Networks whose connections are never closed to make room, because each serves many clients.
    pub exempt: Vec<IpNet>,
    /// How long a connection may take until its first request; `None` if the server checks that itself.
    pub first_request: Option<Duration>,
}

impl Bounds {
    /// This many connections, from anywhere.
    pub fn new(connections: usize) -> Self {
        Self { connections, exempt: Vec::new(), first_request: None }
    }
}

/// The open connections of one listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    bounds: Arc<Bounds>,
    visits: Arc<Mutex<HashMap<u64, Visit>>>,
}

/// One connection as its listener sees it. Clones stand for the same connection.
#[derive(Clone, Debug)]
pub struct Visit {
    address: IpAddr,
    is_exempt: bool,
    began: Instant,
    state: Arc<Mutex<State>>,
    leaving: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// How many requests are under way.
    open: usize,
    /// When the last one ended; `None` before the first request.
    idle_since: Option<Instant>,
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub struct Asking(Visit);

/// A connection's place in its crowd, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    number: u64,
    pub(super) visit: Visit,
}

impl Visit {
    /// A connection without a listener.
    pub fn alone() -> Self {
        Self::new(Ipv4Addr::UNSPECIFIED.into(), false)
    }

    fn new(address: IpAddr, is_exempt: bool) -> Self {
        let (began, leaving) = (Instant::now(), CancellationToken::new());
        Self { address, is_exempt, began, state: Arc::default(), leaving }
    }

    /// Notes that a request has begun.
    pub fn ask(&self) -> Asking {
        let mut state = self.state.lock();
        state.open += 1;
        state.idle_since = Some(Instant::now());
        Asking(self.clone())
    }

    /// Cancelled when the connection should be closed.
    pub(super) fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Since when it has been idle; `Some(None)` if it has never sent a request, and `None` if it is not idle.
    fn idle(&self) -> Option<Option<Instant>> {
        let state = self.state.lock();
        (state.open == 0).then_some(state.idle_since)
    }

    fn has_asked(&self) -> bool {
        self.state.lock().idle_since.is_some()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.open -= 1;
        state.idle_since = Some(Instant::now());
    }
}

impl Crowd {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds: Arc::new(bounds), visits: Arc::default() }
    }

    /// Adds a connection from `address`, and closes others if there are too many.
    pub(super) fn enter(&self, number: u64, address: IpAddr) -> Place {
        let address = address.to_canonical();
        let visit = Visit::new(address, self.bounds.exempt.iter().any(|net| net.contains(&address)));
        self.visits.lock().insert(number, visit.clone());
        let roomy = self.bounds.connections * ROOMY / 100;
        self.close_down_to(roomy.max(1));
        Place { crowd: self.clone(), number, visit }
    }

    /// Closes one connection, if any may be closed, because there are no file descriptors left.
    pub(super) fn make_room(&self) {
        let staying = self.visits.lock().values().filter(|visit| !visit.leaving.is_cancelled()).count();
        self.close_down_to(staying.saturating_sub(1));
    }

    /// Closes the connections that have not sent a request in time.
    pub(super) fn close_silent(&self) {
        let Some(limit) = self.bounds.first_request else { return };
        let visits = self.visits.lock();
        let silent = visits.values().filter(|visit| !visit.has_asked() && visit.began.elapsed() >= limit);
        silent.for_each(|visit| visit.leaving.cancel());
    }

    fn close_down_to(&self, count: usize) {
        let visits = self.visits.lock();
        let mut staying: Vec<&Visit> = visits.values().filter(|visit| !visit.leaving.is_cancelled()).collect();
        while staying.len() > count {
            let Some(at) = next_to_go(&staying, self.bounds.connections) else { return };
            staying.swap_remove(at).leaving.cancel();
        }
    }
}

/// The connection to close first, given how many may be open; `None` if none may be closed.
fn next_to_go(visits: &[&Visit], connections: usize) -> Option<usize> {
    let closable = || visits.iter().enumerate().filter(|(_, visit)| !visit.is_exempt);
    let silent = || closable().filter(|(_, visit)| !visit.has_asked());
    let oldest = silent().min_by_key(|(_, visit)| visit.began);
    let (just_come, spared) = JUST_COME;
    let is_due = |visit: &Visit| visit.began.elapsed() >= just_come || silent().count() > (connections / spared).max(1);
    if let Some((at, _)) = oldest.filter(|(_, visit)| is_due(visit)) {
        return Some(at);
    }
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for visit in visits {
        *counts.entry(visit.address).or_default() += 1;
    }
    let idle = closable().filter_map(|(at, visit)| Some((at, visit.address, visit.idle()??)));
    let first = idle.min_by_key(|(_, address, since)| (usize::MAX - counts.get(address).unwrap_or(&0), *since));
    first.map(|(at, ..)| at).or(oldest.map(|(at, _)| at))
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.visits.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn stays(place: &Place) -> bool {
        !place.visit.leaving.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_silent_go_first_then_the_longest_idle_of_the_address_that_has_most() {
        let crowd = Crowd::new(Bounds { exempt: vec!["192.0.2.9/32".parse().unwrap()], ..Bounds::new(10) });
        let mut places = Vec::new();
        // Two of the proxy; one of a client that has been idle longest; five of another client, one of which is idle
        // just as shortly as the proxy's.
        for (number, last) in [9, 9, 1, 2, 2, 2, 2, 2].into_iter().enumerate() {
            places.push(crowd.enter(number as u64, address(last)));
            tokio::time::advance(Duration::from_secs(1)).await;
            if number > 0 {
                drop(places[number].visit.ask());
            }
        }
        let answered = places[3].visit.ask();
        assert!(places.iter().all(stays), "eight of ten are no crowd");

        let new = crowd.enter(8, address(3));
        assert!(stays(&new), "it has just come");
        assert!(!stays(&places[4]), "the longest idle of the address that has most");
        tokio::time::advance(Duration::from_millis(1)).await;
        let newer = crowd.enter(9, address(3));
        assert!(!stays(&new) && stays(&newer), "of many that have just come the oldest goes");
        tokio::time::advance(Duration::from_secs(1)).await;
        let newest = crowd.enter(10, address(3));
        assert!(!stays(&newer) && stays(&newest), "a silent one goes before all that have asked");
        drop(newest.visit.ask());
        crowd.make_room();
        assert!(!stays(&places[5]));
        assert!(stays(&places[2]), "whoever has one connection keeps it");
        assert!(stays(&places[3]), "it is being answered");
        assert!(stays(&places[0]) && stays(&places[1]), "proxies are exempt, also when they are silent");
        drop(answered);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_nothing_in_time_is_closed() {
        let crowd = Crowd::new(Bounds { first_request: Some(Duration::from_secs(10)), ..Bounds::new(10) });
        let (silent, asked) = (crowd.enter(1, address(1)), crowd.enter(2, address(1)));
        drop(asked.visit.ask());
        tokio::time::advance(Duration::from_secs(9)).await;
        crowd.close_silent();
        assert!(stays(&silent));
        tokio::time::advance(Duration::from_secs(2)).await;
        crowd.close_silent();
        assert!(!stays(&silent) && stays(&asked));
    }
}
