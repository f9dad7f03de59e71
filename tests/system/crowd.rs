//! Many readers that come and go over two servers while jobs stream: each event is the same for all of them, and
//! none of them misses one. Afterwards each job's text is what its result says.

#![expect(clippy::print_stdout, reason = "a run says what it did")]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use shared::{config::Env, event::EventId};
use tests::{
    client::Client,
    servers::Kind,
    system::{Cli, PATIENCE, System},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout, timeout_at},
};

/// What runs, again and again, until the time is over: slow, in a flood, in large pieces, with pauses for thought.
const PROMPTS: [&str; 5] =
    ["slow:120:0.05", "@chunk=12 flood:4000", "@chunk=20000 grow:1500000", "@delay=0.01 @chunk=3000 grow:1200000", "think:Not at all."];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_readers_that_come_and_go_miss_nothing() -> anyhow::Result<()> {
    crowd(200, Duration::from_secs(6)).await
}

/// `scripts/test --run-ignored only -E 'test(five_hundred)'`; with the `SEED` of a run, its readers do the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes more than a minute, and all of the machine"]
async fn five_hundred_readers_that_come_and_go_for_a_minute_miss_nothing() -> anyhow::Result<()> {
    crowd(500, Duration::from_mins(1)).await
}

async fn crowd(readers: u64, time: Duration) -> anyhow::Result<()> {
    let seed = Env::of_process().text("SEED").map_or_else(|| RandomState::new().hash_one(()), |seed| seed.parse().expect("a number"));
    println!("SEED={seed}");
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (one, other) = (system.api().await?, system.api().await?);
    let (mut doomed, _worker) = (system.worker().await?, system.worker().await?);
    let end = Instant::now() + time;
    let (jobs, listing) = watch::channel(Vec::new());
    let crowd = Arc::new(Crowd { servers: [one.client.clone(), other.client.clone()], jobs: listing, end, known: Mutex::default() });

    let mut reading = JoinSet::new();
    for number in 0..readers {
        reading.spawn(crowd.clone().read(Random(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    }
    let killed = end - time * 2 / 3;
    let mut submitted = Vec::new();
    let mut worker_lives = true;
    while Instant::now() < end {
        for prompt in PROMPTS {
            let id = one.client.say(prompt).await?;
            jobs.send_modify(|jobs| jobs.push(id.clone()));
            submitted.push(id);
        }
        if worker_lives && Instant::now() >= killed {
            doomed.kill().await?;
            worker_lives = false;
        }
        let next = (Instant::now() + Duration::from_secs(3)).min(end);
        // The wave, or the death of the worker in its middle.
        sleep_until(if worker_lives && Instant::now() < killed { next.min(killed) } else { next }).await;
    }
    drop(jobs);
    let mut sum = Tally::default();
    while let Some(read) = timeout(PATIENCE * 2, reading.join_next()).await.context("a reader reads for ever")? {
        let tally = read??;
        sum = Tally { events: sum.events + tally.events, connections: sum.connections + tally.connections, ends: sum.ends + tally.ends };
    }

    let mut attempts = 0;
    for id in &submitted {
        let job = other.client.ended(id).await?;
        attempts = attempts.max(job["attempt"].as_u64().context("an attempt")?);
        crowd.judge(id, &job).await?;
    }
    println!("{} jobs, {} streams, {} events, {} ends", submitted.len(), sum.connections, sum.events, sum.ends);
    assert!(attempts > 1, "no attempt was lost");
    assert!(sum.connections > 2 * readers && sum.ends >= readers, "{sum:?}");
    Ok(())
}

/// What all readers share.
struct Crowd {
    servers: [Client; 2],
    jobs: watch::Receiver<Vec<String>>,
    end: Instant,
    /// Each event that anybody was told, as it came.
    known: Mutex<BTreeMap<(String, EventId), Vec<u8>>>,
}

/// What a reader did.
#[derive(Debug, Default)]
struct Tally {
    events: u64,
    connections: u64,
    ends: u64,
}

impl Crowd {
    /// Read one job after another, each to its end.
    async fn read(self: Arc<Self>, mut random: Random) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        let mut jobs = self.jobs.clone();
        while tally.ends == 0 || Instant::now() < self.end {
            jobs.wait_for(|jobs| !jobs.is_empty()).await.context("no job at all")?;
            let job = {
                let jobs = jobs.borrow();
                // One of the newest: most of them go on.
                jobs[jobs.len() - 1 - random.below(jobs.len().min(5))].clone()
            };
            self.read_one(&job, &mut random, &mut tally).await.with_context(|| format!("reading `{job}`"))?;
            tally.ends += 1;
        }
        Ok(tally)
    }

    async fn read_one(&self, job: &str, random: &mut Random, tally: &mut Tally) -> anyhow::Result<()> {
        let (mut last, mut is_over) = (None, false);
        loop {
            let server = &self.servers[random.below(2)];
            let mut request = server.request(Method::GET, &format!("/api/jobs/{job}/events"));
            if let Some(last) = last {
                request = request.header("last-event-id", EventId::to_string(&last));
            }
            let mut response = timeout(PATIENCE, request.send()).await.context("no answer")??;
            tally.connections += 1;
            if response.status() == StatusCode::NO_CONTENT {
                ensure!(is_over, "sent away after {last:?}");
                return Ok(());
            }
            ensure!(response.status() == StatusCode::OK && !is_over, "{} after {last:?}", response.status());
            // About a second, and sometimes none at all.
            let until = Instant::now() + Duration::from_millis(u64::try_from(random.below(2_000))?);
            is_over = self.take(job, &mut response, until, &mut last, tally).await?;
        }
    }

    /// Take what comes until the connection breaks. Whether the job has ended.
    async fn take(
        &self,
        job: &str,
        response: &mut Response,
        until: Instant,
        last: &mut Option<EventId>,
        tally: &mut Tally,
    ) -> anyhow::Result<bool> {
        let (mut buffer, mut looked) = (Vec::new(), 0);
        loop {
            let Ok(chunk) = timeout_at(until, response.chunk()).await else { return Ok(false) };
            let Some(chunk) = chunk? else { bail!("the stream ended after {last:?}") };
            buffer.extend_from_slice(&chunk);
            let mut begin = 0;
            while let Some(length) = buffer[looked..].windows(2).position(|pair| pair == b"\n\n") {
                let end = looked + length + 2;
                let block = &buffer[begin..end];
                (begin, looked) = (end, end);
                if let Some(is_terminal) = self.note(job, block, last)? {
                    tally.events += 1;
                    if is_terminal {
                        ensure!(end == buffer.len(), "more after the end");
                        ensure!(timeout(PATIENCE, response.chunk()).await.context("no end")??.is_none(), "more after the end");
                        return Ok(true);
                    }
                }
            }
            buffer.drain(..begin);
            looked = buffer.len().saturating_sub(1);
        }
    }

    /// Whether an event is the last one; `None` for what has no number.
    fn note(&self, job: &str, block: &[u8], last: &mut Option<EventId>) -> anyhow::Result<Option<bool>> {
        let text = std::str::from_utf8(block)?;
        let Some(rest) = text.strip_prefix("id: ") else {
            ensure!(!text.starts_with("event: resync"), "nothing was lost: {text}");
            return Ok(None);
        };
        let (id, rest) = rest.split_once('\n').context("a line")?;
        let id: EventId = id.parse()?;
        ensure!(id.follows(*last), "{id} after {last:?}");
        *last = Some(id);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let one = known.entry((job.to_owned(), id)).or_insert_with(|| block.to_vec());
        ensure!(one == block, "{id} is not what others were told");
        Ok(Some(["job.completed\n", "job.failed\n", "job.cancelled\n"].iter().any(|kind| rest.starts_with(&format!("event: {kind}")))))
    }

    /// Whether what readers were told of a job that ended is all of it, and its text that of the result.
    async fn judge(&self, id: &str, job: &Value) -> anyhow::Result<()> {
        assert_eq!(job["status"], "completed", "{job}");
        // Of a job that nobody read to its end there is nobody to ask.
        let (mut last, mut tally) = (None, Tally::default());
        let mut response = self.servers[0].request(Method::GET, &format!("/api/jobs/{id}/events")).send().await?;
        ensure!(self.take(id, &mut response, Instant::now() + PATIENCE, &mut last, &mut tally).await?, "not to its end");
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (_, block) in known.iter().filter(|((job, at), _)| job == id && last.is_some_and(|last| at.attempt == last.attempt)) {
            let data = std::str::from_utf8(block)?.lines().find_map(|line| line.strip_prefix("data: ")).context("data")?;
            let event: Value = serde_json::from_str(data)?;
            if event["type"] == "text.delta" {
                text.push_str(event["text"].as_str().context("a text")?);
            }
        }
        ensure!(text == job["result"]["text"].as_str().context("a result")?, "another text than the result's");
        Ok(())
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from(mixed >> 33).unwrap_or_default() % bound
    }
}
