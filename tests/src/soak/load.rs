//! What clients do all day: jobs asked for and waited for, streams, one that is left and taken up again,
//! conversations that are begun, gone on with and deleted, and jobs that are cancelled. Each checks what it gets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep_until};

use crate::client::{Client, Event, assert_whole};

/// One round of what clients do.
const ROUND: [Errand; 18] = [
    Errand::Job,
    Errand::Stream,
    Errand::Job,
    Errand::Conversation,
    Errand::Job,
    Errand::Cancel,
    Errand::Job,
    Errand::Stream,
    Errand::Job,
    Errand::Return,
    Errand::Stream,
    Errand::Job,
    Errand::Conversation,
    Errand::Job,
    Errand::Cancel,
    Errand::Job,
    Errand::Stream,
    Errand::Job,
];
/// How many jobs that is, and how many turns a conversation has.
const JOBS: u32 = 20;
const TURNS: u64 = 2;
/// How many errands may be under way: more than that, and the machine does not carry the load.
const MOST: usize = 200;

/// Something a client does.
#[derive(Clone, Copy)]
enum Errand {
    /// A job, and its result by waiting for it.
    Job,
    /// A job whose events are followed.
    Stream,
    /// The same, but the client goes away and comes back.
    Return,
    /// A job that is cancelled once it runs.
    Cancel,
    /// A conversation of [`TURNS`] turns, which is deleted after them.
    Conversation,
}

/// The clients, at work.
pub struct Load {
    client: Client,
    rate: u32,
    begun: Instant,
    sent: u32,
    under_way: JoinSet<anyhow::Result<()>>,
    done: Arc<AtomicU64>,
}

impl Load {
    /// So many jobs a second, on a schedule that waits for nobody. It goes on while [`Self::go_on`] is asked.
    pub fn begin(client: &Client, rate: u32) -> Self {
        Self { client: client.clone(), rate, begun: Instant::now(), sent: 0, under_way: JoinSet::new(), done: Arc::default() }
    }

    /// How many jobs have ended.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How many errands are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Send out the next one once it is due, and see what became of those that are back. May be dropped.
    pub async fn go_on(&mut self) -> anyhow::Result<()> {
        let errands = u32::try_from(ROUND.len())?;
        let due = self.begun + Duration::from_secs(1) * JOBS * self.sent / (errands * self.rate);
        sleep_until(due.into()).await;
        while let Some(back) = self.under_way.try_join_next() {
            back??;
        }
        ensure!(self.under_way.len() < MOST, "{MOST} errands are under way: the load is not carried");
        let (n, errand) = (self.sent, ROUND[(self.sent % errands) as usize]);
        let (client, done) = (self.client.clone(), self.done.clone());
        self.under_way.spawn(async move {
            let jobs = errand.run(&client, n).await.with_context(|| format!("on errand {n}"))?;
            done.fetch_add(jobs, Ordering::Relaxed);
            Ok(())
        });
        self.sent += 1;
        Ok(())
    }

    /// Wait for those that are under way.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        while let Some(back) = self.under_way.join_next().await {
            back??;
        }
        Ok(())
    }
}

impl Errand {
    /// Do it; how many jobs it was.
    async fn run(self, client: &Client, n: u32) -> anyhow::Result<u64> {
        let answer = format!("errand {n}: \"naïve\" <b>&amp;</b> 🦀 and nothing lost");
        let message = format!("say:{answer}");
        match self {
            Self::Job => {
                let job = client.ended(&client.say(&message).await?).await?;
                is_answered(&job, &answer)?;
            }
            Self::Stream => {
                let events = client.chat(&message).await?.rest().await?;
                ensure!(assert_whole(&events) == answer, "the events say something else: {events:?}");
            }
            Self::Return => return_to(client).await?,
            Self::Cancel => cancel(client).await?,
            Self::Conversation => {
                converse(client, n).await?;
                return Ok(TURNS);
            }
        }
        Ok(1)
    }
}

async fn return_to(client: &Client) -> anyhow::Result<()> {
    let id = client.say("slow:3:1").await?;
    let mut events = Vec::new();
    let last = client.events(&id, None).await?.until("text.delta", &mut events).await?.id.context("a delta has an id")?;
    // The first stream is closed by now.
    events.extend(client.events(&id, Some(&last)).await?.rest().await?);
    let said = assert_whole(&events);
    let job = &events.last().context("a job has events")?.data["job"];
    is_answered(job, &said)
}

async fn cancel(client: &Client) -> anyhow::Result<()> {
    let id = client.say("slow:100:1").await?;
    let mut stream = client.events(&id, None).await?;
    let mut events = Vec::new();
    stream.until("job.started", &mut events).await?;
    client.cancel(&id).await?;
    events.extend(stream.rest().await?);
    assert_whole(&events);
    let last: &Event = events.last().context("a job has events")?;
    ensure!(last.kind == "job.cancelled", "a job that was cancelled ended with {last:?}");
    Ok(())
}

async fn converse(client: &Client, n: u32) -> anyhow::Result<()> {
    let session = client.session(json!({})).await?;
    let mut said = Vec::new();
    for turn in 0..TURNS {
        let word = format!("{n}-{turn}");
        let message = format!("recall:{word}");
        said.push(word);
        let job = client.submit(json!({"message": message, "session_id": session})).await?;
        is_answered(&client.ended(&job).await?, &said.join(" | "))?;
    }
    client.request(Method::DELETE, &format!("/api/sessions/{session}")).send().await?.error_for_status()?;
    Ok(())
}

fn is_answered(job: &Value, answer: &str) -> anyhow::Result<()> {
    ensure!(job["status"] == "completed" && job["result"]["text"] == answer && job["attempt"] == 1, "not as asked: {job}");
    Ok(())
}
