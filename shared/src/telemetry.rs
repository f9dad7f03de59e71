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
    config::{ConfigError, Env},
    trace::Collection,
};

/// What is told of this process while this lives. Dropping it sends the last spans, so it is to outlive all that
/// makes some, the runtime too.
#[derive(Debug)]
pub struct Telemetry {
    _spans: Option<Collection>,
}

/// Start logging, and collecting the spans of `service` where a collector is named. Call once.
pub fn init(env: &Env, service: &'static str) -> Result<Telemetry, ConfigError> {
    init_logs(env)?;
    Ok(Telemetry { _spans: Collection::begin(env, service)? })
}

/// Start logging as `LOG_LEVEL` (default `info`; a `tracing` filter such as `info,worker=debug`) and
/// `LOG_FORMAT` (`text` or `json`) say. Call once.
pub fn init_logs(env: &Env) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(env.text("LOG_LEVEL").unwrap_or("info")).map_err(|error| ConfigError::invalid("LOG_LEVEL", error))?;
    let registry = tracing_subscriber::registry().with(filter);
    let text = Layer::new().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    match env.text("LOG_FORMAT").unwrap_or("text") {
        "text" => registry.with(text).init(),
        "json" => registry.with(text.json().event_format(Flat)).init(),
        _ => return Err(ConfigError::invalid("LOG_FORMAT", "neither `text` nor `json`")),
    }
    Ok(())
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
