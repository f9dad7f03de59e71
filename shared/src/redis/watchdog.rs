//! Gives up a connection that leads nowhere though it looks open: what was stopped, or lost its network, still answers
//! to TCP, so that neither the kernel nor the driver tells. Blocking reads and subscriptions look after themselves.

use std::time::Duration;

use fred::{
    interfaces::ClientLike as _,
    prelude::{Client, ErrorKind},
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::COMMAND_TIMEOUT;

/// How often a connection is asked whether anybody is there.
const PROBE: Duration = Duration::from_secs(1);

/// Watch over the connection of a client of short commands, until what this answers is dropped.
pub fn watch(client: Client) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut probes = interval(PROBE);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            probes.tick().await;
            // One that knows that it has no connection is on its way to the next.
            if client.is_connected() && leads_nowhere(&client).await {
                tracing::warn!("Redis left a question unanswered for {COMMAND_TIMEOUT:?}: connecting anew");
                // It goes on by itself where Redis is away for longer.
                if let Ok(Err(error)) = timeout(COMMAND_TIMEOUT, client.force_reconnection()).await {
                    tracing::debug!(%error, "Could not connect anew at once");
                }
            }
        }
    }))
}

async fn leads_nowhere(client: &Client) -> bool {
    client.ping::<()>(None).await.is_err_and(|error| *error.kind() == ErrorKind::Timeout)
}
