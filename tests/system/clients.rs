//! Streams through the programs and the proxies people use. The model says a piece only once the client has heard
//! the one before: whatever held an event back to send it with the next one would wait for ever.

use anyhow::{Context as _, ensure};
use reqwest::{Method, header};
use serde_json::{Value, json};
use tests::{
    client::{Client, Event, assert_whole},
    follower::Follower,
    nginx::{Nginx, reserve},
    proxy::Proxy,
    servers::Kind,
    system::{Api, Cli, Running, System},
};

/// A job of six pieces that are let out by the test, and what it answers.
const GATED: &str = "gated:6";
const ANSWER: &str = "tick 0 tick 1 tick 2 tick 3 tick 4 tick 5 ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_through_nginx_as_they_are_made_and_a_stream_goes_on_through_it() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let nginx = Nginx::documented(system.directory(), &address(&api), "")?;
    let client = Client::new(&nginx.url(), &api.key);
    let mut stream = client.chat(GATED).await?;
    let mut events = Vec::new();

    for n in 0..3 {
        system.mock.let_out(1);
        assert_eq!(stream.until("text.delta", &mut events).await?.data["text"], format!("tick {n} "));
    }
    drop(stream);
    let id = client.only_job().await?;
    let mut stream = client.events(&id, events.last().and_then(|event| event.id.as_deref())).await?;
    for n in 3..6 {
        system.mock.let_out(1);
        assert_eq!(stream.until("text.delta", &mut events).await?.data["text"], format!("tick {n} "));
    }
    events.extend(stream.rest().await?);

    assert_all(&api, &id, &events).await?;
    let last = events.last().and_then(|event| event.id.as_deref()).context("an id")?;
    let over = client.request(Method::GET, &format!("/api/jobs/{id}/events")).header("last-event-id", last).send().await?;
    assert_eq!(over.status(), 204);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_as_they_are_made_through_an_nginx_that_was_told_nothing() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let listener = reserve()?;
    // It asks in HTTP/1.0, whose answers it keeps until they fill a buffer.
    let servers = format!("server {{ listen {}; location / {{ proxy_pass {}; }} }}", listener.local_addr()?, api.client.base());
    let nginx = Nginx::start(system.directory(), listener, &servers)?;

    chat_with_curl(&system, &api, &nginx.url(), &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_as_they_are_made_through_an_nginx_that_compresses_them() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let nginx = Nginx::documented(system.directory(), &address(&api), "gzip on;\ngzip_proxied any;\ngzip_types *;")?;
    let words = ["--compressed", "--http1.1"];

    let curl = chat_with_curl(&system, &api, &nginx.url(), &words).await?;

    assert!(curl.head()?.contains("\r\ncontent-encoding: gzip\r\n"), "{}", curl.head()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_to_curl_as_they_are_made() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;

    let curl = chat_with_curl(&system, &api, api.client.base(), &["--http1.1"]).await?;

    assert_eq!(curl.words(), "HTTP/1.1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_over_http_2_without_tls_as_they_are_made() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;

    let curl = chat_with_curl(&system, &api, api.client.base(), &["--http2-prior-knowledge"]).await?;

    assert_eq!(curl.words(), "HTTP/2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_as_they_are_made_to_a_client_that_would_take_them_compressed() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let words = ["--header", "Accept-Encoding: gzip, br, zstd, deflate"];

    let curl = chat_with_curl(&system, &api, api.client.base(), &words).await?;

    let head = curl.head()?;
    assert!(head.contains("\r\ncontent-type: text/event-stream\r\n") && !head.contains("content-encoding"), "{head}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_eventsource_of_node_gets_every_event_once_over_a_broken_connection_and_stops() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let proxy = Proxy::start(address(&api).parse()?).await?;
    let id = api.client.say(GATED).await?;

    let follower = Follower::eventsource(system.directory(), &events_url(&proxy.url(), &id), &api.key)?;

    follow_over_a_cut(&system, &api, &proxy, &id, follower).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_httpx_sse_of_python_gets_every_event_once_over_a_broken_connection_and_stops() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let proxy = Proxy::start(address(&api).parse()?).await?;
    let id = api.client.say(GATED).await?;

    let follower = Follower::httpx_sse(system.directory(), &events_url(&proxy.url(), &id), &api.key)?;

    follow_over_a_cut(&system, &api, &proxy, &id, follower).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_eventsource_of_a_browser_gets_every_event_once_over_a_broken_connection_and_stops() -> anyhow::Result<()> {
    let (system, api, _worker) = start().await?;
    let site = Site::start(&system, &api)?;
    let proxy = Proxy::start(site.front.address()).await?;
    let id = api.client.say(GATED).await?;

    let steps = json!([{"page": proxy.url(), "url": events_url("", &id)}]);
    let follower = Follower::chromium(system.directory(), &steps)?;

    follow_over_a_cut(&system, &api, &proxy, &id, follower).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_pages_of_the_front_end_may_follow_from_another_origin() -> anyhow::Result<()> {
    let front = reserve()?;
    let (listed, stranger) = (format!("http://{}", front.local_addr()?), format!("http://localhost:{}", front.local_addr()?.port()));
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("FRONTEND_URL", &listed);
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let _site = Site::start_on(&system, &api, front)?;
    let id = api.client.say("say:hello").await?;
    api.client.ended(&id).await?;
    let (by_key, own) = (events_url(api.client.base(), &id), &api.key);

    let steps = json!([
        {"page": listed, "by": "fetch", "url": by_key, "key": own},
        {"page": stranger, "by": "fetch", "url": by_key, "key": own},
        {"page": listed, "url": events_url(&stranger, &id)},
        {"page": stranger, "url": events_url(&listed, &id)},
    ]);
    let mut follower = Follower::chromium(system.directory(), &steps)?;

    let expected = listed_events(&api, &id).await?;
    for (may_read, how_it_ends) in [(true, "over"), (false, "TypeError"), (true, "over"), (false, "over")] {
        let mut heard = Vec::new();
        let closed = follower.until("closed", &mut heard).await?;
        heard.pop();
        assert_eq!(closed.data["outcome"], how_it_ends);
        let heard: Vec<Value> = heard.into_iter().map(|event| event.data).collect();
        assert_eq!(heard, if may_read { expected.clone() } else { Vec::new() });
    }
    assert_eq!(follower.rest().await?.len(), 0);
    Ok(())
}

async fn start() -> anyhow::Result<(System, Api, Running)> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?;
    let (api, worker) = (system.api().await?, system.worker().await?);
    Ok((system, api, worker))
}

/// A site whose pages call the API on their own origin, where its back end adds the key: an `EventSource` cannot
/// send one. The API is behind the nginx of the documentation.
struct Site {
    front: Nginx,
    _documented: Nginx,
}

impl Site {
    fn start(system: &System, api: &Api) -> anyhow::Result<Self> {
        Self::start_on(system, api, reserve()?)
    }

    fn start_on(system: &System, api: &Api, listener: std::net::TcpListener) -> anyhow::Result<Self> {
        let documented = Nginx::documented(system.directory(), &address(api), "")?;
        let servers = format!(
            "server {{
                listen {};
                location / {{ default_type text/html; return 200 '<!doctype html><title>A page</title>'; }}
                location /api/ {{
                    proxy_pass {};
                    proxy_http_version 1.1;
                    proxy_set_header Host $http_host;
                    proxy_set_header X-API-Key '{}';
                }}
            }}",
            listener.local_addr()?,
            documented.url(),
            api.key
        );
        Ok(Self { front: Nginx::start(system.directory(), listener, &servers)?, _documented: documented })
    }
}

/// Where `api` listens.
fn address(api: &Api) -> String {
    api.client.base().trim_start_matches("http://").to_owned()
}

fn events_url(base: &str, id: &str) -> String {
    format!("{base}/api/jobs/{id}/events")
}

/// Ask for a gated job with curl and see it to its end, each event before the next is made.
async fn chat_with_curl(system: &System, api: &Api, base: &str, words: &[&str]) -> anyhow::Result<Follower> {
    let (url, key) = (format!("{base}/api/chat"), format!("X-API-Key: {}", api.key));
    let body = json!({"message": GATED, "stream": true}).to_string();
    let words = [words, &["--header", &key, "--json", &body, &url]].concat();
    let mut curl = Follower::curl(system.directory(), &words)?;

    let mut events = Vec::new();
    for n in 0..6 {
        system.mock.let_out(1);
        assert_eq!(curl.until("text.delta", &mut events).await?.data["text"], format!("tick {n} "));
    }
    events.extend(curl.rest().await?);

    assert_all(api, &api.client.only_job().await?, &events).await?;
    Ok(curl)
}

/// See the gated job `id` to its end by a `follower` whose connection breaks in the middle of an event.
async fn follow_over_a_cut(system: &System, api: &Api, proxy: &Proxy, id: &str, mut follower: Follower) -> anyhow::Result<()> {
    let mut events = Vec::new();
    for n in 0..3 {
        system.mock.let_out(1);
        assert_eq!(follower.until("text.delta", &mut events).await?.data["text"], format!("tick {n} "));
    }

    // Less than an event: it gets the beginning of the next one, which is good for nothing.
    proxy.cut_after(20);
    for n in 3..6 {
        system.mock.let_out(1);
        assert_eq!(follower.until("text.delta", &mut events).await?.data["text"], format!("tick {n} "));
    }
    events.extend(follower.rest().await?);

    ensure!(proxy.cuts() == 1, "nothing was cut");
    // A browser goes on living after it: its page tells that the stream is over.
    if let Some(closed) = events.pop_if(|event| event.kind == "closed") {
        assert_eq!(closed.data, json!({"outcome": "over", "statuses": [200, 200, 204]}));
    }
    assert_all(api, id, &events).await
}

/// Assert that `events` are those of the job `id`, each once.
async fn assert_all(api: &Api, id: &str, events: &[Event]) -> anyhow::Result<()> {
    assert_eq!(assert_whole(events), ANSWER);
    let heard: Vec<Value> = events.iter().filter(|event| event.id.is_some()).map(|event| event.data.clone()).collect();
    assert_eq!(heard, listed_events(api, id).await?);
    Ok(())
}

/// What the job `id` has to tell.
async fn listed_events(api: &Api, id: &str) -> anyhow::Result<Vec<Value>> {
    let request = api.client.request(Method::GET, &events_url("", id)).header(header::ACCEPT, "application/json");
    let mut list: Value = request.send().await?.error_for_status()?.json().await?;
    serde_json::from_value(list["data"].take()).context("a list")
}
