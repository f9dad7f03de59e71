//! What the users of a run want: jobs that answer at once or take a while, some in conversations, some that crash, some
//! that are cancelled or may not be tried again; each asked for until somebody says that it was accepted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{client::Client, system::Cli};

use super::{
    Plan,
    cast::Cast,
    crowd::{Crowd, asked_to_wait},
};

/// A job that somebody wants.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) number: usize,
    pub(super) user: Client,
    body: Value,
    /// What it answers, if it does. `None`: something else in each run, so that an answer of another run shows.
    pub(super) text: Option<String>,
    /// When it is asked for, from the beginning of the run.
    at: Duration,
    /// How long after that it is cancelled.
    pub(super) cancelled: Option<Duration>,
    /// Whether it may not be tried again once it said something.
    pub(super) is_never_repeated: bool,
    /// Whether it is asked for at two servers at once.
    is_doubled: bool,
    readers: usize,
}

/// A job that was accepted.
pub(super) struct Accepted {
    pub(super) work: Work,
    pub(super) id: String,
}

/// Everything that is asked for.
pub(super) struct Load {
    asking: JoinSet<anyhow::Result<Accepted>>,
    open: Arc<Open>,
    /// How many are still to come.
    coming: watch::Receiver<usize>,
}

/// The jobs that somebody waits for, and what for.
type Open = Mutex<BTreeMap<usize, String>>;

/// How many jobs are open at most: the next one waits for its turn. Each has readers that come and go, so a machine that
/// falls behind would fall behind ever faster.
const MOST_OPEN: usize = 100;
/// How long a server may take to answer before it is asked again.
const ANSWER: Duration = Duration::from_secs(8);

impl Work {
    /// Think up the jobs of a plan.
    pub(super) async fn invent(plan: &Plan, cast: &Cast, users: &[Client], random: &mut Rng) -> anyhow::Result<Vec<Self>> {
        let mut sessions = Vec::new();
        for user in users {
            let client = user.of_server(&cast.base(0));
            sessions.push([client.session(json!({})).await?, client.session(json!({})).await?]);
        }
        let is_fake = matches!(plan.cli, Cli::Fake);
        Ok((0..plan.jobs)
            .map(|number| {
                let whose = random.usize(..users.len());
                let words = random.usize(1..40);
                let text = (0..words).fold(format!("job {number} says"), |text, word| format!("{text} w{word}"));
                let ledger = if is_fake { format!("@ledger={} ", cast.ledger(number).display()) } else { String::new() };
                let pace = format!("@chunk={} @delay={:.3}", random.usize(2..12), random.f64() * 0.03);
                let is_cancelled = random.u32(..100) < 8;
                let tells_time = is_fake && random.u32(..100) < 20;
                let message = if tells_time {
                    format!("{ledger}clock:{words}:0.02")
                } else if is_fake && random.u32(..100) < 6 {
                    format!("{ledger}@times=1 {pace} seq:cli:crash || say:{text}")
                } else if is_cancelled {
                    format!("{ledger}@chunk=4 @delay=0.04 say:{text}")
                } else {
                    format!("{ledger}{pace} say:{text}")
                };
                let mut body = json!({ "message": message });
                if random.u32(..100) < 15 {
                    body["session_id"] = json!(sessions[whose][random.usize(..2)]);
                }
                let is_never_repeated = random.u32(..100) < 10;
                if is_never_repeated {
                    body["retry_after_output"] = json!("never");
                }
                Self {
                    number,
                    user: users[whose].clone(),
                    body,
                    text: (!tells_time).then_some(text),
                    at: plan.time.mul_f64(random.f64()),
                    cancelled: is_cancelled.then(|| Duration::from_millis(random.u64(..1_500))),
                    is_never_repeated,
                    is_doubled: random.u32(..100) < 20,
                    readers: random.usize(1..3),
                }
            })
            .collect())
    }
}

impl Load {
    /// Let everything be asked for at its time.
    pub(super) fn start(cast: &Arc<Cast>, crowd: &Arc<Crowd>, works: Vec<Work>, begin: Instant, random: &mut Rng) -> Self {
        let (mut asking, open) = (JoinSet::new(), Arc::<Open>::default());
        let (room, (still, coming)) = (Arc::new(Semaphore::new(MOST_OPEN)), watch::channel(works.len()));
        for work in works {
            let (room, still, at) = (room.clone(), still.clone(), begin + work.at);
            let seen_to = see_to(cast.clone(), crowd.clone(), work, open.clone(), random.fork());
            asking.spawn(async move {
                sleep_until(at).await;
                let _room = room.acquire_owned().await?;
                still.send_modify(|still| *still -= 1);
                seen_to.await
            });
        }
        Self { asking, open, coming }
    }

    /// Wait until everything was asked for.
    pub(super) fn asked(&self) -> impl Future<Output = ()> + use<> {
        let mut coming = self.coming.clone();
        async move {
            // Whoever counts is gone when there is nothing more to count.
            let _ = coming.wait_for(|&still| still == 0).await;
        }
    }

    /// Everything, once all of it has ended and all readers know.
    pub(super) async fn done(mut self, patience: Duration) -> anyhow::Result<Vec<Accepted>> {
        let mut done = Vec::new();
        let all = async {
            while let Some(one) = self.asking.join_next().await {
                done.push(one??);
            }
            anyhow::Ok(())
        };
        let Ok(ended) = timeout(patience, all).await else {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let some: Vec<_> = open.iter().take(5).collect();
            bail!("{} jobs or their readers did not end within {patience:?}, among them {some:?}", open.len());
        };
        ended?;
        Ok(done)
    }
}

/// Ask for a job, follow it to its end, and cancel it where that is wanted.
async fn see_to(cast: Arc<Cast>, crowd: Arc<Crowd>, work: Work, open: Arc<Open>, mut random: Rng) -> anyhow::Result<Accepted> {
    let waits_for = |what: &str| {
        open.lock().unwrap_or_else(PoisonError::into_inner).insert(work.number, what.to_owned());
    };
    waits_for("an answer");
    let id = if work.is_doubled {
        let (mut one, mut other) = (random.fork(), random.fork());
        let (one, other) = tokio::try_join!(submit(&cast, &work, 0, &mut one), submit(&cast, &work, 1, &mut other))?;
        ensure!(one == other, "job {} was accepted twice under one key: `{one}` and `{other}`", work.number);
        one
    } else {
        let first = random.usize(..2);
        submit(&cast, &work, first, &mut random).await?
    };
    waits_for(&id);
    let mut readers = JoinSet::new();
    for _ in 0..work.readers {
        readers.spawn(crowd.clone().read(work.user.clone(), id.clone(), random.fork()));
    }
    if let Some(after) = work.cancelled {
        sleep(after).await;
        cancel(&cast, &work, &id, &mut random).await?;
    }
    while let Some(read) = readers.join_next().await {
        read?.with_context(|| format!("a reader of job {} (`{id}`)", work.number))?;
    }
    // A key that was used says the same job for ever.
    if work.is_doubled {
        let again = submit(&cast, &work, random.usize(..2), &mut random).await?;
        ensure!(again == id, "job {} has another id after its end: `{again}`, not `{id}`", work.number);
    }
    open.lock().unwrap_or_else(PoisonError::into_inner).remove(&work.number);
    Ok(Accepted { work, id })
}

async fn submit(cast: &Cast, work: &Work, first: usize, random: &mut Rng) -> anyhow::Result<String> {
    let path = "/api/chat";
    let asked = ask(cast, work, first, random, |user| {
        user.request(Method::POST, path).header("idempotency-key", format!("job-{}", work.number)).json(&work.body)
    });
    let job = asked.await.with_context(|| format!("submitting job {}", work.number))?;
    Ok(job["id"].as_str().context("an id")?.to_owned())
}

async fn cancel(cast: &Cast, work: &Work, id: &str, random: &mut Rng) -> anyhow::Result<()> {
    let path = format!("/api/jobs/{id}/cancel");
    ask(cast, work, 0, random, |user| user.request(Method::POST, &path)).await.with_context(|| format!("cancelling `{id}`"))?;
    Ok(())
}

/// Ask one server after the other until one answers.
async fn ask(
    cast: &Cast,
    work: &Work,
    first: usize,
    random: &mut Rng,
    request: impl Fn(&Client) -> reqwest::RequestBuilder,
) -> anyhow::Result<Value> {
    for turn in first.. {
        let user = work.user.of_server(&cast.base(turn));
        let mut pause = Duration::from_millis(random.u64(20..200));
        match request(&user).timeout(ANSWER).send().await {
            Ok(answer) if answer.status().is_success() => {
                // The connection may break in the middle of it.
                if let Ok(answer) = answer.json().await {
                    return Ok(answer);
                }
            }
            Ok(answer) => match asked_to_wait(&answer, random) {
                Some(wait) => pause = wait,
                None => bail!("{}: {}", answer.status(), answer.text().await.unwrap_or_default()),
            },
            // Dead, or it takes too long.
            Err(_) => {}
        }
        sleep(pause).await;
    }
    bail!("nobody answers")
}
