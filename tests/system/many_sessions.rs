//! Many conversations over several workers at once: each turn hears its own conversation and not one word of
//! another, and no two turns of one conversation overlap.

use std::{ops::Range, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use serde_json::{Value, json};
use tests::{
    client::Client,
    servers::Kind,
    system::{Cli, System},
};
use tokio::time::timeout;

/// Longer than all of it takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_conversations_of_five_turns_while_a_worker_is_killed() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("MAX_WORKERS", "4");
    let api = system.api().await?;
    let mut workers = join_all((0..3).map(|_| system.worker())).await.into_iter().collect::<Result<Vec<_>, _>>()?;

    let mut sessions = begin(&api.client, 0..100, 5).await?;
    // In the middle of it all, by its own measure.
    api.client.ended(&sessions[30].jobs[2]).await?;
    // A turn that is said slowly is caught, and its worker killed, whichever that is.
    let slow = begin_one(&api.client, 100, 3, "@chunk=1 @delay=0.2 ", "high").await?;
    let caught = slow.jobs[1].clone();
    sessions.push(slow);
    api.client.events(&caught, None).await?.until("text.delta", &mut Vec::new()).await?;
    let holder = api.client.job(&caught).await?["worker_id"].as_str().context("nobody runs it")?.to_owned();
    for worker in &mut workers {
        if worker.said("Joined as").await?.contains(&holder) {
            worker.kill().await?;
        }
    }

    timeout(PATIENCE, each_hears_itself(&api.client, &sessions)).await??;
    assert_eq!(api.client.job(&caught).await?["attempt"], 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_conversations_on_sqlite() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("MAX_WORKERS", "4");
    let api = system.api().await?;
    let _workers = join_all((0..3).map(|_| system.worker())).await.into_iter().collect::<Result<Vec<_>, _>>()?;

    let sessions = begin(&api.client, 0..20, 5).await?;

    timeout(PATIENCE, each_hears_itself(&api.client, &sessions)).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_conversations_with_the_real_cli() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Real).await?.with("MAX_WORKERS", "2");
    let api = system.api().await?;
    let _workers = join_all((0..3).map(|_| system.worker())).await.into_iter().collect::<Result<Vec<_>, _>>()?;

    let sessions = begin(&api.client, 0..5, 3).await?;

    timeout(PATIENCE, each_hears_itself(&api.client, &sessions)).await?
}

/// A conversation and its turns, in the order they were sent.
struct Turns {
    name: usize,
    session: String,
    jobs: Vec<String>,
}

/// Begin conversations of these names, a few at a time, and send all their turns without waiting for any.
async fn begin(client: &Client, names: Range<usize>, turns: usize) -> anyhow::Result<Vec<Turns>> {
    const AT_ONCE: usize = 4;
    stream::iter(names.map(|name| begin_one(client, name, turns, "", "normal"))).buffered(AT_ONCE).try_collect().await
}

/// Begin one conversation whose turns are said at this pace.
async fn begin_one(client: &Client, name: usize, turns: usize, pace: &str, priority: &str) -> anyhow::Result<Turns> {
    let session = client.session(json!({})).await?;
    let mut jobs = Vec::new();
    for turn in 1..=turns {
        let message = format!("{pace}recall:s{name}-t{turn}");
        jobs.push(client.submit(json!({"message": message, "session_id": session, "priority": priority})).await?);
    }
    Ok(Turns { name, session, jobs })
}

async fn each_hears_itself(client: &Client, sessions: &[Turns]) -> anyhow::Result<()> {
    for Turns { name, session, jobs } in sessions {
        let mut before = String::new();
        for (turn, job) in jobs.iter().enumerate() {
            let job = client.ended(job).await?;
            let word = format!("s{name}-t{}", turn + 1);
            before = if before.is_empty() { word } else { format!("{before} | {word}") };
            assert_eq!((&job["status"], &job["result"]["text"]), (&json!("completed"), &json!(before)), "{job}");
        }
        let list = client.get(&format!("/api/jobs?session_id={session}")).await?;
        let times = |field: &str| -> Vec<String> {
            let newest_first = list["data"].as_array().into_iter().flatten().rev();
            newest_first.map(|job: &Value| job[field].as_str().unwrap_or_default().to_owned()).collect()
        };
        let (started, finished) = (times("started_at"), times("finished_at"));
        assert_eq!(started.len(), jobs.len());
        // RFC 3339 of one length sorts as the times do.
        assert!(started.iter().skip(1).zip(&finished).all(|(next, end)| next >= end), "{started:?} {finished:?}");
    }
    Ok(())
}
