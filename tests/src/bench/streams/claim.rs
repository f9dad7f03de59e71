//! How soon a worker has a job: from the call that submits it, and from the request over HTTP, until its row
//! says whose it is and the worker has its lease. Nothing else is under way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use shared::{
    id::UserId,
    job::{ChatSpec, NanoUsd},
    jobs::{Jobs, NewJob},
    lease::Lease,
    users::Users,
};
use tokio::time::sleep;

use crate::{
    bench::figures::{Figures, head, row},
    client::Client,
    hand::{Hand, complete},
    servers::Kind,
    system::{Cli, System, USER},
};

/// Rounds that are not counted.
const WARM_UP: usize = 10;
/// How long a worker has nothing to do before a job comes.
const PAUSE: Duration = Duration::from_millis(10);

/// The times of one job, since it was asked for.
struct Times {
    /// Until who asked for it had an answer.
    accepted: Duration,
    /// Until a worker had it.
    claimed: Duration,
}

/// The times of so many jobs, each way.
pub async fn table(rounds: usize) -> anyhow::Result<String> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
    let api = system.api().await?;
    let store = system.store().await?;
    let user = Users::new(&store).find_by_email(&USER.parse()?).await?.context("the api has a user")?.id;
    let jobs = Jobs::new(&store);
    let mut hand = Hand::join(&store, system.directory(), store.timing().beat).await?;
    let (mut called, mut posted) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + rounds {
        let (call, post);
        (hand, call) = timed(hand, submit(&jobs, user)).await.context("by a call")?;
        (hand, post) = timed(hand, request(&api.client)).await.context("over HTTP")?;
        if round >= WARM_UP {
            called.push(call);
            posted.push(post);
        }
    }
    let line = |name, times: &[Times], time: fn(&Times) -> Duration| {
        let figures = Figures::of(times.iter().map(time).collect()).context("no round was counted")?;
        anyhow::Ok(row(name, figures.columns(), 2))
    };
    Ok([
        head(),
        line("submit -> accepted", &called, |times| times.accepted)?,
        line("submit -> claimed", &called, |times| times.claimed)?,
        line("POST -> 202", &posted, |times| times.accepted)?,
        line("POST -> claimed", &posted, |times| times.claimed)?,
    ]
    .join("\n"))
}

/// The times of the job that `asking` asks for and `hand` takes; it answers the job's id.
async fn timed(mut hand: Hand, asking: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<(Hand, Times)> {
    // On a thread of its own, as a worker is.
    let taking = tokio::spawn(async move {
        let lease = hand.take().await;
        (hand, lease, Instant::now())
    });
    sleep(PAUSE).await;
    let asked = Instant::now();
    let id = asking.await?;
    let accepted = asked.elapsed();
    let (hand, lease, taken) = taking.await?;
    let lease: Lease = lease?;
    ensure!(lease.job().id.to_string() == id && lease.job().attempt == 1, "`{}` came in place of `{id}`", lease.job().id);
    Box::pin(complete(lease, "done")).await?;
    Ok((hand, Times { accepted, claimed: taken.duration_since(asked) }))
}

async fn submit(jobs: &Jobs, user: UserId) -> anyhow::Result<String> {
    let new = NewJob {
        user_id: user,
        api_key_id: None,
        session_id: None,
        spec: ChatSpec::text("by hand"),
        idempotency_key: None,
        trace: None,
        reservation: NanoUsd::default(),
    };
    Ok(Box::pin(jobs.submit(new)).await?.job.id.to_string())
}

async fn request(client: &Client) -> anyhow::Result<String> {
    client.say("by hand").await
}
