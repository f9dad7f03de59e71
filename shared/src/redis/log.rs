//! One job's numbered log: a stream whose ids are the events' own, so that Redis itself refuses a
//! zombie's append, repeats are recognised and holes are seen.

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use fred::{
    prelude::{Client, StreamsInterface as _, Value},
    types::scripts::Script,
};

use super::{keys, unavailable};
use crate::{
    Result,
    event::{Event, EventId},
    id::JobId,
};

static APPEND: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/append.lua")));

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All are in the log, which ends with this number.
    Whole { last: u32 },
    /// The log lost its tail, or never had it: send again from this number.
    Gap { expected: u32 },
    /// A newer attempt owns the log.
    Fenced,
}

/// Append `events`, the first of which has the id `first`, and announce them.
pub async fn append(client: &Client, job: JobId, first: EventId, events: &[Bytes], life: Duration) -> Result<Appended> {
    let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    let mut arguments: Vec<Value> = vec![first.attempt.to_string().into(), first.n.to_string().into(), life_ms.to_string().into()];
    arguments.extend(events.iter().map(|json| Value::Bytes(json.clone())));
    let (verdict, number): (u8, u32) =
        APPEND.evalsha_with_reload(client, vec![keys::log(job), keys::channel(job)], arguments).await.map_err(unavailable)?;
    Ok(match verdict {
        0 => Appended::Whole { last: number },
        1 => Appended::Gap { expected: number },
        _ => Appended::Fenced,
    })
}

/// At most `limit` events after `after`, oldest first.
pub async fn read(client: &Client, job: JobId, after: Option<EventId>, limit: u64) -> Result<Vec<Event>> {
    let start = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
    let entries = client.xrange::<Value, _, _, _>(keys::log(job), start, "+", Some(limit)).await.map_err(unavailable)?;
    // `[[id, [field, value]], …]`
    let event = |entry: Value| {
        let fields = entry.into_array().into_iter().nth(1)?;
        Event::from_json(fields.into_array().into_iter().nth(1)?.into_bytes()?)
    };
    Ok(entries.into_array().into_iter().filter_map(event).collect())
}

/// The newest event of each of these logs.
pub async fn newest(client: &Client, jobs: &[JobId]) -> Result<Vec<Option<EventId>>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let pipeline = client.pipeline();
    for job in jobs {
        let _: () = pipeline.xrevrange(keys::log(*job), "+", "-", Some(1)).await.map_err(unavailable)?;
    }
    let answers: Vec<Value> = pipeline.all().await.map_err(unavailable)?;
    // Each `[[id, …]]`, or nothing.
    let id = |answer: Value| answer.into_array().into_iter().next()?.into_array().into_iter().next()?.as_string()?.parse().ok();
    Ok(answers.into_iter().map(id).collect())
}
