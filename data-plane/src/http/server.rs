//! The registry's edge: reads requests, has them answered, and tells of it.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::DateTime;
use entrepot_domain::RepositoryName;
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
use super::readers::Readers;
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
use crate::pull::Node;
use crate::target::{Content, Target};
use crate::trail::{self, Note, Noted, Trail};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The registry's HTTP server.
pub(crate) struct Server {
    pub(crate) node: Node,
    pub(crate) node_id: Arc<str>,
    pub(crate) external_url: Option<Url>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) readers: Readers,
    pub(crate) pulls: PullMetrics,
    pub(crate) requests: HttpMetrics,
    pub(crate) answers: Answers,
}

impl Edge for Server {
    const NAME: &'static str = "connection";

    async fn answer(self: Arc<Self>, request: Request<Incoming>, remote: Remote) -> Response<Body> {
        let began = Instant::now();
        // Begins with the node, so that it can be asked about what it did.
        let request_id = format!("{}-{}", self.node_id, Uuid::now_v7().simple());
        let (parts, incoming) = request.into_parts();
        let arrival = Arrival::new(&parts, remote, &self.trusted_proxies);
        let route = Route::parse(&parts.method, parts.uri.path());
        let template = route.as_ref().ok().map(Route::template);
        let span = span(&parts, template, &request_id);

        let (begin_time, asked) = (self.node.auth.clock.now(), route.as_ref().ok().cloned());
        let answering = self.route(&parts, route, &arrival, incoming).instrument(span.clone());
        // Boxed, since it is large, and would be moved about.
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
            ..answered(&response, asked.as_ref(), &noted)
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
        sending(remembered, response).map(|body| body::holding(body, exchange))
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
        let began = Instant::now();
        let result = match &route {
            Route::Base => self.base(parts).await,
            Route::Token => self.token(parts, incoming).await,
            Route::Tags(repository) => within(Box::pin(self.node.tags(parts, repository))).await,
            Route::Referrers(repository, subject) => {
                within(Box::pin(self.node.referrers(parts, repository, subject))).await
            }
            Route::Pull(target) => {
                let _active = self.pulls.begin();
                let result = self.pull(parts, target).await;
                self.pulls.observe(&result, began.elapsed(), matches!(target.content, Content::Manifest(_)));
                result
            }
        };
        result.unwrap_or_else(|problem| self.failed(parts, arrival, &problem, route.repository()))
    }

    async fn pull(&self, parts: &Parts, target: &Target) -> Result<Response<Body>, PullError> {
        let wants_blob = parts.method == Method::GET && matches!(target.content, Content::Blob(_));
        let turn = if wants_blob { Some(self.readers.turn().await?) } else { None };
        // Boxed, since it is large, and would be moved about.
        let answer = within(Box::pin(self.node.pull(parts, target))).await?;
        Ok(answer.map(|body| match turn {
            Some(turn) => turn.lasts(body),
            None => body,
        }))
    }

    /// `/v2/`: 200 for those who are logged in, a challenge for all others.
    async fn base(&self, parts: &Parts) -> Result<Response<Body>, PullError> {
        let snapshot = self.node.control.snapshot()?;
        self.node.auth.identify(&parts.headers, &snapshot).await?.require_login()?;
        Ok(json(Bytes::from_static(b"{}")))
    }

    /// `/token`: credentials come by Basic or in the form.
    async fn token(&self, parts: &Parts, incoming: Incoming) -> Result<Response<Body>, PullError> {
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
                self.node.auth.password(username, password, &snapshot).await?
            }
            _ => self.node.auth.identify(&parts.headers, &snapshot).await?,
        };
        let answer = self.node.auth.issue(&caller, &request, &snapshot)?;
        // Plain strings and a number: nothing that JSON could not hold.
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

/// The answer, if it begins soon enough. What is under way goes on: who comes back finds it.
async fn within(answer: impl Future<Output = Result<Response<Body>, PullError>>) -> Result<Response<Body>, PullError> {
    tokio::time::timeout(limits::ANSWER_HEAD, answer).await.unwrap_or(Err(PullError::GaveUp))
}

/// What is remembered of an answer besides what is known of its request.
fn answered(response: &Response<Body>, route: Option<&Route>, noted: &Noted) -> AnswerView {
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

/// The answer with a body that tells how far it came.
fn sending(remembered: Arc<Remembered>, response: Response<Body>) -> Response<Body> {
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    response.map(|body| remembered.sending(body, length))
}

/// The span of one request; it goes on in the trace that the client names.
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

/// One line in the log for each request, and what of it belongs into the span.
fn tell(span: &Span, parts: &Parts, arrival: &Arrival, response: &Response<Body>, began: Instant) {
    let status = response.status().as_u16();
    let outcome = response.extensions().get().map_or("", |outcome: &Outcome| outcome.as_str());
    span.record("http.response.status_code", status);
    if !outcome.is_empty() {
        span.record("pull.outcome", outcome);
    }
    let _entered = span.enter();
    info!(
        url.path = parts.uri.path(), http.response.status_code = status, client.address = %arrival.client,
        user_agent.original = user_agent(&parts.headers), duration_ms = began.elapsed().as_millis(),
        "{} {} -> {status}", parts.method, parts.uri.path(),
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
