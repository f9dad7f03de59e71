//! Logs and traces, the same in every binary. Logs go to standard error, spans to a collector where one is named;
//! prompts, tokens and bodies never enter either.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt::Layer, layer::SubscriberExt as _, util::SubscriberInitExt as _};

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
        "json" => registry.with(text.json()).init(),
        _ => return Err(ConfigError::invalid("LOG_FORMAT", "neither `text` nor `json`")),
    }
    Ok(())
}
