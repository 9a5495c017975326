//! The walk of a request to an upstream: out, along redirects, through logins, and again where that may help.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use chrono::DateTime;
use entrepot_domain::budget::Told;
use entrepot_domain::upstream::{Counting, RequestKind};
use entrepot_domain::{Priority, Upstream};
use futures_util::FutureExt as _;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};
use url::{Origin, Url};

use crate::account::Account;
use crate::body;
use crate::circuit::{Circuit, Weight};
use crate::error::{BuildError, Error, Login, Refuser, Trouble};
use crate::limits::Limits;
use crate::login::{Logins, Pass, Place};
use crate::metrics::RequestMetrics;
use crate::transport::{Transport, place};

/// What is asked of an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) kind: RequestKind,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// A redirect that is not followed: its answer counts.
    pub(crate) stops_at: Option<StatusCode>,
}

impl Ask {
    pub(crate) fn new(kind: RequestKind, method: Method, url: Url) -> Self {
        // The digest is that of the bytes as they are kept, so they must not be encoded on the way.
        let headers = [(ACCEPT_ENCODING, HeaderValue::from_static("identity"))].into_iter().collect();
        Self { kind, method, url, headers, stops_at: None }
    }
}

/// What is needed to send requests to one upstream.
pub(crate) struct Requests {
    pub(crate) transport: Arc<Transport>,
    pub(crate) logins: Logins,
    pub(crate) limits: Limits,
    pub(crate) circuit: Circuit,
    counting: Counting,
    account: Arc<dyn Account>,
    /// Scheme, host and port of the endpoint: only there is anything counted.
    origin: Origin,
}

impl Requests {
    pub(crate) fn new(
        upstream: &Upstream,
        limits: Limits,
        metrics: &RequestMetrics,
        account: Arc<dyn Account>,
    ) -> Result<Self, BuildError> {
        let transport = Arc::new(Transport::new(upstream, &limits, metrics.clone())?);
        let logins = Logins::new(upstream, transport.clone(), limits);
        let (counting, origin) = (upstream.kind.profile().counting, upstream.endpoint.url().origin());
        let circuit = Circuit::new(&limits, upstream);
        Ok(Self { logins, transport, limits, circuit, counting, account, origin })
    }

    /// Runs `attempt` to ask for `kind` until it succeeds, fails for good, or was retried often enough.
    ///
    /// An upstream that was away a moment ago is not asked, nor one that wants no requests yet, nor one whose budget has
    /// none left for `priority`.
    ///
    /// All attempts share one deadline for the heads of their answers; bodies have limits of their own.
    pub(crate) async fn patiently<T, F>(
        &self,
        priority: Priority,
        kind: RequestKind,
        attempt: impl Fn(Instant) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let leave = self.circuit.enter(self.weight(kind))?;
        if self.counting.counts(kind) {
            self.account.admit(priority).await.map_err(|retry_after| Error::OverBudget { retry_after })?;
        }
        let head_until = Instant::now() + self.limits.head;
        let waits = ExponentialBuilder::default()
            .with_min_delay(self.limits.retry_wait)
            // Who finds out whether the upstream is back asks once.
            .with_max_times(if leave.is_probe() { 0 } else { self.limits.retries })
            .with_jitter();
        let notify = |error: &Error, _| tracing::debug!(error = %error, "asking an upstream again");
        let answer = (|| attempt(head_until)).retry(waits).when(Error::is_passing).notify(notify).await;
        leave.ended(&answer);
        answer
    }

    /// How much a request weighs at this upstream.
    fn weight(&self, kind: RequestKind) -> Weight {
        if self.counting.counts(kind) { Weight::Counted } else { Weight::Free }
    }

    /// Asks once, and waits for the head of the final answer. An upstream that wants no requests yet, as it has said to
    /// another one meanwhile, gets none.
    ///
    /// The answer's status is for the caller to judge, but for those that mean the same for every request: a refused
    /// login, too many requests, and an upstream that cannot answer.
    pub(crate) async fn ask(&self, ask: &Ask, head_until: Instant) -> Result<Response, Error> {
        self.circuit.check(self.weight(ask.kind))?;
        // Boxed, since futures that are made of it are too deep for the compiler.
        timeout_at(head_until, self.follow(ask).boxed()).await.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    /// Asks without what is remembered, and says as whom a login was needed; `None` if none was.
    pub(crate) async fn try_login(&self, ask: &Ask) -> Result<Option<Login>, Error> {
        let walk = async {
            let (response, login) = self.log_in(ask, &ask.url).await?;
            self.judge(response).map(|_| login)
        };
        timeout(self.limits.head, walk).await.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    async fn follow(&self, ask: &Ask) -> Result<Response, Error> {
        let mut url = ask.url.clone();
        for _ in 0..=self.limits.redirects {
            let response = self.enter(ask, &url).await?;
            if ask.stops_at == Some(response.status()) {
                return Ok(response);
            }
            match next_hop(&url, &response)? {
                None => return self.judge(response),
                Some(next) => {
                    body::discard(response).await;
                    url = next;
                }
            }
        }
        Err(Error::bad(format!("redirects more than {} times", self.limits.redirects)))
    }

    /// Sends one request, with the login that worked before. If it is refused now, it is dropped and the host is
    /// asked without one, since it may want another kind by now.
    async fn enter(&self, ask: &Ask, url: &Url) -> Result<Response, Error> {
        let place = Place::of(url);
        if let Some(pass) = self.logins.remembered(&place).await? {
            let response = self.send(ask, url, Some(&pass)).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            self.logins.forget(&place, &pass).await;
            body::discard(response).await;
        }
        Ok(self.log_in(ask, url).await?.0)
    }

    /// Sends one request as nobody, and again with a login if the host wants one, and then no more.
    async fn log_in(&self, ask: &Ask, url: &Url) -> Result<(Response, Option<Login>), Error> {
        let place = Place::of(url);
        let response = self.send(ask, url, None).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok((response, None));
        }
        let pass = self.logins.answer(&place, response.headers()).await?;
        let pass = pass.ok_or_else(|| self.denied(&place, url, 401))?;
        body::discard(response).await;
        let response = self.send(ask, url, Some(&pass)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.logins.forget(&place, &pass).await;
            return Err(self.denied(&place, url, 401));
        }
        Ok((response, Some(self.logins.login(&place))))
    }

    async fn send(&self, ask: &Ask, url: &Url, pass: Option<&Pass>) -> Result<Response, Error> {
        let mut request = Request::new(ask.method.clone(), url.clone());
        *request.headers_mut() = ask.headers.clone();
        if let Some(pass) = pass {
            request.headers_mut().insert(AUTHORIZATION, pass.header());
        }
        let response = self.transport.send(request).await?;
        if url.origin() == self.origin
            && let Some(told) = told(&response)
        {
            self.account.told(told);
        }
        Ok(response)
    }

    fn denied(&self, at: &Place, url: &Url, status: u16) -> Error {
        let host = place(url).map(|(host, _)| host).unwrap_or_default();
        Error::Denied { host, status, login: self.logins.login(at), by: Refuser::Registry }
    }

    fn judge(&self, response: Response) -> Result<Response, Error> {
        match response.status().as_u16() {
            429 => Err(throttled(&response, &self.limits)),
            // Says that the method is not known, which is for good.
            501 => Ok(response),
            status @ (408 | 500..) => Err(Error::Away { status: Some(status), trouble: Trouble::Status, source: None }),
            _ => Ok(response),
        }
    }

    /// The error that an answer's status means, for an answer that is not what was asked for.
    pub(crate) fn refusal(&self, response: &Response) -> Error {
        match response.status().as_u16() {
            404 | 410 => Error::NotFound,
            status @ (401 | 403) => self.denied(&Place::of(response.url()), response.url(), status),
            status => Error::bad(format!("answers with status {status}")),
        }
    }
}

/// What an answer says of the limit that the upstream sets.
fn told(response: &Response) -> Option<Told> {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    Told::parse(text("ratelimit-limit")?, text("ratelimit-remaining")?)
}

/// The error for an upstream that wants fewer requests. A date counts from the upstream's own clock.
pub(crate) fn throttled(response: &Response, limits: &Limits) -> Error {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let retry_after = text(RETRY_AFTER).and_then(|value| retry_after(value, text(DATE)));
    Error::Throttled { retry_after: retry_after.map(|wait| wait.min(limits.retry_after)) }
}

fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let [until, now] = [value, date?].map(|text| DateTime::parse_from_rfc2822(text.trim()).ok());
    Some((until? - now?).to_std().unwrap_or_default())
}

/// Where a redirect leads; `None` if the answer is none.
fn next_hop(url: &Url, response: &Response) -> Result<Option<Url>, Error> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let next = location.and_then(|location| url.join(location).ok());
    let next = next.ok_or_else(|| Error::bad("redirects to nowhere"))?;
    if url.scheme() == "https" && next.scheme() == "http" {
        return Err(Error::bad("redirects from `https` to `http`"));
    }
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_upstreams_clock() {
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(retry_after("60", None), seconds(60));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:29:30 GMT", Some(date)), seconds(90));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:00:00 GMT", Some(date)), seconds(0));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:29:30 GMT", None), None);
        for text in ["", "soon", "-1", "99999999999999999999"] {
            assert_eq!(retry_after(text, Some(date)), None, "{text}");
        }
    }
}
