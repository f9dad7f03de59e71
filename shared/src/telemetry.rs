//! Logs and traces, the same in every binary. Logs go to standard error, spans to a collector where one is named;
//! prompts, tokens and bodies never enter either.

use std::{
    fmt,
    io::{self, IsTerminal as _},
};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_serde::fields::AsMap as _;
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormattedFields, Layer,
        format::{JsonFields, Writer},
        time::{FormatTime as _, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::{LookupSpan, Scope},
    util::SubscriberInitExt as _,
};

use crate::{
    Result,
    config::Reading,
    settings,
    trace::{Collection, Wish},
};

/// What is told of this process while this lives. Dropping it sends the last spans, so it is to outlive all that
/// makes some, the runtime too.
#[derive(Debug)]
pub struct Telemetry {
    _spans: Option<Collection>,
}

/// What is told, and how.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// A `tracing` filter: `LOG_LEVEL`.
    level: String,
    /// `LOG_FORMAT`.
    format: Format,
    spans: Option<Wish>,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Text,
    Json,
}

impl TelemetryConfig {
    /// Read it.
    pub fn read(reading: &Reading<'_>) -> Self {
        Self {
            level: reading.one(&settings::LOG_LEVEL, |text| EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|_| "not a filter")),
            format: reading.word(&settings::LOG_FORMAT, &[("text", Format::Text), ("json", Format::Json)]),
            spans: Wish::read(reading),
        }
    }

    /// Start logging. Call once.
    pub fn start_logs(&self) {
        let registry = tracing_subscriber::registry().with(EnvFilter::new(&self.level));
        let text = Layer::new().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
        match self.format {
            Format::Text => registry.with(text).init(),
            Format::Json => registry.with(text.json().event_format(Flat)).init(),
        }
    }

    /// Start logging, and collecting the spans of `service` where a collector is named. Call once.
    pub fn start(&self, service: &'static str) -> Result<Telemetry> {
        self.start_logs();
        Ok(Telemetry { _spans: self.spans.map(|wish| Collection::begin(wish, service)).transpose()? })
    }
}

/// A line of JSON that has all fields of an event and of the spans around it beside each other: whoever looks for a
/// `job.id` need not know which of them said it. The innermost word counts.
struct Flat;

#[derive(Serialize)]
struct Line {
    timestamp: String,
    level: &'static str,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, JsonFields> for Flat {
    fn format_event(&self, context: &FmtContext<'_, S, JsonFields>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut fields = Map::new();
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            if let Some(formatted) = span.extensions().get::<FormattedFields<JsonFields>>() {
                fields.extend(serde_json::from_str::<Map<String, Value>>(formatted).map_err(|_| fmt::Error)?);
            }
        }
        if let Ok(Value::Object(own)) = serde_json::to_value(event.field_map()) {
            fields.extend(own);
        }
        let line = Line { timestamp, level: event.metadata().level().as_str(), fields };
        writeln!(writer, "{}", serde_json::to_string(&line).map_err(|_| fmt::Error)?)
    }
}
