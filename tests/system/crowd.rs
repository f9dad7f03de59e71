//! Many readers that come and go over two servers while jobs stream: each event is the same for all of them, and
//! none of them misses one. Afterwards each job's text is what its result says.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shared::{config::Env, event::EventId};
use tests::{
    client::Client,
    servers::Kind,
    system::{Cli, PATIENCE, System},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

/// What runs, again and again, until the time is over: slow, in a flood, in large pieces, with pauses for thought.
const PROMPTS: [&str; 5] =
    ["slow:120:0.05", "@chunk=12 flood:4000", "@chunk=20000 grow:200000", "@delay=0.02 @chunk=3000 grow:150000", "think:Not at all."];

/// How many come and go.
const READERS: u64 = 200;
/// For how long they come and go.
const TIME: Duration = Duration::from_secs(6);
/// How long after the last jobs there are new ones.
const PAUSE: Duration = Duration::from_secs(3);

/// With the `SEED` of a run, its readers do the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_readers_that_come_and_go_miss_nothing() -> anyhow::Result<()> {
    let seed = Env::of_process().text("SEED").map_or_else(|| RandomState::new().hash_one(()), |seed| seed.parse().expect("a number"));
    println!("SEED={seed}");
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (one, other) = (system.api().await?, system.api().await?);
    let (mut doomed, _worker) = (system.worker().await?, system.worker().await?);
    let mut successor = None;
    let end = Instant::now() + TIME;
    let (jobs, listing) = watch::channel(Vec::new());
    let crowd = Arc::new(Crowd { servers: [one.client.clone(), other.client.clone()], jobs: listing, end, known: Mutex::default() });

    let mut reading = JoinSet::new();
    for number in 0..READERS {
        reading.spawn(crowd.clone().read(Random(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    }
    let killed = end - TIME * 2 / 3;
    let (mut submitted, mut sum) = (Vec::new(), Tally::default());
    while Instant::now() < end {
        for prompt in PROMPTS {
            let id = submit(&one.client, prompt, &mut sum).await?;
            jobs.send_modify(|jobs| jobs.push(id.clone()));
            submitted.push(id);
        }
        let next = (Instant::now() + PAUSE).min(end);
        if successor.is_none() && killed < next {
            sleep_until(killed).await;
            // In the middle of what it runs.
            let name = doomed.said("Joined as").await?;
            loop {
                let id = submit(&one.client, PROMPTS[0], &mut sum).await?;
                jobs.send_modify(|jobs| jobs.push(id.clone()));
                submitted.push(id.clone());
                one.client.events(&id, None).await?.until("text.delta", &mut Vec::new()).await?;
                let job = one.client.job(&id).await?;
                if name.contains(job["worker_id"].as_str().context("a worker")?) {
                    break;
                }
            }
            doomed.kill().await?;
            successor = Some(system.worker().await?);
        }
        sleep_until(next).await;
    }
    drop(jobs);
    while let Some(read) = timeout(PATIENCE * 2, reading.join_next()).await.context("a reader reads for ever")? {
        let tally = read??;
        sum.events += tally.events;
        sum.connections += tally.connections;
        sum.ends += tally.ends;
        sum.refused += tally.refused;
    }

    let mut attempts = 0;
    for id in &submitted {
        let job = other.client.ended(id).await?;
        attempts = attempts.max(job["attempt"].as_u64().context("an attempt")?);
        crowd.judge(id, &job).await?;
    }
    println!("{} jobs, {sum:?}", submitted.len());
    for line in [&one, &other].iter().flat_map(|api| api.process.log().lines().map(str::to_owned).collect::<Vec<_>>()) {
        if line.contains("WARN") || line.contains("ERROR") {
            println!("{line}");
        }
    }
    assert!(attempts > 1, "no attempt was lost");
    assert!(sum.connections > 2 * READERS && sum.ends >= READERS, "{sum:?}");
    // Two cores may not bear all of it at once, but most of it.
    assert!(sum.refused < sum.connections / 4, "{sum:?}");
    Ok(())
}

/// Submit a job, again where the server has more to do than it can.
async fn submit(client: &Client, prompt: &str, tally: &mut Tally) -> anyhow::Result<String> {
    loop {
        let answer = client.request(Method::POST, "/api/chat").json(&json!({"message": prompt})).send().await?;
        match answer.status() {
            StatusCode::SERVICE_UNAVAILABLE => {
                tally.refused += 1;
                sleep(Duration::from_secs(1)).await;
            }
            StatusCode::ACCEPTED => return Ok(answer.json::<Value>().await?["id"].as_str().context("an id")?.to_owned()),
            status => bail!("{status}"),
        }
    }
}

/// What all readers share.
struct Crowd {
    servers: [Client; 2],
    jobs: watch::Receiver<Vec<String>>,
    end: Instant,
    /// Each event that anybody was told, as it came.
    known: Mutex<BTreeMap<(String, EventId), Vec<u8>>>,
}

/// What readers did, and how often they or who sends jobs were sent away.
#[derive(Debug, Default)]
struct Tally {
    events: u64,
    connections: u64,
    ends: u64,
    refused: u64,
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
            if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                // More than this machine bears. Whoever is sent away honestly comes again.
                tally.refused += 1;
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            if response.status() == StatusCode::NO_CONTENT {
                ensure!(is_over, "sent away after {last:?}");
                return Ok(());
            }
            ensure!(response.status() == StatusCode::OK && !is_over, "{} after {last:?}", response.status());
            // About a second, and sometimes none at all; to the end once the time is over.
            let life = Duration::from_millis(u64::try_from(random.below(2_000))?);
            let until = Instant::now() + if Instant::now() < self.end { life } else { PATIENCE };
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
