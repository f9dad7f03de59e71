//! What the logs say of one request, from the api to the CLI: found by one word, whoever said it.

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    servers::Kind,
    system::{Cli, System},
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn all_that_is_logged_of_a_job_is_found_by_its_id_and_leads_to_its_request_and_its_worker() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("LOG_FORMAT", "json").with("LOG_LEVEL", "info,worker=debug");
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);

    let request = api.client.request(Method::POST, "/api/chat").header("x-request-id", "request-7").header("traceparent", TRACEPARENT);
    let job: Value = request.json(&json!({"message": "say:hi"})).send().await?.error_for_status()?.json().await?;
    let id = job["id"].as_str().expect("an id");
    api.client.ended(id).await?;
    for process in [&worker, &api.process] {
        process.signal(Signal::TERM)?;
    }

    let of_api = lines_of(id, &api.process.whole_log().await?);
    let of_worker = lines_of(id, &worker.whole_log().await?);
    assert!(of_api.iter().any(|line| line["message"] == format!("Accepted job `{id}`")), "{of_api:?}");
    assert!(of_api.iter().all(|line| line["request.id"] == "request-7"), "{of_api:?}");
    assert!(of_worker.len() >= 2, "{of_worker:?}");
    for line in &of_worker {
        let worker = line["worker.id"].as_str().unwrap_or_default();
        assert!(worker.starts_with("worker_") && line["attempt"] == 1, "{line}");
    }
    for line in of_api.iter().chain(&of_worker) {
        assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c", "{line}");
        assert!(["timestamp", "level", "message"].iter().all(|name| line[name].is_string()), "{line}");
    }
    Ok(())
}

/// The lines about a job. Every line of a log is one object.
fn lines_of(job: &str, log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}")));
    lines.filter(|line| line["job.id"] == job).collect()
}
