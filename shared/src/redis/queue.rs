//! The doorbells. An entry says "look at this job's row" and nothing else: it may be lost, doubled or
//! late without harm, because the row decides.

use std::{sync::LazyLock, time::Duration};

use fred::{
    interfaces::ClientLike as _,
    prelude::{Client, Error as RedisError, ErrorKind, StreamsInterface as _, Value},
    types::{config::Options, scripts::Script},
};

use super::{keys, unavailable};
use crate::{
    Result,
    id::{JobId, WorkerId},
};

static DISPATCH: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/dispatch.lua")));
static REQUEUE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/requeue.lua")));
static DONE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/done.lua")));

/// How long a fetch waits for a doorbell.
const BLOCK: Duration = Duration::from_secs(1);

/// One doorbell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id in the stream.
    pub id: String,
    /// The job to look at.
    pub job: JobId,
}

/// Ring for a job that waits for the first time; calling it twice rings once.
pub async fn dispatch(client: &Client, job: JobId) -> Result<()> {
    let arguments = vec![keys::GROUP.to_owned(), job.to_string()];
    let _: Value = DISPATCH.evalsha_with_reload(client, vec![keys::WORK, keys::INDEX], arguments).await.map_err(unavailable)?;
    Ok(())
}

/// Ring again for a job that was rung for before.
pub async fn requeue(client: &Client, job: JobId) -> Result<()> {
    let arguments = vec![keys::GROUP.to_owned(), job.to_string(), String::new()];
    let _: Value = REQUEUE.evalsha_with_reload(client, vec![keys::WORK, keys::INDEX], arguments).await.map_err(unavailable)?;
    Ok(())
}

/// Take the doorbell of a job away: this `entry`, or whichever the index knows.
pub async fn done(client: &Client, job: JobId, entry: Option<&str>) -> Result<()> {
    let arguments = vec![keys::GROUP.to_owned(), job.to_string(), entry.unwrap_or_default().to_owned()];
    let _: Value = DONE.evalsha_with_reload(client, vec![keys::WORK, keys::INDEX], arguments).await.map_err(unavailable)?;
    Ok(())
}

/// Where a fetch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Doorbells that nobody has heard, waiting up to a second for one.
    Fresh,
    /// Doorbells this worker heard before and did not answer, after the one with this id (`0`: from
    /// the first). A reply lost on the wire leaves its entry here.
    Pending,
}

/// At most one fresh doorbell, or up to a hundred pending ones. Never drop this future: what it read
/// would be lost until the next look at the pending ones.
pub async fn fetch(client: &Client, worker: WorkerId, position: Position) -> Result<Vec<Entry>> {
    let (count, block, start) = match position {
        Position::Fresh => (1, Some(BLOCK), ">"),
        Position::Pending => (100, None, "0"),
    };
    let block_ms = block.map(|block| u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
    // A connection that went silent answers nothing at all: the limit ends in a new connection.
    let options =
        Options { timeout: Some(block.unwrap_or_default() + Duration::from_secs(2)), max_attempts: Some(1), ..Options::default() };
    let answer = client
        .with_options(&options)
        .xreadgroup::<Value, _, _, _, _>(keys::GROUP, worker.to_string(), Some(count), block_ms, false, keys::WORK, start)
        .await;
    match answer {
        Ok(answer) if answer.is_null() => Ok(Vec::new()),
        Ok(answer) => Ok(entries(answer)),
        // The stream or its group is gone: Redis was wiped. Doorbells come back from the rows.
        Err(error) if error.details().starts_with("NOGROUP") || error.details().starts_with("UNBLOCKED") => {
            create_group(client).await.map_err(unavailable)?;
            Ok(Vec::new())
        }
        Err(error) => {
            if matches!(error.kind(), ErrorKind::Timeout) {
                // The client stays stuck behind the blocked command otherwise.
                let _ = client.force_reconnection().await;
            }
            Err(unavailable(error))
        }
    }
}

/// `[[stream, [[id, [field, value]], …]]]`. An entry that was deleted while pending has no fields.
fn entries(answer: Value) -> Vec<Entry> {
    let of_stream = |stream: Value| stream.into_array().into_iter().nth(1).unwrap_or(Value::Null).into_array();
    let entry = |entry: Value| {
        let [id, fields]: [Value; 2] = entry.into_array().try_into().ok()?;
        let job = fields.into_array().into_iter().nth(1)?.into_string()?.parse().ok()?;
        Some(Entry { id: id.into_string()?, job })
    };
    answer.into_array().into_iter().flat_map(of_stream).filter_map(entry).collect()
}

/// Make the stream and its group, from its beginning. Nothing happens when both exist.
pub async fn create_group(client: &Client) -> Result<(), RedisError> {
    match client.xgroup_create::<Value, _, _, _>(keys::WORK, keys::GROUP, "0", true).await {
        Err(error) if !error.details().starts_with("BUSYGROUP") => Err(error),
        _ => Ok(()),
    }
}
