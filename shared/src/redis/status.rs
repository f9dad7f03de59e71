//! What a worker says of itself beside its row, for people who look: it is a moment's, so it is not in the record.

use std::time::Duration;

use fred::{
    interfaces::KeysInterface as _,
    prelude::{Client, Expiration},
};

use super::{keys, unavailable};
use crate::{Result, id::WorkerId};

/// Say how many CLI processes of `worker` live. It is forgotten after `life`.
pub async fn tell(client: &Client, worker: WorkerId, cli_processes: u32, life: Duration) -> Result<()> {
    let life_ms = i64::try_from(life.as_millis()).unwrap_or(i64::MAX);
    let expiration = Some(Expiration::PX(life_ms));
    client.set::<(), _, _>(keys::status_of(worker), cli_processes, expiration, None, false).await.map_err(unavailable)
}

/// What each of `workers` said last, in their order; `None` of who has not lately.
pub async fn told(client: &Client, workers: &[WorkerId]) -> Result<Vec<Option<u32>>> {
    if workers.is_empty() {
        return Ok(Vec::new());
    }
    // One by one, pipelined: they are in different slots of a cluster.
    let pipeline = client.pipeline();
    for worker in workers {
        pipeline.get::<(), _>(keys::status_of(*worker)).await.map_err(unavailable)?;
    }
    pipeline.all().await.map_err(unavailable)
}
