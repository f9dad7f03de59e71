//! The end of this process in its steps, each set by a signal or by the time since one.

use std::{io, time::Duration};

use shared::stop_signals::StopSignals;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// How far the end has come.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Told to stop: load balancers are to look elsewhere, and everything is served as before.
    pub told: CancellationToken,
    /// Nothing new is taken, and nobody waits any longer.
    pub draining: CancellationToken,
    /// Told again: what has not finished is cut off.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Stop `delay` after the first SIGTERM or SIGINT, and at once with the second.
    pub fn on_signals(delay: Duration) -> io::Result<Self> {
        let mut signals = StopSignals::listen()?;
        let shutdown = Self::default();
        let Self { told, draining, now } = shutdown.clone();
        // Ends with the runtime.
        tokio::spawn(async move {
            signals.next().await;
            info!("Told to stop");
            told.cancel();
            let is_hurried = timeout(delay, signals.next()).await.is_ok();
            draining.cancel();
            if !is_hurried {
                signals.next().await;
            }
            now.cancel();
        });
        Ok(shutdown)
    }
}
