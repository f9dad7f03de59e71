//! One trace from the client to the CLI, for a collector and without one; and collectors that are of no use.

use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    client::{Event, assert_whole},
    collector::{Collector, Manner, Span},
    on_both_databases,
    servers::Kind,
    socket::Socket,
    system::{Api, Cli, Running, System},
};

on_both_databases!(
    one_trace_goes_from_the_client_through_api_and_worker_to_the_cli,
    without_a_collector_the_trace_reaches_the_cli_as_it_came
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Numbers of the standard.
const SERVER: i32 = 2;
const CONSUMER: i32 = 5;

/// A system that sends its spans to `collector`, as late as it can.
async fn system(kind: Kind, cli: Cli, collector: &Collector) -> anyhow::Result<System> {
    let system = System::start(kind, cli).await?;
    Ok(system.with("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).with("OTEL_BSP_SCHEDULE_DELAY", "600000"))
}

async fn one_trace_goes_from_the_client_through_api_and_worker_to_the_cli(kind: Kind) -> anyhow::Result<()> {
    let collector = Collector::start(Manner::Polite).await?;
    let system = system(kind, Cli::Real, &collector).await?.with("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven");
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);

    let seen = trace_in_cli(&api, TRACEPARENT).await?;
    let spans = stop(&mut api, &mut worker, &collector).await?;

    let accept = only(&spans, "POST /api/chat");
    assert_eq!((accept.service.as_str(), accept.kind), ("claude-api", SERVER));
    assert_eq!((accept.trace_id.as_str(), accept.parent.as_str()), (TRACE, CALLER));
    assert_eq!((accept.attributes["http.route"].as_str(), accept.attributes["http.response.status_code"].as_str()), ("/api/chat", "200"));
    let attempt = only(&spans, "attempt");
    assert_eq!((attempt.service.as_str(), attempt.kind), ("claude-worker", CONSUMER));
    assert_eq!((attempt.trace_id.as_str(), &attempt.parent), (TRACE, &accept.id));
    assert_eq!((attempt.attributes["job.attempt"].as_str(), attempt.attributes["outcome"].as_str()), ("1", "completed"));
    let mut parts: Vec<&Span> = spans.iter().filter(|span| span.parent == attempt.id).collect();
    parts.sort_by_key(|part| part.began);
    assert!(parts.iter().all(|part| part.trace_id == TRACE));
    assert_eq!(names(&parts), ["prepare", "start CLI", "first text", "answer", "end CLI", "settle"]);
    assert_eq!(seen, format!("00-{TRACE}-{}-01 vendor=1", attempt.id));
    assert!(collector.headers().iter().all(|headers| headers["x-tenant"] == "seven"));
    Ok(())
}

async fn without_a_collector_the_trace_reaches_the_cli_as_it_came(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    assert_eq!(trace_in_cli(&api, TRACEPARENT).await?, format!("{TRACEPARENT} vendor=1"));
    // What is malformed counts as absent.
    assert_eq!(trace_in_cli(&api, &TRACEPARENT.to_uppercase()).await?, "none none");
    Ok(())
}

#[tokio::test]
async fn a_request_that_belongs_to_no_trace_begins_one() -> anyhow::Result<()> {
    let collector = Collector::start(Manner::Polite).await?;
    let system = system(Kind::Sqlite, Cli::Fake, &collector).await?.with("OTEL_SERVICE_NAME", "mine");
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);

    for malformed in [None, Some("00-x-y-01")] {
        let mut request = api.client.request(Method::POST, "/api/chat");
        if let Some(malformed) = malformed {
            request = request.header("traceparent", malformed);
        }
        let job: Value = request.json(&json!({"message": "say:hi"})).send().await?.json().await?;
        api.client.ended(job["id"].as_str().expect("an id")).await?;
    }
    let spans = stop(&mut api, &mut worker, &collector).await?;

    let accepted: Vec<&Span> = spans.iter().filter(|span| span.name == "POST /api/chat").collect();
    assert_eq!(accepted.len(), 2);
    for accept in &accepted {
        assert_eq!(accept.parent, "");
        let attempt = spans.iter().find(|span| span.name == "attempt" && span.parent == accept.id).expect("an attempt");
        assert_eq!(attempt.trace_id, accept.trace_id);
    }
    assert_ne!(accepted[0].trace_id, accepted[1].trace_id);
    assert!(spans.iter().all(|span| span.service == "mine"));
    // Their ids are in no name, and nobody is told of who asks after the health.
    assert!(spans.iter().any(|span| span.name == "GET /api/jobs/{id}"));
    assert!(spans.iter().all(|span| !span.name.contains("job_") && !span.name.contains("health")));
    Ok(())
}

#[tokio::test]
async fn each_job_of_a_socket_is_a_trace_of_its_own() -> anyhow::Result<()> {
    let collector = Collector::start(Manner::Polite).await?;
    let system = system(Kind::Sqlite, Cli::Fake, &collector).await?;
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);
    let mut socket = Socket::connect(api.client.base(), &[("x-api-key", &api.key), ("traceparent", TRACEPARENT)]).await?;

    for _ in 0..2 {
        let accepted = socket.done(json!({"type": "chat", "message": "say:hi"})).await?;
        api.client.ended(accepted["job"]["id"].as_str().expect("an id")).await?;
    }
    socket.leave().await?;
    let said = api.process.said("Accepted job").await?;
    let spans = stop(&mut api, &mut worker, &collector).await?;

    let asked: Vec<&Span> = spans.iter().filter(|span| span.name == "chat /api/ws").collect();
    assert_eq!(asked.len(), 2);
    for asked in &asked {
        assert_eq!((asked.kind, asked.parent.as_str()), (SERVER, ""));
        assert_eq!(spans.iter().filter(|span| span.name == "attempt" && span.parent == asked.id).count(), 1);
    }
    assert_ne!(asked[0].trace_id, asked[1].trace_id);
    assert!(asked.iter().any(|asked| said.contains(&asked.trace_id)), "{said}");
    // The request that opened the socket is of the trace it came from.
    assert_eq!(only(&spans, "GET /api/ws").trace_id, TRACE);
    Ok(())
}

#[tokio::test]
async fn the_attempts_of_a_job_are_siblings_and_those_that_failed_say_so() -> anyhow::Result<()> {
    let collector = Collector::start(Manner::Polite).await?;
    let system = system(Kind::Sqlite, Cli::Fake, &collector).await?;
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);

    let id = api.client.say("cli:exit:3").await?;
    let job = api.client.ended(&id).await?;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(3)), "{job}");
    let spans = stop(&mut api, &mut worker, &collector).await?;

    let accept = only(&spans, "POST /api/chat");
    let mut attempts: Vec<&Span> = spans.iter().filter(|span| span.name == "attempt").collect();
    attempts.sort_by_key(|attempt| attempt.began);
    assert!(attempts.iter().all(|attempt| attempt.parent == accept.id && attempt.attributes["job.id"] == id));
    let told: Vec<_> = attempts.iter().map(|attempt| (attempt.attributes["outcome"].as_str(), attempt.is_failure)).collect();
    assert_eq!(told, [("retried", true), ("retried", true), ("failed", true)]);
    Ok(())
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_neither_jobs_nor_the_end() -> anyhow::Result<()> {
    let mut collector = Collector::start(Manner::Deaf).await?;
    let system = system(Kind::Sqlite, Cli::Fake, &collector).await?.with("OTEL_BSP_SCHEDULE_DELAY", "10");
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);
    api.client.ended(&api.client.say("say:one").await?).await?;
    collector.requested(2).await?;

    // Both wait for the collector by now.
    api.client.ended(&api.client.say("say:two").await?).await?;
    let told = Instant::now();
    for process in [&worker, &api.process] {
        process.signal(Signal::TERM)?;
    }
    assert!(worker.ended().await? && api.process.ended().await?);

    assert!(told.elapsed() < Duration::from_secs(8), "{:?}", told.elapsed());
    for log in [worker.whole_log().await?, api.process.whole_log().await?] {
        assert!(log.contains("The last spans did not reach the collector of traces"), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_collector_that_takes_nothing_is_complained_of_once() -> anyhow::Result<()> {
    let mut collector = Collector::start(Manner::Refusing).await?;
    let system = system(Kind::Sqlite, Cli::Fake, &collector).await?.with("OTEL_BSP_SCHEDULE_DELAY", "10");
    let mut api = system.api().await?;

    for refused in 1..=5 {
        api.client.get("/api/jobs").await?;
        collector.requested(refused).await?;
    }
    api.process.signal(Signal::TERM)?;
    let log = api.process.whole_log().await?;

    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("The collector of traces takes no spans")).collect();
    assert_eq!(complaints.len(), 1, "{log}");
    Ok(())
}

/// The trace that a tool of the CLI finds in its environment, for a job that came with `traceparent`.
async fn trace_in_cli(api: &Api, traceparent: &str) -> anyhow::Result<String> {
    let command = "echo ${TRACEPARENT:-none} ${TRACESTATE:-none}";
    let body = json!({"message": format!("tool:bash:{command}"), "tools": ["Bash"]});
    let request = api.client.request(Method::POST, "/api/chat").header("traceparent", traceparent).header("tracestate", "vendor=1");
    let answer: Value = request.header("prefer", "wait=60").json(&body).send().await?.error_for_status()?.json().await?;
    let events: Vec<Event> = api.client.events(answer["id"].as_str().expect("an id"), None).await?.rest().await?;
    assert_whole(&events);
    let finished = events.iter().find(|event| event.kind == "tool.finished").expect("the tool ran");
    Ok(finished.data["output"].as_str().expect("a text").trim().to_owned())
}

/// The spans of all, once both have stopped.
async fn stop(api: &mut Api, worker: &mut Running, collector: &Collector) -> anyhow::Result<Vec<Span>> {
    for process in [&*worker, &api.process] {
        process.signal(Signal::TERM)?;
    }
    assert!(worker.ended().await? && api.process.ended().await?);
    Ok(collector.spans())
}

fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    let [span] = found[..] else { panic!("not one `{name}` among {:?}", names(&spans.iter().collect::<Vec<_>>())) };
    span
}

fn names<'a>(spans: &[&'a Span]) -> Vec<&'a str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}
