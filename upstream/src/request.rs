//! The walk of a request to an upstream: it is sent, follows redirects, logs in, and is repeated where that may help.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use chrono::DateTime;
use entrepot_domain::budget::ReportedLimit;
use entrepot_domain::upstream::{Counting, RequestKind};
use entrepot_domain::{Priority, Upstream};
use futures_util::FutureExt as _;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};
use url::{Origin, Url};
use uuid::Uuid;

use crate::account::Account;
use crate::body;
use crate::circuit::{Circuit, Weight};
use crate::error::{BuildError, Error, Login, Refuser, Trouble};
use crate::limits::Limits;
use crate::link::address;
use crate::login::{Logins, Pass, Place};
use crate::metrics::RequestMetrics;
use crate::transport::{Transport, place};

/// A request to an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) kind: RequestKind,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// A redirect that is not followed; its answer is returned.
    pub(crate) stops_at: Option<StatusCode>,
}

impl Ask {
    pub(crate) fn new(kind: RequestKind, method: Method, url: Url) -> Self {
        // The digest is that of the stored bytes, so they must not be encoded on the way.
        let headers = [(ACCEPT_ENCODING, HeaderValue::from_static("identity"))].into_iter().collect();
        Self { kind, method, url, headers, stops_at: None }
    }
}

/// Everything needed to send requests to one upstream.
pub(crate) struct Requests {
    pub(crate) transport: Arc<Transport>,
    pub(crate) logins: Logins,
    pub(crate) limits: Limits,
    pub(crate) circuit: Circuit,
    counting: Counting,
    account: Arc<dyn Account>,
    /// Scheme, host and port of the endpoint. Only requests to it are counted.
    origin: Origin,
}

impl Requests {
    pub(crate) fn new(
        upstream: &Upstream,
        registry: Uuid,
        limits: Limits,
        metrics: &RequestMetrics,
        account: Arc<dyn Account>,
    ) -> Result<Self, BuildError> {
        let transport = Arc::new(Transport::new(upstream, registry, &limits, metrics.clone())?);
        let logins = Logins::new(upstream, transport.clone(), limits);
        let (counting, origin) = (upstream.kind.profile().counting, upstream.endpoint.url().origin());
        let circuit = Circuit::new(&limits, upstream);
        Ok(Self { logins, transport, limits, circuit, counting, account, origin })
    }

    /// Runs `attempt` to ask for `kind` until it succeeds, fails for good, or was repeated often enough.
    ///
    /// No request is sent to an upstream that was away a moment ago, that asked for a pause, or whose budget has
    /// nothing left for `priority`.
    ///
    /// All attempts share one deadline for the heads of their answers; bodies have limits of their own.
    pub(crate) async fn with_retries<T, F>(
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
            // A probe is sent only once.
            .with_max_times(if leave.is_probe() { 0 } else { self.limits.retries })
            .with_jitter();
        let notify = |error: &Error, _| tracing::debug!(error = %error, "asking an upstream again");
        let answer = (|| attempt(head_until)).retry(waits).when(Error::is_passing).notify(notify).await;
        leave.finish(&answer);
        answer
    }

    /// Whether this upstream counts such a request.
    fn weight(&self, kind: RequestKind) -> Weight {
        if self.counting.counts(kind) { Weight::Counted } else { Weight::Free }
    }

    /// Sends the request once, and waits for the head of the final answer. If the upstream has asked for a pause
    /// meanwhile, no request is sent.
    ///
    /// The caller judges the answer's status, except for those that mean the same for every request: a refused login,
    /// too many requests, and an upstream that cannot answer.
    pub(crate) async fn ask(&self, ask: &Ask, head_until: Instant) -> Result<Response, Error> {
        self.circuit.check(self.weight(ask.kind))?;
        // Boxed, since futures built from it would be nested too deeply for the compiler.
        timeout_at(head_until, self.follow(ask).boxed()).await.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    /// Asks without any remembered login. Returns the login that was needed; `None` if none was.
    pub(crate) async fn try_login(&self, ask: &Ask) -> Result<Option<Login>, Error> {
        let walk = async {
            let (response, login) = self.log_in(ask, &ask.url).await?;
            self.judge(response).map(|_| login)
        };
        timeout(self.limits.head, walk).await.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    /// Asks anonymously, and returns the answer before any login.
    pub(crate) async fn look(&self, ask: &Ask) -> Result<Response, Error> {
        let walk = async {
            let mut url = ask.url.clone();
            for _ in 0..=self.limits.redirects {
                let response = self.send(ask, &url, None).await?;
                match next_hop(&url, &response)? {
                    None => return self.judge(response),
                    Some(next) => url = next,
                }
            }
            Err(self.too_many_redirects())
        };
        timeout(self.limits.head, walk).await.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    fn too_many_redirects(&self) -> Error {
        Error::bad(format!("redirects more than {} times", self.limits.redirects))
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
        Err(self.too_many_redirects())
    }

    /// Sends one request with the login that worked before. If it is refused, it is dropped and the request is sent
    /// without one, since the host may want another kind by now.
    async fn enter(&self, ask: &Ask, url: &Url) -> Result<Response, Error> {
        let place = Place::of(url);
        if let Some(pass) = self.logins.cached_pass(&place).await? {
            let response = self.send(ask, url, Some(&pass)).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            self.logins.forget(&place, &pass).await;
            body::discard(response).await;
        }
        Ok(self.log_in(ask, url).await?.0)
    }

    /// Sends one request anonymously, and once more with a login if the host wants one.
    async fn log_in(&self, ask: &Ask, url: &Url) -> Result<(Response, Option<Login>), Error> {
        let place = Place::of(url);
        let response = self.send(ask, url, None).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok((response, None));
        }
        let pass = self.logins.answer(&place, response.headers()).await?;
        let pass = pass.ok_or_else(|| self.denied_error(&place, url, 401))?;
        body::discard(response).await;
        let response = self.send(ask, url, Some(&pass)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.logins.forget(&place, &pass).await;
            return Err(self.denied_error(&place, url, 401));
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
            && let Some(reported) = reported_limit(&response)
        {
            self.account.observe(reported);
        }
        Ok(response)
    }

    fn denied_error(&self, at: &Place, url: &Url, status: u16) -> Error {
        let host = place(url).map(|(host, _)| host).unwrap_or_default();
        Error::Denied { host, status, login: self.logins.login(at), by: Refuser::Registry }
    }

    fn judge(&self, response: Response) -> Result<Response, Error> {
        match response.status().as_u16() {
            429 => Err(throttled_error(&response, &self.limits)),
            // The method is not supported, which will not change.
            501 => Ok(response),
            508 => Err(Error::Loop),
            status @ (408 | 500..) => Err(Error::Away { status: Some(status), trouble: Trouble::Status, source: None }),
            _ => Ok(response),
        }
    }

    /// The error for an unexpected answer, by its status.
    pub(crate) fn refusal(&self, response: &Response) -> Error {
        match response.status().as_u16() {
            404 | 410 => Error::NotFound,
            status @ (401 | 403) => self.denied_error(&Place::of(response.url()), response.url(), status),
            status => Error::bad(format!("answers with status {status}")),
        }
    }
}

/// The limit that the upstream reports in an answer.
fn reported_limit(response: &Response) -> Option<ReportedLimit> {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    ReportedLimit::parse(text("ratelimit-limit")?, text("ratelimit-remaining")?)
}

/// The error for a throttling upstream. A date is compared with the upstream's own clock.
pub(crate) fn throttled_error(response: &Response, limits: &Limits) -> Error {
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

/// The target of a redirect; `None` if the answer is not a redirect.
pub(crate) fn next_hop(url: &Url, response: &Response) -> Result<Option<Url>, Error> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).map(|location| address(location.as_bytes()));
    let next = location.and_then(|location| url.join(&location).ok());
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
