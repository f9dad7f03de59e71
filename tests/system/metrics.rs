//! What the real processes say of themselves: their metrics, and whether they are ready.

use anyhow::{Context as _, ensure};
use reqwest::{Method, Response, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    client::Client,
    exposition::{self, Family, value},
    servers::Kind,
    system::{Cli, Running, System},
};

/// Where a worker's own pages are.
pub async fn address_of(worker: &mut Running) -> anyhow::Result<String> {
    let line = worker.said("Answering on http://").await?;
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    Ok(address.context("an address")?.to_owned())
}

/// A client of the pages of the worker at `address`.
pub fn pages_of(address: &str) -> Client {
    Client::new(&format!("http://{address}"), "no key")
}

async fn get(client: &Client, path: &str) -> anyhow::Result<Response> {
    Ok(client.request(Method::GET, path).send().await?)
}

async fn metrics(client: &Client) -> anyhow::Result<Vec<Family>> {
    let page = get(client, "/health/metrics").await?.error_for_status()?;
    assert_eq!(page.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let page = page.text().await?;
    let families = exposition::parse(&page)?;
    exposition::check(&families)?;
    for family in &families {
        let (name, documented) = (family.name.as_str(), include_str!("../../docs/operations.md"));
        // A row may name what differs at the end alone.
        let of_row = name.rsplit_once("_connections_").map_or(name.to_owned(), |(start, _)| format!("{start}_connections_open"));
        ensure!(documented.contains(&format!("`{of_row}`")), "`{name}` is not in docs/operations.md");
    }
    Ok(families)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_leave_their_traces_in_the_metrics_of_both() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0").with("MAX_WORKERS", "1");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let pages = pages_of(&address_of(&mut worker).await?);
    api.client.chat("say:hello").await?.rest().await?;
    // The worker has one place: once the second job has it, all of the first is counted.
    let mut second = api.client.chat("slow:40:0.05").await?;
    second.until("text.delta", &mut Vec::new()).await?;

    let of_worker = metrics(&pages).await?;
    for (name, expected) in [
        ("claude_worker_joined", 1.0),
        ("claude_worker_slots", 1.0),
        ("claude_worker_attempts_running", 1.0),
        ("claude_worker_claim_wait_seconds_count", 2.0),
        ("claude_worker_attempt_duration_seconds_count", 1.0),
        ("claude_worker_cli_start_seconds_count", 1.0),
        ("claude_worker_first_text_seconds_count", 1.0),
    ] {
        assert_eq!(value(&of_worker, name, &[]), Some(expected), "{name}");
    }
    assert_eq!(value(&of_worker, "claude_worker_attempts_ended_total", &[("outcome", "completed")]), Some(1.0));
    assert!(value(&of_worker, "claude_worker_cli_processes", &[]).is_some_and(|living| living >= 1.0));
    assert!(value(&of_worker, "claude_worker_heartbeat_age_seconds", &[]).is_some_and(|age| age < 3.0));
    second.rest().await?;

    for n in 0..50 {
        get(&api.client, &format!("/{n}/nothing")).await?;
        get(&api.client, &format!("/api/jobs/job_{n}")).await?;
    }
    let of_api = metrics(&api.client).await?;
    assert_eq!(value(&of_api, "claude_api_http_requests_total", &[("route", "other"), ("status", "404")]), Some(50.0));
    assert_eq!(value(&of_api, "claude_api_http_requests_total", &[("route", "/api/jobs/{id}"), ("status", "404")]), Some(50.0));
    assert_eq!(value(&of_api, "claude_api_workers_alive", &[]), Some(1.0));
    assert_eq!(value(&of_api, "claude_api_workers_slots", &[]), Some(1.0));
    assert_eq!(value(&of_api, "claude_api_jobs_submitted_total", &[]), Some(2.0));
    assert!(value(&of_api, "process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 1e6));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_lives_and_is_not_ready() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let pages = pages_of(&address_of(&mut worker).await?);
    let ready = get(&pages, "/health/ready").await?;
    assert_eq!((ready.status(), ready.json::<Value>().await?), (StatusCode::OK, json!({"status": "ready"})));
    let mut stream = api.client.chat("slow:40:0.05").await?;
    stream.until("text.delta", &mut Vec::new()).await?;

    worker.signal(Signal::TERM)?;
    worker.said("Draining").await?;

    let ready = get(&pages, "/health/ready").await?;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json::<Value>().await?["down"], json!(["draining"]));
    assert_eq!(get(&pages, "/health/alive").await?.status(), StatusCode::OK);
    assert_eq!(value(&metrics(&pages).await?, "claude_worker_attempts_running", &[]), Some(1.0));
    assert_eq!(stream.rest().await?.last().map(|event| event.kind.clone()).as_deref(), Some("job.completed"));
    assert!(worker.ended().await?);
    assert!(get(&pages, "/health/alive").await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_for_its_stores_lives_and_is_not_ready() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0");
    system.redis.kill();
    let mut worker = system.worker_without_waiting()?;
    let pages = pages_of(&address_of(&mut worker).await?);
    worker.said("The redis is not reachable yet").await?;

    assert_eq!(get(&pages, "/health/alive").await?.status(), StatusCode::OK);
    let ready = get(&pages, "/health/ready").await?;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json::<Value>().await?["down"], json!(["stores", "membership"]));
    assert_eq!(value(&metrics(&pages).await?, "claude_worker_joined", &[]), Some(0.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_named_and_the_metrics_go_on() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let pages = pages_of(&address_of(&mut worker).await?);

    system.database.shut().await?;

    let ready: Value = get(&api.client, "/health/ready").await?.json().await?;
    assert_eq!((&ready["status"], &ready["detail"]), (&json!(503), &json!("the database does not answer")));
    let detailed: Value = get(&api.client, "/health/detailed").await?.error_for_status()?.json().await?;
    assert_eq!(
        (&detailed["status"], &detailed["database"], &detailed["redis"]),
        (&json!("degraded"), &json!({"status": "down"}), &json!({"status": "up"}))
    );
    assert_eq!(detailed["workers"], json!({"status": "unknown"}));
    assert_eq!(get(&pages, "/health/ready").await?.json::<Value>().await?["down"], json!(["database"]));
    let of_api = metrics(&api.client).await?;
    assert_eq!(value(&of_api, "claude_api_jobs_queued", &[]), None);
    assert_eq!(value(&of_api, "claude_api_redis_connected", &[]), Some(1.0));
    assert_eq!(value(&metrics(&pages).await?, "claude_worker_joined", &[]), Some(1.0));
    Ok(())
}
