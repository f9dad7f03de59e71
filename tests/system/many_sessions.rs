//! Many conversations over several workers at once: each turn hears its own conversation and not one word of
//! another, and no two turns of one conversation overlap.

use std::time::Duration;

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

    let sessions = begin(&api.client, 100, 5).await?;
    // In the middle of it all, by its own measure.
    api.client.ended(&sessions[30].jobs[2]).await?;
    workers[0].kill().await?;

    timeout(PATIENCE, each_hears_itself(&api.client, &sessions)).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_conversations_on_sqlite() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("MAX_WORKERS", "4");
    let api = system.api().await?;
    let _workers = join_all((0..3).map(|_| system.worker())).await.into_iter().collect::<Result<Vec<_>, _>>()?;

    let sessions = begin(&api.client, 20, 5).await?;

    timeout(PATIENCE, each_hears_itself(&api.client, &sessions)).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_conversations_with_the_real_cli() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Real).await?.with("MAX_WORKERS", "2");
    let api = system.api().await?;
    let _workers = join_all((0..3).map(|_| system.worker())).await.into_iter().collect::<Result<Vec<_>, _>>()?;

    let sessions = begin(&api.client, 5, 3).await?;

    timeout(PATIENCE, each_hears_itself(&api.client, &sessions)).await?
}

/// A conversation and its turns, in the order they were sent.
struct Turns {
    name: usize,
    session: String,
    jobs: Vec<String>,
}

/// Begin so many conversations, a few at a time, and send all their turns without waiting for any.
async fn begin(client: &Client, sessions: usize, turns: usize) -> anyhow::Result<Vec<Turns>> {
    const AT_ONCE: usize = 4;
    let one = async |name: usize| {
        let session = client.session(json!({})).await?;
        let mut jobs = Vec::new();
        for turn in 1..=turns {
            jobs.push(client.submit(json!({"message": format!("recall:s{name}-t{turn}"), "session_id": session})).await?);
        }
        anyhow::Ok(Turns { name, session, jobs })
    };
    stream::iter((0..sessions).map(one)).buffered(AT_ONCE).try_collect().await
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
