//! What is known of an upstream's being there, from how requests to it have ended, and who may ask it now.
//!
//! It is a pair of the domain's breakers. One is for all requests: it opens when the upstream is away, and when it says
//! until when it wants none. The other is for those that the upstream counts: it opens when there were too many of them,
//! and no time was said, as Docker Hub does. Then what does not count goes on: tags are confirmed, and blobs fetched.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use entrepot_domain::breaker::{Breaker, Closed, Ending, Passage, Standing, Terms, Trip};
use entrepot_domain::upstream::{Counting, Endpoint};
use entrepot_domain::{ResourceId, Upstream};
use tokio::time::Instant;

use crate::error::{Error, Login, Refuser};
use crate::limits::Limits;

/// So many requests in a row, each with its retries, must have found the upstream away.
const FAILURES: u32 = 3;
/// The first pause of an upstream that does not say how long it should be, as a part of that of one that is away.
const FIRST_GUESS: u32 = 5;
/// The longest one.
const LONGEST_GUESS: Duration = Duration::from_secs(60);

/// Whether the upstream counts a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Counted,
    Free,
}

/// What is known of one endpoint of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it may be asked.
    pub state: State,
    /// What it failed with last, unless it has answered since.
    pub trouble: Option<String>,
}

/// Whether an endpoint may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers, as far as is known.
    Healthy,
    /// It wants fewer requests.
    Throttled {
        /// For how long it gets none; zero while one request finds out.
        left: Duration,
        /// Whether that goes for all requests, or for those that it counts.
        everything: bool,
    },
    /// It is away.
    Away {
        /// For how long nobody tries; zero while one request finds out.
        left: Duration,
    },
    /// It does not take the upstream's credential.
    CredentialRefused,
}

/// What is known of an endpoint's being there.
pub(crate) struct Circuit {
    upstream: ResourceId,
    endpoint: Endpoint,
    counting: Counting,
    known: Mutex<Known>,
}

struct Known {
    all: Breaker,
    counted: Breaker,
    /// What opened them.
    error: Option<Error>,
    /// That the credential was refused.
    refused: Option<Error>,
}

/// The leave to ask.
pub(crate) struct Leave<'c> {
    circuit: &'c Circuit,
    passage: Passage,
    /// Its place among those that count.
    counted: Option<Passage>,
    has_ended: bool,
}

impl Circuit {
    pub(crate) fn new(limits: &Limits, upstream: &Upstream) -> Self {
        let (rest, throttled) = (limits.probe, limits.probe / FIRST_GUESS);
        let terms = Terms { failures: FAILURES, rest, throttled, most: limits.pause };
        let counted = Terms { most: limits.pause.min(LONGEST_GUESS), ..terms };
        let known = Known { all: Breaker::new(terms), counted: Breaker::new(counted), error: None, refused: None };
        Self {
            upstream: upstream.id.clone(),
            endpoint: upstream.endpoint.clone(),
            counting: upstream.kind.profile().counting,
            known: Mutex::new(known),
        }
    }

    /// Leave to ask the upstream now.
    ///
    /// # Errors
    /// What it was away with a moment ago, if it was, or that it wants no requests yet.
    pub(crate) fn enter(&self, weight: Weight) -> Result<Leave<'_>, Error> {
        let (mut known, now) = (self.lock(), Instant::now());
        let passage = known.all.enter(now.into_std()).map_err(|closed| known.refusal(closed, now))?;
        let counted = match weight {
            Weight::Free => None,
            Weight::Counted => match known.counted.enter(now.into_std()) {
                Ok(counted) => Some(counted),
                Err(closed) => {
                    known.all.ended(passage, Ending::Unknown, now.into_std());
                    return Err(known.refusal(closed, now));
                }
            },
        };
        Ok(Leave { circuit: self, passage, counted, has_ended: false })
    }

    /// Refuses what has leave, but must wait since: the upstream wants no requests yet.
    pub(crate) fn check(&self, weight: Weight) -> Result<(), Error> {
        let (known, now) = (self.lock(), Instant::now());
        let counted = (weight == Weight::Counted).then_some(&known.counted);
        for breaker in [Some(&known.all), counted].into_iter().flatten() {
            if let Standing::Open { why: Trip::Throttled, until } = breaker.standing(now.into_std()) {
                return Err(known.refusal(Closed { why: Trip::Throttled, until }, now));
            }
        }
        Ok(())
    }

    /// How the upstream is.
    pub(crate) fn health(&self) -> Health {
        let (known, now) = (self.lock(), Instant::now().into_std());
        let state = |standing, everything| match standing {
            Standing::Closed => None,
            Standing::Open { why, until } => Some((why, until.saturating_duration_since(now), everything)),
            Standing::HalfOpen { why } => Some((why, Duration::ZERO, everything)),
        };
        let is_all = self.counting == Counting::All;
        let open = state(known.all.standing(now), true).or_else(|| state(known.counted.standing(now), is_all));
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
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn refusal(&self, closed: Closed, now: Instant) -> Error {
        let left = closed.until.saturating_duration_since(now.into_std());
        match (closed.why, &self.error) {
            (Trip::Throttled, _) => Error::Throttled { retry_after: Some(left) },
            (Trip::Away, Some(error @ Error::Away { .. })) => error.clone(),
            (Trip::Away, _) => Error::timed_out(),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.error.as_ref().map(ToString::to_string)
    }
}

impl Leave<'_> {
    /// Whether this is the one request that finds out whether the upstream is back.
    pub(crate) fn is_probe(&self) -> bool {
        self.passage == Passage::Probe || self.counted == Some(Passage::Probe)
    }

    /// Takes in how the request has ended.
    pub(crate) fn ended<T>(mut self, answer: &Result<T, Error>) {
        self.has_ended = true;
        let (mut known, now) = (self.circuit.lock(), Instant::now().into_std());
        let was = (known.all.standing(now), known.counted.standing(now));
        let ending = ending(answer);
        // Who says no time means what it counts.
        let (all, counted) = match (ending, self.counted) {
            (Ending::Throttled { retry_after: None }, Some(_)) => (Ending::Answered, ending),
            (Ending::Answered | Ending::Unknown | Ending::Away | Ending::Throttled { .. }, _) => {
                let counted = if ending == Ending::Answered { ending } else { Ending::Unknown };
                (ending, counted)
            }
        };
        known.all.ended(self.passage, all, now);
        if let Some(passage) = self.counted {
            known.counted.ended(passage, counted, now);
        }
        let is = (known.all.standing(now), known.counted.standing(now));
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

    /// Tells of what has changed.
    fn tell(&self, was: (Standing, Standing), is: (Standing, Standing), error: Option<&Error>) {
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

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (mut known, now) = (self.circuit.lock(), Instant::now().into_std());
        known.all.ended(self.passage, Ending::Unknown, now);
        if let Some(passage) = self.counted {
            known.counted.ended(passage, Ending::Unknown, now);
        }
    }
}

fn is_closed(standing: (Standing, Standing)) -> bool {
    standing == (Standing::Closed, Standing::Closed)
}

/// How a request has ended, as far as it says whether the upstream is there.
fn ending<T>(answer: &Result<T, Error>) -> Ending {
    match answer {
        Err(Error::Away { .. }) => Ending::Away,
        Err(Error::Throttled { retry_after }) => Ending::Throttled { retry_after: *retry_after },
        // It never came to a request.
        Err(Error::AddressRefused { .. } | Error::RealmRefused { .. } | Error::OverBudget { .. }) => Ending::Unknown,
        Ok(_)
        | Err(
            Error::NotFound
            | Error::Denied { .. }
            | Error::WrongDigest
            | Error::TooLarge { .. }
            | Error::BadAnswer { .. },
        ) => Ending::Answered,
    }
}

/// A registry may refuse the credential for one repository; a token server, or a status of 401, refuses it as such.
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
        circuit.enter(weight).ok()?.ended(&answer);
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
        // A probe that is given up says nothing.
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
