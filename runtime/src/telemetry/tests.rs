//! Telemetry with a real receiver, without one, and in log lines.

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, mpsc};

use entrepot_test_support::{OtlpCollector, wait_until};
use http::HeaderMap;
use opentelemetry::trace::TraceContextExt as _;
use parking_lot::Mutex;
use serde_json::Value;
use tracing::{Dispatch, Instrument as _, debug, dispatcher, info, info_span};

use super::*;

const LIMIT: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn config(otlp: Option<Otlp>) -> Config {
    Config {
        service: "entrepot-test",
        instance: "node-7".to_owned(),
        log_format: LogFormat::Json,
        log_filter: "warn".to_owned(),
        otlp,
    }
}

/// A receiver at `url`, to which metrics are sent every `interval`.
fn otlp(url: &str, interval: Duration) -> Otlp {
    let header = (HeaderName::from_static("x-tenant"), HeaderValue::from_static("harbour"));
    Otlp { endpoint: url.parse().unwrap(), interval, trace_ratio: 1.0, headers: vec![header] }
}

/// Headers of a client that is traced itself; `flags` say whether its trace is recorded.
fn request(flags: &str) -> HeaderMap {
    let value = format!("00-{TRACE}-{CALLER}-{flags}").parse().unwrap();
    HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)])
}

/// The trace and span ids that a request names.
fn ids(headers: &HeaderMap) -> (String, String) {
    let context = parent_of(headers);
    let context = context.span().span_context().clone();
    (context.trace_id().to_string(), context.span_id().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_from_the_caller_through_us_to_whom_we_ask() {
    let collector = OtlpCollector::start().await;
    let (telemetry, subscriber) = Telemetry::build(&config(Some(otlp(&collector.url(), LIMIT)))).unwrap();
    let _default = dispatcher::set_default(&subscriber);

    let span = info_span!("pull", repository.name = "hub/app");
    set_parent(&span, &request("01"));
    let mut asked = HeaderMap::new();
    let work = async {
        let fill = async {
            info!("asks the upstream");
            inject(&mut asked);
        };
        fill.instrument(info_span!("fill")).await;
        // Neither of these belongs in a trace.
        drop(tracing::debug_span!("detail").entered());
        drop(info_span!(target: "h2::client", "frame").entered());
    };
    work.instrument(span).await;
    telemetry
        .metrics()
        .meter("entrepot.test")
        .f64_histogram("entrepot.test.duration")
        .with_unit("s")
        .build()
        .record(0.1, &[]);
    telemetry.shutdown(LIMIT).await;

    let spans = collector.trace(TRACE);
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["fill", "pull"]);
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!((named("pull").parent_id.as_str(), named("pull").service.as_str()), (CALLER, "entrepot-test"));
    assert_eq!(named("pull").attributes["repository.name"], "hub/app");
    assert_eq!(named("fill").parent_id, named("pull").span_id);
    assert_eq!(ids(&asked), (TRACE.to_owned(), named("fill").span_id.clone()));

    let metrics = collector.metrics();
    assert!(metrics.iter().any(|metric| metric.name == "entrepot.test.duration" && metric.unit == "s"), "{metrics:?}");
    let raw = collector.raw();
    let raw = String::from_utf8_lossy(&raw);
    for text in ["service.instance.id", "node-7", "service.version", env!("CARGO_PKG_VERSION"), "x-tenant", "harbour"] {
        assert!(raw.contains(text), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_does_not_record_we_do_not_either() {
    let collector = OtlpCollector::start().await;
    let (telemetry, subscriber) = Telemetry::build(&config(Some(otlp(&collector.url(), LIMIT)))).unwrap();
    let _default = dispatcher::set_default(&subscriber);
    for flags in ["00", "01"] {
        let span = info_span!("pull", flags);
        set_parent(&span, &request(flags));
        drop(span.entered());
    }
    // Nobody has decided about this trace, so the ratio does.
    drop(info_span!("alone").entered());
    telemetry.shutdown(LIMIT).await;
    assert_eq!(collector.trace(TRACE).iter().map(|span| &span.attributes["flags"]).collect::<Vec<_>>(), ["01"]);
    assert!(collector.spans().iter().any(|span| span.name == "alone" && span.parent_id.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_sent_at_intervals_and_shown_to_prometheus_as_well() {
    let collector = OtlpCollector::start().await;
    let (telemetry, _) = Telemetry::build(&config(Some(otlp(&collector.url(), Duration::from_millis(50))))).unwrap();
    let metrics = telemetry.metrics();
    metrics.meter("entrepot.test").u64_counter("entrepot.test.count").build().add(2, &[]);
    wait_until(LIMIT, "the counter has come", async || {
        collector.metrics().iter().any(|metric| metric.name == "entrepot.test.count")
    })
    .await;
    let text = metrics.render();
    assert!(text.contains("entrepot_test_count_total"), "{text}");
    assert!(text.contains(r#"service_instance_id="node-7""#), "{text}");
}

/// Makes far more spans than the queue holds, on a thread of its own, and returns how long that took.
fn make_spans(subscriber: Dispatch) -> Duration {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let began = std::time::Instant::now();
        dispatcher::with_default(&subscriber, || {
            for number in 0..20_000 {
                drop(info_span!("pull", number).entered());
            }
        });
        let _ = done.send(began.elapsed());
    });
    ended.recv_timeout(LIMIT).expect("spans are made whether anybody takes them or not")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_away_or_silent_holds_up_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for addr in [silent.local_addr().unwrap(), closed] {
        let otlp = otlp(&format!("http://{addr}"), Duration::from_millis(20));
        let (telemetry, subscriber) = Telemetry::build(&config(Some(otlp))).unwrap();
        let count = telemetry.metrics().meter("entrepot.test").u64_counter("entrepot.test.count").build();
        let took = make_spans(subscriber);
        count.add(1, &[]);
        assert!(telemetry.metrics().render().contains("entrepot_test_count_total"));
        let began = std::time::Instant::now();
        tokio::time::timeout(LIMIT, telemetry.shutdown(Duration::from_millis(300))).await.expect("a bounded end");
        println!("{addr}: 20000 spans in {took:?}, shutdown in {:?}", began.elapsed());
    }
}

/// Captured log lines.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Log lines of this format and filter, with spans that are not recorded.
fn lines(format: LogFormat, filter: &str) -> (Lines, Dispatch) {
    let lines = Lines::default();
    let writer = lines.clone();
    let tracer = traces(resource(&config(None)), Sampler::AlwaysOff).build().tracer("test");
    let subscriber = logs::subscriber(format, filter, Some(tracer), move || writer.clone()).unwrap();
    (lines, subscriber)
}

#[test]
fn json_lines_name_the_trace_and_the_span_that_they_stand_in() {
    let (lines, subscriber) = lines(LogFormat::Json, "warn");
    dispatcher::with_default(&subscriber, || {
        let span = info_span!("pull", repository.name = "hub/app");
        set_parent(&span, &request("00"));
        let asked = span.in_scope(|| {
            warn!(upstream.id = "hub", "the upstream `hub` is away \"}}");
            info!("not wanted");
            let mut headers = HeaderMap::new();
            inject(&mut headers);
            headers
        });
        warn!("on its own");
        let lines = lines.json();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert_eq!(
            (lines[0]["trace_id"].as_str(), lines[0]["message"].as_str()),
            (Some(TRACE), Some("the upstream `hub` is away \"}"))
        );
        assert_eq!(lines[0]["span_id"].as_str(), Some(ids(&asked).1.as_str()));
        assert_eq!((&lines[0]["level"], &lines[0]["upstream.id"]), (&"WARN".into(), &"hub".into()));
        assert_eq!(lines[0]["span"]["repository.name"], "hub/app");
        assert!(lines[1].get("trace_id").is_none() && lines[1].get("span_id").is_none());
    });
}

#[test]
fn a_filter_takes_lines_away_and_not_what_they_happened_in() {
    let (lines, subscriber) = lines(LogFormat::Text, "warn,entrepot_runtime=debug,noisy=off");
    dispatcher::with_default(&subscriber, || {
        let span = info_span!("pull", repository.name = "hub/app").entered();
        debug!("wanted");
        warn!(target: "noisy::part", "hidden");
        info!(target: "library", "hidden");
        warn!(target: "library", "strange");
        warn!(target: "opentelemetry_sdk", "hidden");
        drop(span);
    });
    let text = lines.text();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|line| line.contains("pull{") && line.contains("hub/app")), "{text}");
    assert!(!text.contains("hidden"), "{text}");
}

#[test]
fn telemetry_without_a_receiver_needs_no_tokio() {
    let text = Config { log_format: LogFormat::Text, ..config(None) };
    assert!(Telemetry::build(&text).unwrap().0.traces.is_none());
    assert!(Telemetry::build(&config(None)).unwrap().0.traces.is_some());
}
