//! Every process of a system replaced, one after the other, while it is at work: nobody notices.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    client::Client,
    servers::Kind,
    system::{Api, Cli, PATIENCE, Running, System},
};
use tokio::time::{interval, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often somebody looks which api is ready; well within [`DELAY`].
const LOOK: Duration = Duration::from_millis(100);
/// How long an api that was told to stop serves on.
const DELAY: &str = "1s";
/// How many clients there are.
const CLIENTS: usize = 4;

/// What a load balancer knows.
#[derive(Clone, Default)]
struct Balancer {
    apis: Arc<Mutex<Vec<Client>>>,
    ready: Arc<Mutex<Vec<Client>>>,
    turns: Arc<AtomicU32>,
}

impl Balancer {
    fn set(&self, apis: &[&Api]) {
        *self.apis.lock().unwrap_or_else(PoisonError::into_inner) = apis.iter().map(|api| api.client.clone()).collect();
    }

    /// Look who is ready, again and again.
    async fn watch(self) {
        let mut looks = interval(LOOK);
        loop {
            looks.tick().await;
            let apis = self.apis.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut ready = Vec::new();
            for api in apis {
                let answer = api.request(Method::GET, "/health/ready").send().await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    ready.push(api);
                }
            }
            *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
        }
    }

    /// One that is ready, in turn.
    fn choose(&self) -> anyhow::Result<Client> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turns.fetch_add(1, Ordering::Relaxed) as usize;
        let count = ready.len();
        ready.get(turn.checked_rem(count).unwrap_or_default()).cloned().context("no api is ready")
    }

    async fn await_ready(&self, count: usize) -> anyhow::Result<()> {
        let mut looks = interval(LOOK);
        let seen = async {
            while self.ready.lock().unwrap_or_else(PoisonError::into_inner).len() != count {
                looks.tick().await;
            }
        };
        timeout(PATIENCE, seen).await.with_context(|| format!("there never were {count} apis ready"))
    }
}

/// Send jobs and wait for their ends until `stop`; how many there were.
async fn work(balancer: Balancer, stop: CancellationToken) -> anyhow::Result<u32> {
    let mut count = 0;
    while !stop.is_cancelled() {
        let id = balancer.choose()?.submit(json!({"message": "slow:10:0.03"})).await?;
        let job = loop {
            let path = format!("/api/jobs/{id}?wait=5");
            let answer = balancer.choose()?.request(Method::GET, &path).send().await?;
            let status = answer.status();
            let job: Value = answer.json().await?;
            ensure!(status == StatusCode::OK, "{status}: {job}");
            if !matches!(job["status"].as_str(), Some("queued" | "running")) {
                break job;
            }
        };
        ensure!(job["status"] == "completed" && job["attempt"] == 1, "{job}");
        count += 1;
    }
    Ok(count)
}

async fn retire(process: &mut Running) -> anyhow::Result<()> {
    process.signal(Signal::TERM)?;
    ensure!(process.ended().await?, "{}", process.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_replaced_and_no_request_fails_and_no_job_runs_twice() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("DRAIN_DELAY", DELAY).with("MAX_WORKERS", "4");
    let mut apis = [system.api().await?, system.api().await?];
    let mut workers = [system.worker().await?, system.worker().await?];
    let (balancer, stop, tasks) = (Balancer::default(), CancellationToken::new(), TaskTracker::new());
    balancer.set(&[&apis[0], &apis[1]]);
    let watching = tokio::spawn(balancer.clone().watch());
    balancer.await_ready(2).await?;
    let working: Vec<_> = (0..CLIENTS).map(|_| tasks.spawn(work(balancer.clone(), stop.clone()))).collect();

    for worker in &mut workers {
        retire(worker).await?;
        *worker = system.worker().await?;
    }
    for n in 0..2 {
        retire(&mut apis[n].process).await?;
        apis[n] = system.api().await?;
        balancer.set(&[&apis[0], &apis[1]]);
        balancer.await_ready(2).await?;
    }

    stop.cancel();
    let mut count = 0;
    for worked in working {
        count += worked.await??;
    }
    watching.abort();
    assert!(count > 10, "{count}");
    assert_eq!(system.database.count("jobs WHERE state <> 'completed' OR attempt <> 1 OR failures > 0 OR reclaims > 0").await?, 0);
    assert_eq!(system.database.count("jobs").await?, i64::from(count));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_was_told_to_stop_serves_on_until_others_have_noticed() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("DRAIN_DELAY", "2s");
    let (mut api, _worker) = (system.api().await?, system.worker().await?);

    api.process.signal(Signal::TERM)?;
    api.process.said("Told to stop").await?;

    let ready = api.client.request(Method::GET, "/health/ready").send().await?;
    assert_eq!((ready.status(), ready.json::<Value>().await?["code"].clone()), (StatusCode::SERVICE_UNAVAILABLE, json!("draining")));
    // On a connection of its own.
    let client = Client::new(api.client.base(), &api.key);
    assert_eq!(client.ended(&client.say("say:late").await?).await?["result"]["text"], "late");
    assert!(api.process.ended().await?, "{}", api.process.log());
    Ok(())
}
