//! Redis: what is next and what is happening. Nothing here is the truth; all of it can be rebuilt from
//! the record and from the workers' memory.

use std::time::Duration;

use fred::{
    interfaces::ClientLike as _,
    prelude::{Builder, Client, Config, Error as RedisError, ErrorKind, ReconnectPolicy},
    types::config::TcpConfig,
};

use crate::{Error, Result};

mod keys;
pub use keys::LEADER_STAMP;
pub mod limits;
pub mod log;
pub mod queue;
#[cfg(test)]
pub mod server;
pub mod settings;
pub mod signals;
pub mod status;
pub mod transcripts;
pub mod watchdog;

/// No answer of Redis is worth a longer wait.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// How a client is going to be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Short commands and scripts.
    Commands,
    /// Blocking reads, which hold up everything behind them on the same connection.
    Fetch,
}

/// Build a client that does not send a command twice, does not wait for ever and does not queue without
/// a bound: fred's defaults do all three.
pub fn builder(url: &str, purpose: Purpose) -> Result<Builder, RedisError> {
    let mut builder = Builder::from_config(Config::from_url(url)?);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = Duration::from_secs(3);
            connection.internal_command_timeout = Duration::from_secs(3);
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 10_000;
            connection.reconnect_on_auth_error = true;
            connection.tcp = TcpConfig { nodelay: Some(true), user_timeout: Some(Duration::from_secs(5)), ..TcpConfig::default() };
        })
        .with_performance_config(|performance| {
            // Each may be several kilobytes; who falls this far behind is told so and reads the log.
            performance.broadcast_channel_capacity = 4_096;
            performance.default_command_timeout = match purpose {
                Purpose::Commands => COMMAND_TIMEOUT,
                // Each fetch carries its own limit: the time it blocks and a little more.
                Purpose::Fetch => Duration::ZERO,
            };
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 500, 2));
    Ok(builder)
}

/// Whether this is where a Redis can be.
pub fn is_address(url: &str) -> bool {
    Config::from_url(url).is_ok()
}

/// Connect a client, or say why not at once.
pub async fn connect(url: &str, purpose: Purpose) -> Result<Client, RedisError> {
    let mut builder = builder(url, purpose)?;
    builder.with_config(|config| config.fail_fast = true);
    let client = builder.build()?;
    client.init().await?;
    Ok(client)
}

/// What a failure of Redis means to a caller.
pub fn unavailable(source: RedisError) -> Error {
    match source.kind() {
        // An answer that is not of the expected form is a defect here, not an outage there.
        ErrorKind::Parse | ErrorKind::InvalidArgument | ErrorKind::InvalidCommand => {
            Error::Internal { what: "could not read what Redis answered", source: source.into() }
        }
        _ => Error::Unavailable { service: "redis", source: source.into() },
    }
}
