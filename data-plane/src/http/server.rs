//! The registry's HTTP server: it reads requests, gets answers for them, and logs them.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::DateTime;
use entrepot_domain::{Network, RepositoryName};
use entrepot_runtime::telemetry::shortened;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use ipnet::IpNet;
use tracing::{Instrument as _, Span, field, info, info_span};
use url::Url;
use uuid::Uuid;

use super::error;
use super::forwarded::Arrival;
use super::route::Route;
use crate::auth::challenge::Challenge;
use crate::auth::token::TokenRequest;
use crate::body::{self, Body};
use crate::config::limits;
use crate::connection::{Edge, Remote};
use crate::error::{PullError, RouteError};
use crate::inspect::{AnswerState, AnswerView, Answers, Remembered};
use crate::metrics::{Exchange, HttpMetrics, PullMetrics, method_name};
use crate::outcome::Outcome;
use crate::pull::{Node, hops};
use crate::target::Content;
use crate::trail::{self, Note, Noted, Trail};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The registry's HTTP server.
pub(crate) struct Server {
    pub(crate) node: Node,
    pub(crate) node_id: Arc<str>,
    pub(crate) external_url: Option<Url>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) pulls: PullMetrics,
    pub(crate) requests: HttpMetrics,
    pub(crate) answers: Answers,
}

impl Edge for Server {
    const NAME: &'static str = "connection";

    async fn answer(self: Arc<Self>, request: Request<Incoming>, remote: Remote) -> Response<Body> {
        let began = Instant::now();
        // It begins with the node's id, so that the node can be asked about it.
        let request_id = format!("{}-{}", self.node_id, Uuid::now_v7().simple());
        let (parts, incoming) = request.into_parts();
        let arrival = Arrival::new(&parts, remote, &self.trusted_proxies);
        self.node.control.suspension.ended().await;
        let route = Route::parse(&parts.method, parts.uri.path());
        let template = route.as_ref().ok().map(Route::template);
        let span = span(&parts, template, &request_id);

        let (begin_time, asked) = (self.node.auth.clock.now(), route.as_ref().ok().cloned());
        let answering = self.route(&parts, route, &arrival, incoming).instrument(span.clone());
        // Boxed, because it is large and would be moved around.
        let (mut response, trail) = Trail::of(Box::pin(answering)).await;
        if parts.method == Method::HEAD {
            *response.body_mut() = body::empty();
        }
        response.headers_mut().extend(HeaderValue::from_str(&request_id).map(|value| (REQUEST_ID, value)));
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        tell(&span, &parts, &arrival, &response, began);
        let noted = trail.noted();
        let view = AnswerView {
            request_id,
            begin_time,
            method: method_name(&parts.method).to_owned(),
            route: template.unwrap_or_default().to_owned(),
            client_address: arrival.client.to_string(),
            ..answer_view(&response, asked.as_ref(), &noted)
        };
        let remembered = self.answers.remember(view, noted.notes, began);
        let exchange = Exchange {
            metrics: self.requests.clone(),
            began,
            method: method_name(&parts.method),
            scheme: arrival.scheme,
            route: template,
            status: response.status().as_u16(),
            _span: span,
        };
        track_body(remembered, response).map(|body| body::holding(body, exchange))
    }
}

impl Server {
    async fn route(
        &self,
        parts: &Parts,
        route: Result<Route, RouteError>,
        arrival: &Arrival,
        incoming: Incoming,
    ) -> Response<Body> {
        let route = match route {
            Ok(route) => route,
            Err(problem) => return self.failed(parts, arrival, &problem.into(), None),
        };
        if let Err(problem) = self.check_hops(parts) {
            return self.failed(parts, arrival, &problem, route.repository());
        }
        let (began, from) = (Instant::now(), Network::of(arrival.client));
        let result = match &route {
            Route::Base => self.base(parts, from).await,
            Route::Token => self.token(parts, from, incoming).await,
            Route::Tags(repository) => within(Box::pin(self.node.tags(parts, from, repository))).await,
            Route::Referrers(repository, subject) => {
                within(Box::pin(self.node.referrers(parts, from, repository, subject))).await
            }
            Route::Pull(target) => {
                let _active = self.pulls.begin();
                // Boxed, because it is large and would be moved around.
                let result = within(Box::pin(self.node.pull(parts, from, target))).await;
                self.pulls.observe(&result, began.elapsed(), matches!(target.content, Content::Manifest(_)));
                result
            }
        };
        result.unwrap_or_else(|problem| self.failed(parts, arrival, &problem, route.repository()))
    }

    /// Refuses a request that goes round in a circle, before it costs anything.
    fn check_hops(&self, parts: &Parts) -> Result<(), PullError> {
        // Without a configuration no upstream is asked.
        let Ok(snapshot) = self.node.control.snapshot() else { return Ok(()) };
        hops(parts).check(snapshot.registry_id).map_err(PullError::Loop)
    }

    /// `/v2/`: 200 for logged-in callers, a challenge for all others.
    async fn base(&self, parts: &Parts, from: Network) -> Result<Response<Body>, PullError> {
        let snapshot = self.node.control.snapshot()?;
        self.node.auth.identify(&parts.headers, from, &snapshot).await?.require_login()?;
        Ok(json(Bytes::from_static(b"{}")))
    }

    /// `/token`: the credentials come by Basic authentication or in the form.
    async fn token(&self, parts: &Parts, from: Network, incoming: Incoming) -> Result<Response<Body>, PullError> {
        let snapshot = self.node.control.snapshot()?;
        let mut request = TokenRequest::parse(parts.uri.query().unwrap_or_default());
        if parts.method == Method::POST {
            let body = Limited::new(incoming, limits::FORM_BYTES).collect();
            let body = tokio::time::timeout(limits::FORM, body).await.ok().and_then(Result::ok);
            let form = body.and_then(|body| String::from_utf8(body.to_bytes().to_vec()).ok()).unwrap_or_default();
            let form = TokenRequest::parse(&form);
            request.scopes.extend(form.scopes);
            request.password = form.password;
        }
        let caller = match &request.password {
            Some((username, password)) if !parts.headers.contains_key(AUTHORIZATION) => {
                self.node.auth.password((username, password), from, &snapshot).await?
            }
            _ => self.node.auth.identify(&parts.headers, from, &snapshot).await?,
        };
        let answer = self.node.auth.issue(&caller, &request, &snapshot)?;
        // Plain strings and a number can always be written as JSON.
        let bytes = serde_json::to_vec(&answer).map_err(|_| PullError::Internal)?;
        Ok(json(bytes.into()))
    }

    fn failed(
        &self,
        parts: &Parts,
        arrival: &Arrival,
        problem: &PullError,
        repository: Option<&RepositoryName>,
    ) -> Response<Body> {
        let base = match &self.external_url {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None => arrival.base_url(),
        };
        trail::note(Note::Failed(problem.clone()));
        let snapshot = self.node.control.snapshot().ok();
        let scope = repository.map(|repository| format!("repository:{repository}:pull"));
        let challenge = Challenge { base: &base, registry_id: snapshot.map(|snapshot| snapshot.registry_id), scope };
        error::response(problem, user_agent(&parts.headers), &challenge)
    }
}

/// The answer, if it begins soon enough. The work continues, so a client that comes back finds its result.
async fn within(answer: impl Future<Output = Result<Response<Body>, PullError>>) -> Result<Response<Body>, PullError> {
    tokio::time::timeout(limits::ANSWER_HEAD, answer).await.unwrap_or(Err(PullError::GaveUp))
}

/// What is remembered about an answer, in addition to its request.
fn answer_view(response: &Response<Body>, route: Option<&Route>, noted: &Noted) -> AnswerView {
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let asked = route.and_then(Route::repository).map(ToString::to_string);
    let target = route.and_then(Route::target);
    AnswerView {
        request_id: String::new(),
        begin_time: DateTime::default(),
        method: String::new(),
        route: String::new(),
        client_address: String::new(),
        repository: noted.repository.clone().or(asked).unwrap_or_default(),
        reference: target.map(|target| target.content.reference()).unwrap_or_default(),
        digest: header("docker-content-digest").unwrap_or_default(),
        principal: noted.principal.clone().unwrap_or_default(),
        status: response.status().as_u16(),
        outcome: response.extensions().get().map_or("", |outcome: &Outcome| outcome.as_str()).to_owned(),
        reasons: Vec::new(),
        sent_bytes: 0,
        state: AnswerState::Sending,
        duration_ms: 0,
    }
}

/// The answer with a body that records how far it was sent.
fn track_body(remembered: Arc<Remembered>, response: Response<Body>) -> Response<Body> {
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    response.map(|body| remembered.track_body(body, length))
}

/// The span of one request, in the client's trace if it names one.
fn span(parts: &Parts, template: Option<&'static str>, request_id: &str) -> Span {
    let method = method_name(&parts.method);
    let name = template.map_or_else(|| method.to_owned(), |template| format!("{method} {template}"));
    let span = info_span!(
        "request",
        request.id = request_id,
        otel.name = name,
        otel.kind = "server",
        http.request.method = method,
        http.route = template,
        http.response.status_code = field::Empty,
        pull.outcome = field::Empty,
    );
    entrepot_runtime::telemetry::set_parent(&span, &parts.headers);
    span
}

/// Logs one line per request, and adds its fields to the span.
fn tell(span: &Span, parts: &Parts, arrival: &Arrival, response: &Response<Body>, began: Instant) {
    let status = response.status().as_u16();
    let outcome = response.extensions().get().map_or("", |outcome: &Outcome| outcome.as_str());
    span.record("http.response.status_code", status);
    if !outcome.is_empty() {
        span.record("pull.outcome", outcome);
    }
    let _entered = span.enter();
    let (method, path) = (method_name(&parts.method), shortened(parts.uri.path()));
    info!(
        url.path = &*path, http.response.status_code = status, client.address = %arrival.client,
        user_agent.original = &*shortened(user_agent(&parts.headers)), duration_ms = began.elapsed().as_millis(),
        "{method} {path} -> {status}",
    );
}

fn json(bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(body::full(bytes.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, bytes.len().into());
    response
}

fn user_agent(headers: &HeaderMap) -> &str {
    headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
