//! Logs, and the spans around them.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::trace::SdkTracer;
use tracing::dispatcher::WeakDispatch;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

use super::TelemetryError;
use super::plain::PlainLines;

/// The beginning of our crates' names, and so of the targets of their logs.
const OURS: &str = "entrepot";

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogFormatError),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// A text that is not a log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `text` or `json`")]
pub struct LogFormatError;

/// Checks that a log filter can be parsed.
///
/// # Errors
/// If it cannot; the text shows an example.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

/// Installs the subscriber for the whole process.
pub(super) fn install(subscriber: Dispatch) -> Result<(), TelemetryError> {
    subscriber.try_init().map_err(|_| TelemetryError::Twice)
}

/// Writes log lines to `writer`, and passes spans to `tracer`.
pub(super) fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    tracer: Option<SdkTracer>,
    writer: W,
) -> Result<Dispatch, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Spans are kept whatever the filter says, so that a warning still shows its context.
    let spans_of_ours = filter_fn(is_span_of_ours).with_max_level_hint(Level::INFO);
    let filter = spans_of_ours.or(parse(filter)?);
    // Spans of libraries do not belong in a trace, least of all those that send traces.
    let spans = tracer.map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(OURS, Level::INFO))
    });
    let registry = Registry::default().with(spans);
    // Colours are for people at a terminal; in files and journals they only get in the way of searching.
    let colours = format == LogFormat::Text && io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(PlainLines { writer, colours }).with_ansi(colours);
    match format {
        LogFormat::Text => Ok(registry.with(lines.with_filter(filter)).into()),
        LogFormat::Json => {
            let dispatch = Arc::new(OnceLock::new());
            let traced = Traced { format: Format::default().json().flatten_event(true), dispatch: dispatch.clone() };
            let lines = lines.fmt_fields(JsonFields::new()).event_format(traced);
            let subscriber = Dispatch::from(registry.with(lines.with_filter(filter)));
            let _ = dispatch.set(subscriber.downgrade());
            Ok(subscriber)
        }
    }
}

fn is_span_of_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO && metadata.target().starts_with(OURS)
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    // The library would report an absent receiver again and again; our own messages are enough.
    let quiet = if filter.contains("opentelemetry") { "" } else { ",opentelemetry=off" };
    EnvFilter::try_new(format!("{filter}{quiet}"))
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

/// JSON lines with the ids of the surrounding span, which lead from a log line to its trace and back.
struct Traced {
    format: Format<Json>,
    /// The subscriber that this is a part of; only it knows the ids.
    dispatch: Arc<OnceLock<WeakDispatch>>,
}

impl<S, N> FormatEvent<S, N> for Traced
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    Format<Json>: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let span = event.parent().and_then(|id| ctx.span(id)).or_else(|| ctx.lookup_current());
        let dispatch = self.dispatch.get().and_then(WeakDispatch::upgrade);
        let context = span.zip(dispatch);
        let context =
            context.and_then(|(span, dispatch)| tracing_opentelemetry::get_otel_context(&span.id(), &dispatch));
        let Some(context) = context else { return self.format.format_event(ctx, writer, event) };

        let mut line = String::with_capacity(512);
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        let ids = context.span().span_context().clone();
        match line.trim_end().strip_suffix('}') {
            Some(object) if ids.is_valid() => {
                let (trace, span) = (ids.trace_id(), ids.span_id());
                writeln!(writer, r#"{object},"trace_id":"{trace}","span_id":"{span}"}}"#)
            }
            _ => writer.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("xml".parse::<LogFormat>(), Err(LogFormatError));
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = check_filter("entrepot=loud").unwrap_err();
        assert!(error.to_string().contains("`entrepot=loud`"), "{error}");
        assert!(check_filter("info,entrepot=debug").is_ok() && check_filter("").is_ok());
    }
}
