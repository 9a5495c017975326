//! Passes the trace of a request along in headers (W3C Trace Context).

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The span in which a request was sent, by its `traceparent`; an empty context if there is none or it is invalid.
pub fn parent_of(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

/// Makes a new span a child of the one in which a request was sent. Must be called before the span is entered.
pub fn set_parent(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        // An error means that spans are not recorded.
        let _ = span.set_parent(parent_of(headers));
    }
}

/// Adds `traceparent` to a request, so that work it causes elsewhere belongs to the current span.
pub fn inject(headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut HeadersMut(headers));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value))
            // A missing tracestate is an empty one here.
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TraceContextExt as _;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_a_broken_one_is_none() {
        let of = |text: &'static str| {
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static("traceparent"), HeaderValue::from_static(text))]);
            parent_of(&headers).span().span_context().clone()
        };
        assert_eq!(of(PARENT).trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(of(PARENT).is_sampled() && of(PARENT).is_remote());
        for text in ["", "00-0-0-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
            assert!(!of(text).is_valid(), "{text}");
        }
        assert!(!parent_of(&HeaderMap::new()).span().span_context().is_valid());
    }

    #[test]
    fn nothing_is_sent_on_where_nobody_records_spans() {
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        assert!(headers.is_empty(), "{headers:?}");
    }
}
