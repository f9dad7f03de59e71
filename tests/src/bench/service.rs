//! The CLI behind the service, as a client over HTTP sees it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::client::{Client, Event, assert_whole};

/// When a client saw what, counted from its request.
#[derive(Clone, Copy)]
pub struct Seen {
    /// The first piece of text.
    pub first_text: Duration,
    /// The news that the job is completed.
    pub completed: Duration,
}

/// The time from the request to its first piece of text.
pub async fn first_text(client: &Client, answer: &str) -> anyhow::Result<Duration> {
    Ok(turn(client, None, &format!("say:{answer}"), answer).await?.first_text)
}

/// The times of `message`, which is answered with `answer`, as a turn of `session`; without one, as a job of its own.
pub async fn turn(client: &Client, session: Option<&str>, message: &str, answer: &str) -> anyhow::Result<Seen> {
    let mut body = json!({"message": message, "stream": true});
    if let Some(session) = session {
        body["session_id"] = json!(session);
    }

    let started = Instant::now();
    let mut stream = client.chat_with(body).await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    let first_text = started.elapsed();
    stream.until("job.completed", &mut events).await?;
    let completed = started.elapsed();

    events.extend(stream.rest().await?);
    check(&events, answer)?;
    let ready: Vec<_> = events.iter().filter(|event| event.kind == "session.ready").map(|event| &event.data["session_id"]).collect();
    ensure!(ready == Vec::from_iter(session), "a turn of {session:?} was told of {ready:?}");
    Ok(Seen { first_text, completed })
}

/// The times from the request to the 202, and from there to the news that a worker took the job.
pub async fn submit(client: &Client, answer: &str) -> anyhow::Result<(Duration, Duration)> {
    let started = Instant::now();
    let id = client.say(&format!("say:{answer}")).await?;
    let to_accepted = started.elapsed();
    let accepted = Instant::now();
    let mut stream = client.events(&id, None).await?;
    let mut events = Vec::new();
    stream.until("job.started", &mut events).await?;
    let to_started = accepted.elapsed();

    events.extend(stream.rest().await?);
    check(&events, answer)?;
    Ok((to_accepted, to_started))
}

/// Whether the job said `answer`, whole, at its first attempt.
fn check(events: &[Event], answer: &str) -> anyhow::Result<()> {
    let said = assert_whole(events);
    ensure!(said == answer, "the events say `{said}`, not `{answer}`");
    let starts = events.iter().filter(|event| event.kind == "job.started").count();
    ensure!(starts == 1, "the job took {starts} attempts");
    let job: &Value = &events.last().context("a job has events")?.data["job"];
    ensure!((&job["status"], &job["result"]["text"]) == (&json!("completed"), &json!(answer)), "not as asked: {job}");
    Ok(())
}
