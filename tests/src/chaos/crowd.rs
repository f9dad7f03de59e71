//! Those who follow the jobs of a run: they come and go over all servers, with the last id they have, and stop reading
//! now and then. What one was told of an event everybody must be told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;
use reqwest::{Method, Response, StatusCode, header::RETRY_AFTER};
use serde_json::Value;
use shared::event::EventId;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::client::Client;

use super::cast::{Cast, about};

/// All readers.
pub(super) struct Crowd {
    cast: Arc<Cast>,
    known: Mutex<BTreeMap<(String, EventId), Vec<u8>>>,
    pub(super) connections: AtomicU64,
    pub(super) events: AtomicU64,
    /// How often somebody was told that their place is not kept any more.
    pub(super) resyncs: AtomicU64,
}

/// Where a reader is.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    last: Option<EventId>,
    /// What comes next is the beginning of an attempt, this one or a later one.
    begins_anew: bool,
}

impl Position {
    /// Go on to `id`, if it is next.
    fn go_on(&mut self, id: EventId) -> bool {
        let is_next = match self.last {
            Some(last) if self.begins_anew => id.n == 0 && id.attempt >= last.attempt,
            last => id.follows(last),
        };
        *self = Self { last: Some(id), begins_anew: false };
        is_next
    }
}

/// About how long one reads at a stretch.
const STRETCH: Duration = Duration::from_secs(1);
/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(8);

impl Crowd {
    pub(super) fn new(cast: Arc<Cast>) -> Self {
        let (connections, events, resyncs) = Default::default();
        Self { cast, known: Mutex::default(), connections, events, resyncs }
    }

    /// Follow a job to its end.
    pub(super) async fn read(self: Arc<Self>, user: Client, job: String, mut random: Rng) -> anyhow::Result<()> {
        let mut position = Position::default();
        let path = format!("/api/jobs/{job}/events");
        loop {
            let server = user.of_server(&self.cast.base(random.usize(..2)));
            let mut request = server.request(Method::GET, &path);
            if let Some(last) = position.last.as_ref().filter(|_| !position.begins_anew) {
                request = request.header("last-event-id", EventId::to_string(last));
            }
            self.connections.fetch_add(1, Ordering::Relaxed);
            let mut pause = Duration::from_millis(random.u64(..100));
            match timeout(ANSWER, request.send()).await {
                Ok(Ok(mut response)) if response.status() == StatusCode::OK => {
                    if random.u32(..100) < 5 {
                        sleep(STRETCH * 2).await;
                    }
                    let until = Instant::now() + about(STRETCH, &mut random);
                    if self.take(&job, &mut response, until, &mut position).await? {
                        return Ok(());
                    }
                }
                Ok(Ok(response)) => match asked_to_wait(&response, &mut random) {
                    Some(wait) => pause = wait,
                    None => bail!("{} after {position:?}", response.status()),
                },
                // Dead, or too slow.
                _ => {}
            }
            sleep(pause).await;
        }
    }

    /// Take what comes until the time is over or the connection breaks. Whether the job has ended.
    async fn take(&self, job: &str, response: &mut Response, until: Instant, position: &mut Position) -> anyhow::Result<bool> {
        let (mut buffer, mut looked) = (Vec::new(), 0);
        loop {
            let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await else { return Ok(false) };
            buffer.extend_from_slice(&chunk);
            let mut begin = 0;
            while let Some(length) = buffer[looked..].windows(2).position(|pair| pair == b"\n\n") {
                let end = looked + length + 2;
                let is_last = self.note(job, &buffer[begin..end], position)?;
                (begin, looked) = (end, end);
                if is_last {
                    ensure!(end == buffer.len(), "more after the end");
                    return Ok(true);
                }
            }
            buffer.drain(..begin);
            looked = buffer.len().saturating_sub(1);
        }
    }

    /// Whether an event is the last one.
    fn note(&self, job: &str, block: &[u8], position: &mut Position) -> anyhow::Result<bool> {
        let text = std::str::from_utf8(block)?;
        let Some(rest) = text.strip_prefix("id: ") else {
            if text.starts_with("event: resync") {
                self.resyncs.fetch_add(1, Ordering::Relaxed);
                position.begins_anew = true;
            }
            return Ok(false);
        };
        let (id, rest) = rest.split_once('\n').context("a line")?;
        let id: EventId = id.parse()?;
        let before = *position;
        ensure!(position.go_on(id), "{id} after {before:?}: {text}");
        self.events.fetch_add(1, Ordering::Relaxed);
        let mut known = self.known();
        let one = known.entry((job.to_owned(), id)).or_insert_with(|| block.to_vec());
        ensure!(one == block, "{id} is\n{text}and others were told\n{}", String::from_utf8_lossy(one));
        Ok(["job.completed\n", "job.failed\n", "job.cancelled\n"].iter().any(|kind| rest.starts_with(&format!("event: {kind}"))))
    }

    /// What a job said in its last attempt, and the job as its last event has it.
    pub(super) fn told(&self, job: &str) -> anyhow::Result<(String, Value)> {
        let known = self.known();
        let all: Vec<_> = known.range((job.to_owned(), EventId::first(0))..).take_while(|((whose, _), _)| whose == job).collect();
        let attempt = all.last().context("nobody was told anything")?.0.1.attempt;
        let (mut text, mut job) = (String::new(), Value::Null);
        for (n, (_, block)) in all.iter().filter(|((_, id), _)| id.attempt == attempt).enumerate() {
            let data = std::str::from_utf8(block)?.lines().find_map(|line| line.strip_prefix("data: ")).context("data")?;
            let event: Value = serde_json::from_str(data)?;
            ensure!(event["id"] == format!("{attempt}-{n}"), "{} is number {n}", event["id"]);
            if event["type"] == "text.delta" {
                text.push_str(event["text"].as_str().context("a text")?);
            }
            job = event["job"].clone();
        }
        Ok((text, job))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(String, EventId), Vec<u8>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to leave a server alone that said it lacks something now: somewhere up to twice the time it gave. Whoever is
/// turned away and asks again at once keeps a server busy with turning away, and it never gets well.
pub(super) fn asked_to_wait(answer: &Response, random: &mut Rng) -> Option<Duration> {
    let after = answer.headers().get(RETRY_AFTER).filter(|_| answer.status() == StatusCode::SERVICE_UNAVAILABLE)?;
    let secs: u64 = after.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(2 * secs).mul_f64(random.f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of these ids was what came next.
    fn went_on(position: &mut Position, ids: &[&str]) -> Vec<bool> {
        ids.iter().map(|id| position.go_on(id.parse().expect("an id"))).collect()
    }

    #[test]
    fn a_hole_a_repeat_and_a_step_back_are_seen() {
        for (ids, is_right) in [
            (["1-0", "1-1", "2-0"], [true; 3]),
            (["1-0", "1-2", "1-3"], [true, false, true]),
            (["1-0", "1-0", "1-1"], [true, false, true]),
            (["2-0", "1-1", "2-1"], [true, false, false]),
            (["1-1", "1-2", "2-1"], [false, true, false]),
        ] {
            assert_eq!(went_on(&mut Position::default(), &ids), is_right, "{ids:?}");
        }
    }

    #[test]
    fn who_lost_its_place_begins_an_attempt_anew() {
        for (ids, is_right) in [(["1-0", "1-1"], [true, true]), (["2-0", "2-1"], [true, true]), (["1-4", "1-5"], [false, true])] {
            let mut position = Position { last: Some("1-3".parse().expect("an id")), begins_anew: true };
            assert_eq!(went_on(&mut position, &ids), is_right, "{ids:?}");
        }
    }
}
