//! Logs, the same in every binary. They go to standard error; prompts, tokens and bodies never enter
//! them.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{ConfigError, Env};

/// Start logging as `LOG_LEVEL` (default `info`; a `tracing` filter such as `info,worker=debug`) and
/// `LOG_FORMAT` (`text` or `json`) say. Call once.
pub fn init(env: &Env) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(env.text("LOG_LEVEL").unwrap_or("info")).map_err(|error| ConfigError::invalid("LOG_LEVEL", error))?;
    let registry = tracing_subscriber::registry().with(filter);
    let text = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    match env.text("LOG_FORMAT").unwrap_or("text") {
        "text" => registry.with(text).init(),
        "json" => registry.with(text.json()).init(),
        _ => return Err(ConfigError::invalid("LOG_FORMAT", "neither `text` nor `json`")),
    }
    Ok(())
}
