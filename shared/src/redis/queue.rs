//! The doorbells. An entry says "look at this job's row" and nothing else: it may be lost, doubled or
//! late without harm, because the row decides. There are never more of them than the workers have slots, so
//! that whoever waits for one waits in the record, where the order can still change.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use fred::{
    interfaces::ClientLike as _,
    prelude::{
        Client, Error as RedisError, ErrorKind, HashesInterface as _, KeysInterface as _, PubsubInterface as _, StreamsInterface as _,
        Value,
    },
    types::{Expiration, config::Options, scripts::Script},
};

use tokio::time::timeout;

use super::{COMMAND_TIMEOUT, keys, unavailable};
use crate::{
    Result,
    id::{JobId, WorkerId},
};

static DISPATCH: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/dispatch.lua")));
static REQUEUE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/requeue.lua")));
static DONE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/done.lua")));
static FORGET_CONSUMER: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/forget_consumer.lua")));

/// How long a fetch waits for a doorbell.
const BLOCK: Duration = Duration::from_secs(1);
/// The most entries of one answer of Redis.
const PAGE: u64 = 1_000;

/// One doorbell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id in the stream.
    pub id: String,
    /// The job to look at.
    pub job: JobId,
}

/// Whether those who wait for a place already go before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// They do.
    Last,
    /// It is this one's turn.
    Next,
}

/// Ring for a job that waits, if there is a place for it; calling it twice rings once. False when it has to
/// wait for a place.
pub async fn dispatch(client: &Client, job: JobId, turn: Turn) -> Result<bool> {
    let queues = if turn == Turn::Last { "1" } else { "0" };
    let arguments = vec![keys::GROUP.to_owned(), job.to_string(), queues.to_owned()];
    let keys = vec![keys::WORK, keys::INDEX, keys::SLOTS, keys::BACKLOG];
    let rung: u8 = DISPATCH.evalsha_with_reload(client, keys, arguments).await.map_err(unavailable)?;
    Ok(rung == 1)
}

/// Ring for a job that may have an entry somewhere which nobody hears any more.
pub async fn requeue(client: &Client, job: JobId) -> Result<()> {
    let arguments = vec![keys::GROUP.to_owned(), job.to_string()];
    let _: Value = REQUEUE.evalsha_with_reload(client, vec![keys::WORK, keys::INDEX], arguments).await.map_err(unavailable)?;
    Ok(())
}

/// Take the doorbell of a job away: this `entry`, or whichever the index knows.
pub async fn done(client: &Client, job: JobId, entry: Option<&str>) -> Result<()> {
    let arguments = vec![keys::GROUP.to_owned(), job.to_string(), entry.unwrap_or_default().to_owned(), keys::ROOM.to_owned()];
    let keys = vec![keys::WORK, keys::INDEX, keys::BACKLOG];
    let _: Value = DONE.evalsha_with_reload(client, keys, arguments).await.map_err(unavailable)?;
    Ok(())
}

/// Say that jobs wait for a place: whoever frees one tells it from here on.
pub async fn note_backlog(client: &Client) -> Result<()> {
    client.set(keys::BACKLOG, "1", None::<Expiration>, None, false).await.map_err(unavailable)
}

/// Say that nobody waits for a place, as far as is known. Who knows better says so again.
pub async fn clear_backlog(client: &Client) -> Result<()> {
    client.del(keys::BACKLOG).await.map_err(unavailable)
}

/// Wake the leader: there may be something to ring for.
pub async fn nudge(client: &Client) -> Result<()> {
    client.publish(keys::ROOM, "").await.map_err(unavailable)
}

/// Say how many jobs the workers can run at once. False when Redis did not know it before: it may have lost
/// everything.
pub async fn set_slots(client: &Client, slots: u64) -> Result<bool> {
    let before: Value = client.set(keys::SLOTS, slots, None::<Expiration>, None, true).await.map_err(unavailable)?;
    Ok(!before.is_null())
}

/// How many entries there are: jobs that were rung for and have not ended.
pub async fn len(client: &Client) -> Result<u64> {
    client.xlen(keys::WORK).await.map_err(unavailable)
}

/// Those of `jobs` that nobody was rung for.
pub async fn missing(client: &Client, jobs: &[JobId]) -> Result<Vec<JobId>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = jobs.iter().map(ToString::to_string).collect();
    let entries: Vec<Option<String>> = client.hmget(keys::INDEX, names).await.map_err(unavailable)?;
    Ok(jobs.iter().zip(entries).filter_map(|(job, entry)| entry.is_none().then_some(*job)).collect())
}

/// Where the doorbells and the index of them disagree with each other, and what nobody answers.
#[derive(Debug, Default)]
pub struct Account {
    /// Every entry, oldest first.
    pub entries: Vec<Entry>,
    /// The entry of each job, as the index has it.
    pub index: HashMap<JobId, String>,
    /// Entries that were heard so long ago, by their ids.
    pub idle: Vec<String>,
}

/// Everything there is, and what was heard `idle` ago or before.
pub async fn account(client: &Client, idle: Duration) -> Result<Account> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let start = entries.last().map_or_else(|| "-".to_owned(), |entry| format!("({}", entry.id));
        let page = client.xrange::<Value, _, _, _>(keys::WORK, start, "+", Some(PAGE)).await.map_err(unavailable)?;
        let page: Vec<Entry> = page.into_array().into_iter().filter_map(entry).collect();
        let is_last = (page.len() as u64) < PAGE;
        entries.extend(page);
        if is_last {
            break;
        }
    }
    let index: HashMap<String, String> = client.hgetall(keys::INDEX).await.map_err(unavailable)?;
    let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
    let mut heard: Vec<String> = Vec::new();
    loop {
        let start = heard.last().map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        let page = client.xpending::<Value, _, _, _>(keys::WORK, keys::GROUP, (idle_ms, start, "+", PAGE)).await;
        let page = match page {
            Err(error) if is_without_group(&error) => break,
            page => page.map_err(unavailable)?.into_array(),
        };
        let is_last = (page.len() as u64) < PAGE;
        heard.extend(page.into_iter().filter_map(|pending| pending.into_array().into_iter().next()?.into_string()));
        if is_last {
            break;
        }
    }
    let index = index.into_iter().filter_map(|(job, entry)| Some((job.parse().ok()?, entry))).collect();
    Ok(Account { entries, index, idle: heard })
}

/// The workers that heard something, ever.
pub async fn consumers(client: &Client) -> Result<Vec<String>> {
    match client.xinfo_consumers::<Vec<HashMap<String, Value>>, _, _>(keys::WORK, keys::GROUP).await {
        Err(error) if is_without_group(&error) || error.details().contains("no such key") => Ok(Vec::new()),
        Err(error) => Err(unavailable(error)),
        Ok(consumers) => Ok(consumers.into_iter().filter_map(|consumer| consumer.get("name")?.clone().into_string()).collect()),
    }
}

/// Take out what a worker heard that is no more, and the worker. Answers the jobs: those that still wait have
/// to be rung for again.
pub async fn forget_consumer(client: &Client, worker: &str) -> Result<Vec<JobId>> {
    let mut jobs = Vec::new();
    loop {
        let arguments = vec![keys::GROUP.to_owned(), worker.to_owned(), PAGE.to_string()];
        let gone: Vec<String> =
            FORGET_CONSUMER.evalsha_with_reload(client, vec![keys::WORK, keys::INDEX], arguments).await.map_err(unavailable)?;
        let is_last = (gone.len() as u64) < PAGE;
        jobs.extend(gone.iter().filter_map(|job| job.parse::<JobId>().ok()));
        if is_last {
            return Ok(jobs);
        }
    }
}

/// At most `most` doorbells that nobody has heard, waiting up to a second for one. Never drop this future:
/// what it read would be lost until the next look at the pending ones.
pub async fn fetch(client: &Client, worker: WorkerId, most: usize) -> Result<Vec<Entry>> {
    read(client, worker, most as u64, Some(BLOCK), ">").await
}

/// Every doorbell that this worker heard and did not answer. A reply lost on the wire leaves its entry here.
pub async fn pending(client: &Client, worker: WorkerId) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let start = entries.last().map_or("0", |entry| entry.id.as_str()).to_owned();
        let page = read(client, worker, PAGE, None, &start).await?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}

async fn read(client: &Client, worker: WorkerId, most: u64, block: Option<Duration>, start: &str) -> Result<Vec<Entry>> {
    let block_ms = block.map(|block| u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
    // A connection that went silent answers nothing at all: the limit ends in a new connection.
    let options =
        Options { timeout: Some(block.unwrap_or_default() + Duration::from_secs(2)), max_attempts: Some(1), ..Options::default() };
    let answer = client
        .with_options(&options)
        .xreadgroup::<Value, _, _, _, _>(keys::GROUP, worker.to_string(), Some(most), block_ms, false, keys::WORK, start)
        .await;
    match answer {
        Ok(answer) if answer.is_null() => Ok(Vec::new()),
        // `[[stream, [entry, …]]]`
        Ok(answer) => {
            let of_stream = |stream: Value| stream.into_array().into_iter().nth(1).unwrap_or(Value::Null).into_array();
            Ok(answer.into_array().into_iter().flat_map(of_stream).filter_map(entry).collect())
        }
        // The stream or its group is gone: Redis was wiped. Doorbells come back from the rows.
        Err(error) if is_without_group(&error) || error.details().starts_with("UNBLOCKED") => {
            create_group(client).await.map_err(unavailable)?;
            Ok(Vec::new())
        }
        Err(error) => {
            if matches!(error.kind(), ErrorKind::Timeout) {
                // The client stays stuck behind the blocked command otherwise. It goes on by itself where Redis is away
                // for longer.
                let _ = timeout(COMMAND_TIMEOUT, client.force_reconnection()).await;
            }
            Err(unavailable(error))
        }
    }
}

fn is_without_group(error: &RedisError) -> bool {
    error.details().starts_with("NOGROUP")
}

/// `[id, [field, value]]`. An entry that was deleted while pending has no fields.
fn entry(entry: Value) -> Option<Entry> {
    let [id, fields]: [Value; 2] = entry.into_array().try_into().ok()?;
    let job = fields.into_array().into_iter().nth(1)?.into_string()?.parse().ok()?;
    Some(Entry { id: id.into_string()?, job })
}

/// Make the stream and its group, from its beginning. Nothing happens when both exist.
pub async fn create_group(client: &Client) -> Result<(), RedisError> {
    match client.xgroup_create::<Value, _, _, _>(keys::WORK, keys::GROUP, "0", true).await {
        Err(error) if !error.details().starts_with("BUSYGROUP") => Err(error),
        _ => Ok(()),
    }
}
