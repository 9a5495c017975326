//! Tracks whether an upstream is available, judging by how requests ended, and decides which requests may be sent.
//!
//! It combines two of the domain's breakers. One is for all requests: it opens when the upstream is away, and when it
//! names a time until which it wants no requests. The other is only for requests that the upstream counts towards its
//! limit: it opens when there were too many of them and no time was named, as with Docker Hub. Uncounted requests then
//! continue, so tags are confirmed and blobs fetched.

use std::time::Duration;

use entrepot_domain::breaker::{Breaker, BreakerSettings, BreakerState, Ending, Permit, Rejected, Trip};
use entrepot_domain::upstream::{Counting, Endpoint};
use entrepot_domain::{ResourceId, Upstream};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::error::{Error, Login, Refuser};
use crate::limits::Limits;

/// How many requests in a row, each with its retries, must find the upstream away.
const FAILURES: u32 = 3;
/// If a throttling upstream names no time, the first pause is this fraction of the pause for one that is away.
const FIRST_GUESS: u32 = 5;
const LONGEST_GUESS: Duration = Duration::from_secs(60);

/// Whether the upstream counts a request towards its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Counted,
    Free,
}

/// The state of one endpoint of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub state: State,
    /// Its last failure, unless it has answered since.
    pub trouble: Option<String>,
}

/// Whether an endpoint can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers, as far as we know.
    Healthy,
    /// It asked for fewer requests.
    Throttled {
        /// How long it gets none; zero while a probe is under way.
        left: Duration,
        /// Whether this applies to all requests, or only to counted ones.
        everything: bool,
    },
    Away {
        /// How long no request is sent; zero while a probe is under way.
        left: Duration,
    },
    /// It rejects the upstream's credential.
    CredentialRefused,
}

/// Tracks one endpoint.
pub(crate) struct Circuit {
    upstream: ResourceId,
    endpoint: Endpoint,
    counting: Counting,
    known: Mutex<Known>,
}

struct Known {
    all: Breaker,
    counted: Breaker,
    /// The error that opened the breakers.
    error: Option<Error>,
    /// The error with which the credential was rejected.
    refused: Option<Error>,
}

/// The permit to send one request.
pub(crate) struct RequestPermit<'c> {
    circuit: &'c Circuit,
    permit: Permit,
    /// The permit of the breaker for counted requests.
    counted: Option<Permit>,
    has_ended: bool,
}

impl Circuit {
    pub(crate) fn new(limits: &Limits, upstream: &Upstream) -> Self {
        let (rest, throttled) = (limits.probe, limits.probe / FIRST_GUESS);
        let settings = BreakerSettings { failures: FAILURES, rest, throttled, most: limits.pause };
        let counted = BreakerSettings { most: limits.pause.min(LONGEST_GUESS), ..settings };
        let known = Known { all: Breaker::new(settings), counted: Breaker::new(counted), error: None, refused: None };
        Self {
            upstream: upstream.id.clone(),
            endpoint: upstream.endpoint.clone(),
            counting: upstream.kind.profile().counting,
            known: Mutex::new(known),
        }
    }

    /// Asks to send a request now.
    ///
    /// # Errors
    /// The recent failure if the upstream is away, or that it wants no requests yet.
    pub(crate) fn enter(&self, weight: Weight) -> Result<RequestPermit<'_>, Error> {
        let (mut known, now) = (self.lock(), Instant::now());
        let permit = known.all.enter(now.into_std()).map_err(|rejected| known.refusal(rejected, now))?;
        let counted = match weight {
            Weight::Free => None,
            Weight::Counted => match known.counted.enter(now.into_std()) {
                Ok(counted) => Some(counted),
                Err(rejected) => {
                    known.all.finish(permit, Ending::Unknown, now.into_std());
                    return Err(known.refusal(rejected, now));
                }
            },
        };
        Ok(RequestPermit { circuit: self, permit, counted, has_ended: false })
    }

    /// Checks again that a request may be sent: the upstream may have asked for a pause since the permit was given.
    pub(crate) fn check(&self, weight: Weight) -> Result<(), Error> {
        let (known, now) = (self.lock(), Instant::now());
        let counted = (weight == Weight::Counted).then_some(&known.counted);
        for breaker in [Some(&known.all), counted].into_iter().flatten() {
            if let BreakerState::Open { why: Trip::Throttled, until } = breaker.state(now.into_std()) {
                return Err(known.refusal(Rejected { why: Trip::Throttled, until }, now));
            }
        }
        Ok(())
    }

    /// The state of the endpoint.
    pub(crate) fn health(&self) -> Health {
        let (known, now) = (self.lock(), Instant::now().into_std());
        let open_state = |state, everything| match state {
            BreakerState::Closed => None,
            BreakerState::Open { why, until } => Some((why, until.saturating_duration_since(now), everything)),
            BreakerState::HalfOpen { why } => Some((why, Duration::ZERO, everything)),
        };
        let is_all = self.counting == Counting::All;
        let open = open_state(known.all.state(now), true).or_else(|| open_state(known.counted.state(now), is_all));
        match (open, &known.refused) {
            (Some((Trip::Away, left, _)), _) => Health { state: State::Away { left }, trouble: known.trouble() },
            (Some((Trip::Throttled, left, everything)), _) => {
                Health { state: State::Throttled { left, everything }, trouble: known.trouble() }
            }
            (None, Some(refused)) => Health { state: State::CredentialRefused, trouble: Some(refused.to_string()) },
            (None, None) => Health { state: State::Healthy, trouble: known.trouble() },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

impl Known {
    fn refusal(&self, rejected: Rejected, now: Instant) -> Error {
        let left = rejected.until.saturating_duration_since(now.into_std());
        match (rejected.why, &self.error) {
            (Trip::Throttled, _) => Error::Throttled { retry_after: Some(left) },
            (Trip::Away, Some(error @ Error::Away { .. })) => error.clone(),
            (Trip::Away, _) => Error::timed_out(),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.error.as_ref().map(ToString::to_string)
    }
}

impl RequestPermit<'_> {
    /// Whether this request probes if the upstream is back.
    pub(crate) fn is_probe(&self) -> bool {
        self.permit == Permit::Probe || self.counted == Some(Permit::Probe)
    }

    /// Records how the request ended.
    pub(crate) fn finish<T>(mut self, answer: &Result<T, Error>) {
        self.has_ended = true;
        let (mut known, now) = (self.circuit.lock(), Instant::now().into_std());
        let was = (known.all.state(now), known.counted.state(now));
        let ending = ending(answer);
        // If no time is named, the answer is about counted requests.
        let (all, counted) = match (ending, self.counted) {
            (Ending::Throttled { retry_after: None }, Some(_)) => (Ending::Answered, ending),
            (Ending::Answered | Ending::Unknown | Ending::Away | Ending::Throttled { .. }, _) => {
                let counted = if ending == Ending::Answered { ending } else { Ending::Unknown };
                (ending, counted)
            }
        };
        known.all.finish(self.permit, all, now);
        if let Some(permit) = self.counted {
            known.counted.finish(permit, counted, now);
        }
        let is = (known.all.state(now), known.counted.state(now));
        match answer {
            Err(error) if error.may_retry() => known.error = Some(error.clone()),
            Ok(_) | Err(_) if ending == Ending::Answered && is_closed(is) => known.error = None,
            Ok(_) | Err(_) => {}
        }
        match answer {
            Ok(_) => known.refused = None,
            Err(error) if is_refused_credential(error) => known.refused = Some(error.clone()),
            Err(_) => {}
        }
        drop(known);
        self.tell(was, is, answer.as_ref().err());
    }

    /// Logs what has changed.
    fn tell(&self, was: (BreakerState, BreakerState), is: (BreakerState, BreakerState), error: Option<&Error>) {
        let Circuit { upstream, endpoint, .. } = self.circuit;
        match (is_closed(was), is_closed(is), error) {
            (true, false, Some(error)) => tracing::warn!(
                upstream.id = %upstream, upstream.endpoint = %endpoint, error = %error,
                "endpoint `{endpoint}` of upstream `{upstream}` is left alone for a while, and then tried by one request at a \
                 time: {error}"
            ),
            (false, true, _) => tracing::info!(
                upstream.id = %upstream, upstream.endpoint = %endpoint,
                "endpoint `{endpoint}` of upstream `{upstream}` answers again"
            ),
            _ => {}
        }
    }
}

impl Drop for RequestPermit<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (mut known, now) = (self.circuit.lock(), Instant::now().into_std());
        known.all.finish(self.permit, Ending::Unknown, now);
        if let Some(permit) = self.counted {
            known.counted.finish(permit, Ending::Unknown, now);
        }
    }
}

fn is_closed(states: (BreakerState, BreakerState)) -> bool {
    states == (BreakerState::Closed, BreakerState::Closed)
}

/// What the end of a request says about whether the upstream is available.
fn ending<T>(answer: &Result<T, Error>) -> Ending {
    match answer {
        Err(Error::Away { .. }) => Ending::Away,
        Err(Error::Throttled { retry_after }) => Ending::Throttled { retry_after: *retry_after },
        // No request was sent.
        Err(Error::AddressRefused { .. } | Error::RealmRefused { .. } | Error::OverBudget { .. }) => Ending::Unknown,
        Ok(_)
        | Err(
            Error::NotFound
            | Error::Denied { .. }
            | Error::Loop
            | Error::WrongDigest
            | Error::TooLarge { .. }
            | Error::BadAnswer { .. },
        ) => Ending::Answered,
    }
}

/// A registry may refuse the credential for one repository only; a token server, or a status of 401, rejects it as
/// such.
fn is_refused_credential(error: &Error) -> bool {
    matches!(
        error,
        Error::Denied { login: Login::Credential, by: Refuser::TokenServer, .. }
            | Error::Denied { login: Login::Credential, status: 401, .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_domain::UpstreamKind;
    use entrepot_domain::upstream::PlainHttp;

    fn circuit() -> Circuit {
        let upstream = Upstream {
            uid: uuid::Uuid::nil(),
            id: "hub".parse().unwrap(),
            kind: UpstreamKind::DockerHub,
            endpoint: Endpoint::parse("https://hub.example", PlainHttp::Refused).unwrap(),
            allow_private_addresses: false,
            allow_hosts: Vec::new(),
            ca_certificates: String::new(),
            credential: None,
            budget: None,
            fallback_endpoints: Vec::new(),
            revision: 1,
        };
        Circuit::new(&Limits::default(), &upstream)
    }

    fn ask(circuit: &Circuit, weight: Weight, answer: Result<(), Error>) -> Option<()> {
        circuit.enter(weight).ok()?.finish(&answer);
        Some(())
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_is_away_is_tried_by_one_at_a_time() {
        let (circuit, limits) = (circuit(), Limits::default());
        for _ in 0..FAILURES {
            assert!(ask(&circuit, Weight::Counted, Err(Error::timed_out())).is_some());
        }
        assert!(matches!(circuit.enter(Weight::Free), Err(Error::Away { .. })));
        assert_eq!(circuit.health().state, State::Away { left: limits.probe });
        tokio::time::advance(limits.probe).await;
        let probe = circuit.enter(Weight::Free).unwrap();
        assert!(circuit.enter(Weight::Free).is_err(), "one is enough");
        // An abandoned probe says nothing.
        drop(probe);
        assert!(ask(&circuit, Weight::Counted, Err(Error::NotFound)).is_some(), "which is an answer");
        assert_eq!(circuit.health(), Health { state: State::Healthy, trouble: None });
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_without_a_time_holds_back_what_counts_and_one_with_a_time_everything() {
        let circuit = circuit();
        assert!(ask(&circuit, Weight::Counted, Err(Error::Throttled { retry_after: None })).is_some());
        assert!(circuit.enter(Weight::Counted).is_err());
        assert!(ask(&circuit, Weight::Free, Ok(())).is_some());
        assert!(circuit.enter(Weight::Counted).is_err(), "an answer to what does not count says nothing");
        let left = Limits::default().probe / FIRST_GUESS;
        assert_eq!(circuit.health().state, State::Throttled { left, everything: false });
        assert!(circuit.health().trouble.is_some_and(|trouble| trouble.contains("429")));
        tokio::time::advance(left).await;
        assert!(ask(&circuit, Weight::Counted, Ok(())).is_some());

        let left = Duration::from_secs(1800);
        assert!(ask(&circuit, Weight::Free, Err(Error::Throttled { retry_after: Some(left) })).is_some());
        assert_eq!(circuit.health().state, State::Throttled { left, everything: true });
        tokio::time::advance(left - Duration::from_secs(1)).await;
        for weight in [Weight::Counted, Weight::Free] {
            let Err(Error::Throttled { retry_after }) = circuit.enter(weight) else { panic!("before its time") };
            assert_eq!(retry_after, Some(Duration::from_secs(1)));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(circuit.enter(Weight::Free).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_that_is_refused_is_known_until_something_is_answered() {
        let circuit = circuit();
        let denied =
            |status, by| Err(Error::Denied { host: "auth.example".into(), status, login: Login::Credential, by });
        assert!(ask(&circuit, Weight::Free, denied(403, Refuser::Registry)).is_some());
        assert_eq!(circuit.health().state, State::Healthy, "that may be one repository");
        assert!(ask(&circuit, Weight::Free, denied(403, Refuser::TokenServer)).is_some());
        let health = circuit.health();
        assert_eq!(health.state, State::CredentialRefused);
        assert!(health.trouble.unwrap().contains("`auth.example`"));
        assert!(ask(&circuit, Weight::Free, Ok(())).is_some());
        assert_eq!(circuit.health().state, State::Healthy);
    }
}
