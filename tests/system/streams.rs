//! Streams over faults of what carries them: Redis, the connections to it, and the API servers.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode, header};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    client::{Client, Event, Stream, assert_whole},
    hand::{Hand, TEST_BEAT, complete, say},
    proxy::Proxy,
    servers::{Kind, RedisServer},
    system::{Api, Cli, PATIENCE, System},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_when_announcements_are_lost_in_a_black_hole() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (proxy, direct) = (Proxy::to_redis(system.redis.socket()).await?, system.redis.url().to_owned());
    let system = system.with("REDIS_URL", &format!("redis://{}", proxy.address()));
    let api = system.api().await?;
    let system = system.with("REDIS_URL", &direct);
    let _worker = system.worker().await?;
    let mut stream = api.client.chat("slow:160:0.05").await?;
    let mut events = Vec::new();
    for _ in 0..5 {
        stream.until("text.delta", &mut events).await?;
    }

    assert_eq!(proxy.black_hole_subscribers(), 1);
    let (mut silence, mut heard) = (Duration::ZERO, Instant::now());
    while let Some(event) = stream.next().await? {
        silence = silence.max(heard.elapsed());
        heard = Instant::now();
        events.push(event);
    }

    // A probe each second that waits two for its answer; the look into the log after five is for what it cannot find.
    assert!((Duration::from_secs(1)..Duration::from_millis(4_800)).contains(&silence), "{silence:?}");
    assert_text(&events);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_when_redis_dies_and_comes_back_with_what_it_wrote_down() -> anyhow::Result<()> {
    let (mut system, mut stream, mut events, _processes) = in_the_middle("slow:100:0.05").await?;

    system.redis.kill();
    system.redis = RedisServer::start(system.directory())?;
    events.extend(stream.rest().await?);

    assert_text(&events);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_when_redis_dies_and_comes_back_with_nothing() -> anyhow::Result<()> {
    let (mut system, mut stream, mut events, _processes) = in_the_middle("slow:100:0.05").await?;

    system.redis.kill();
    std::fs::remove_dir_all(system.directory().join("appendonlydir"))?;
    system.redis = RedisServer::start(system.directory())?;
    events.extend(stream.rest().await?);

    assert_text(&events);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_when_redis_is_flushed_and_so_does_one_that_is_resumed_then() -> anyhow::Result<()> {
    let (system, mut stream, mut events, (api, _other)) = in_the_middle("slow:100:0.05").await?;
    let id = api.client.only_job().await?;

    system.redis.command(&["FLUSHALL"])?;
    // What comes next may have been under way before.
    while system.redis.command(&["KEYS", "j:*:log"])?.trim().is_empty() {
        stream.until("text.delta", &mut events).await?;
    }
    stream.until("text.delta", &mut events).await?;
    // Its worker has sent the log again: the position is kept.
    let at = events.iter().rev().nth(1).and_then(|event| event.id.clone()).context("an id")?;
    let mut resumed = api.client.events(&id, Some(&at)).await?;
    let before = events.len() - 1;
    events.extend(stream.rest().await?);

    assert_text(&events);
    let rest: Vec<Event> = resumed.rest().await?;
    assert_eq!(rest, events[before..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_told_to_stop_sends_its_readers_on_and_cuts_no_request_off() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (mut one, other, _worker) = (system.api().await?, system.api().await?, system.worker().await?);
    let id = one.client.say("slow:100:0.05").await?;
    let follow = format!("/api/jobs/{id}/events");
    let mut stream = one.client.request(Method::GET, &follow).send().await?;
    let mut said = String::new();
    while said.matches("event: text.delta").count() < 5 {
        said.push_str(std::str::from_utf8(&stream.chunk().await?.context("more of it")?)?);
    }
    let waiting = tokio::spawn(one.client.request(Method::GET, &format!("/api/jobs/{id}?wait=20")).send());
    let body = json!({"message": format!("say:{}", "long ".repeat(10_000))}).to_string();
    let mut upload = Upload::begin(&one, &body).await?;

    one.process.signal(Signal::TERM)?;
    one.process.said("connections and streams finish").await?;
    while let Some(chunk) = stream.chunk().await? {
        said.push_str(std::str::from_utf8(&chunk)?);
    }
    assert!(said.starts_with("retry: 2000\n\n") && said.ends_with("\n\n: the server is about to stop\n\n"), "{said}");
    let parted = Instant::now();
    let last = said.rmatch_indices("\nid: ").next().and_then(|(at, _)| said[at + 5..].split('\n').next()).context("an id")?;
    let mut resumed = other.client.events(&id, Some(last)).await?;
    let next = resumed.next().await?.context("an event")?;
    assert!(parted.elapsed() < Duration::from_secs(2), "{:?}", parted.elapsed());
    let waited = waiting.await??;
    assert_eq!(waited.status(), StatusCode::OK);
    assert_eq!(waited.json::<Value>().await?["id"], json!(id));
    assert!(upload.finish().await?.starts_with("HTTP/1.1 202 "));
    assert!(one.process.ended().await?, "{}", one.process.log());

    let mut events = vec![next];
    events.extend(resumed.rest().await?);
    let whole = other.client.events(&id, None).await?.rest().await?;
    let at = whole.iter().position(|event| event.id.as_deref() == Some(last)).context("it is one of them")?;
    assert_eq!(events, whole[at + 1..]);
    for event in &whole[..=at] {
        let id = event.id.as_deref().context("an id")?;
        assert_eq!(said.matches(&format!("\nid: {id}\n")).count(), 1, "{id}");
    }
    assert_text(&whole);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_outlive_redis_in_the_record_and_the_end_outlives_the_record_of_them() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("EVENT_RETENTION_SECS", "1s");
    let (mut api, store) = (system.api().await?, system.store().await?);
    let id = api.client.say("by hand").await?;
    let mut hand = Hand::join(&store, system.directory(), TEST_BEAT).await?;
    let lease = hand.take().await?;
    let mut stream = api.client.events(&id, None).await?;
    for piece in ["one ", "two ", "three"] {
        say(&lease, piece)?;
    }
    complete(lease, "one two three").await?;
    let events = stream.rest().await?;
    let events: Vec<Event> = events.into_iter().filter(|event| event.id.is_some()).collect();
    assert_eq!(assert_whole(&events), "one two three");

    system.redis.command(&["FLUSHALL"])?;
    for n in 0..=3 {
        let rest = api.client.events(&id, Some(&format!("1-{n}"))).await?.rest().await?;
        assert_eq!(rest, events[n + 1..], "after 1-{n}");
    }
    assert_eq!(api.client.events(&id, None).await?.rest().await?, events);
    assert_eq!(status(&api, &id, "1-4").await?, StatusCode::NO_CONTENT);

    // The next leader sweeps at once.
    system.database.none_left("jobs WHERE finished_at > (strftime('%s', 'now') - 2) * 1000").await?;
    api.process.signal(Signal::TERM)?;
    assert!(api.process.ended().await?);
    let api = system.api().await?;
    system.database.none_left("job_log").await?;

    let end = api.client.events(&id, None).await?.rest().await?;
    let [last] = end.as_slice() else { anyhow::bail!("not one event: {end:?}") };
    assert_eq!((last.kind.as_str(), &last.data["job"]), ("job.completed", &events[4].data["job"]));
    let behind = api.client.events(&id, Some("1-2")).await?.rest().await?;
    assert_eq!(
        behind.iter().map(|event| (event.kind.as_str(), event.id.is_some())).collect::<Vec<_>>(),
        [("resync", false), ("job.completed", true)]
    );
    assert_eq!((&behind[0].data["job"], &behind[1]), (&events[4].data["job"], last));
    assert_eq!(status(&api, &id, last.id.as_deref().context("an id")?).await?, StatusCode::NO_CONTENT);
    let path = format!("/api/jobs/{id}/events?after=1-2");
    let listed = api.client.request(Method::GET, &path).header(header::ACCEPT, "application/json").send().await?;
    assert_eq!(listed.status(), StatusCode::GONE);
    assert_eq!(listed.json::<Value>().await?["code"], "position_gone");
    Ok(())
}

/// A system whose one job has begun to answer, with what its stream told so far.
async fn in_the_middle(prompt: &str) -> anyhow::Result<(System, Stream, Vec<Event>, (Api, tests::system::Running))> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, worker) = (system.api().await?, system.worker().await?);
    let mut stream = api.client.chat(prompt).await?;
    let mut events = Vec::new();
    for _ in 0..5 {
        stream.until("text.delta", &mut events).await?;
    }
    Ok((system, stream, events, (api, worker)))
}

/// Assert that `events` are whole, those of one attempt, and say what the job has as its result.
fn assert_text(events: &[Event]) {
    let text = assert_whole(events);
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["attempt"], &job["result"]["text"]), (&json!("completed"), &json!(1), &json!(text)));
    assert!(events.iter().all(|event| event.kind != "resync"));
}

/// What a client is answered that has everything up to `last`.
async fn status(api: &Api, id: &str, last: &str) -> anyhow::Result<StatusCode> {
    let request = api.client.request(Method::GET, &format!("/api/jobs/{id}/events")).header("last-event-id", last);
    Ok(request.send().await?.status())
}

/// A request to submit a job that is on its way.
struct Upload {
    socket: TcpStream,
    rest: Vec<u8>,
}

impl Upload {
    /// Send one half of it, once the server asks for it.
    async fn begin(api: &Api, body: &str) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect(host(&api.client)).await?;
        let head = format!(
            "POST /api/chat HTTP/1.1\r\nhost: here\r\nx-api-key: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            api.key,
            body.len()
        );
        socket.write_all(head.as_bytes()).await?;
        // Then it is known to be more than a connection in the kernel's queue.
        let mut answer = vec![0; 25];
        timeout(PATIENCE, socket.read_exact(&mut answer)).await.context("no answer")??;
        ensure!(answer == b"HTTP/1.1 100 Continue\r\n\r\n", "{}", String::from_utf8_lossy(&answer));
        let (first, rest) = body.as_bytes().split_at(body.len() / 2);
        socket.write_all(first).await?;
        Ok(Self { socket, rest: rest.to_vec() })
    }

    /// Send the rest; the answer.
    async fn finish(&mut self) -> anyhow::Result<String> {
        self.socket.write_all(&self.rest).await?;
        let mut answer = String::new();
        timeout(PATIENCE, self.socket.read_to_string(&mut answer)).await.context("no answer")??;
        Ok(answer)
    }
}

/// Where the server of `client` listens.
fn host(client: &Client) -> &str {
    client.base().trim_start_matches("http://")
}
