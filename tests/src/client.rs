//! A client of the HTTP API, as a user would write one.

use std::collections::VecDeque;

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::system::PATIENCE;

/// A client of one API server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// Says who it is.
    header: (&'static str, String),
}

impl Client {
    /// A client that presents `key`.
    pub fn new(base: &str, key: &str) -> Self {
        Self::with_header(base, ("x-api-key", key.to_owned()))
    }

    /// A client that presents the access token of a login.
    pub fn of_login(base: &str, token: &str) -> Self {
        Self::with_header(base, ("authorization", format!("Bearer {token}")))
    }

    fn with_header(base: &str, header: (&'static str, String)) -> Self {
        // Fails only where another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().expect("no setting of this client can be refused");
        Self { http, base: base.to_owned(), header }
    }

    /// The same client of another server.
    #[must_use]
    pub fn of_server(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    /// Where the server is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request to `path`, with the credential.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header(self.header.0, &self.header.1)
    }

    /// Submit a job; its id.
    pub async fn submit(&self, body: Value) -> anyhow::Result<String> {
        let answer = self.request(Method::POST, "/api/chat").json(&body).send().await?;
        let status = answer.status();
        let job: Value = answer.json().await?;
        ensure!(status == StatusCode::ACCEPTED, "{status}: {job}");
        Ok(job["id"].as_str().context("a job has an id")?.to_owned())
    }

    /// Submit a job that says `text`; its id.
    pub async fn say(&self, text: &str) -> anyhow::Result<String> {
        self.submit(json!({"message": text})).await
    }

    /// A job.
    pub async fn job(&self, id: &str) -> anyhow::Result<Value> {
        Ok(self.request(Method::GET, &format!("/api/jobs/{id}")).send().await?.error_for_status()?.json().await?)
    }

    /// A job once it has ended.
    pub async fn ended(&self, id: &str) -> anyhow::Result<Value> {
        let poll = async {
            loop {
                let answer = self.request(Method::GET, &format!("/api/jobs/{id}?wait=20")).send().await?.error_for_status()?;
                let job: Value = answer.json().await?;
                if !matches!(job["status"].as_str(), Some("queued" | "running")) {
                    return anyhow::Ok(job);
                }
            }
        };
        timeout(PATIENCE, poll).await.with_context(|| format!("job `{id}` did not end"))?
    }

    /// The one job there is.
    pub async fn only_job(&self) -> anyhow::Result<String> {
        let list: Value = self.request(Method::GET, "/api/jobs").send().await?.error_for_status()?.json().await?;
        let [job] = list["data"].as_array().map(Vec::as_slice).unwrap_or_default() else { bail!("not one job: {list}") };
        Ok(job["id"].as_str().context("a job has an id")?.to_owned())
    }

    /// Ask for the end of a job.
    pub async fn cancel(&self, id: &str) -> anyhow::Result<Value> {
        Ok(self.request(Method::POST, &format!("/api/jobs/{id}/cancel")).send().await?.error_for_status()?.json().await?)
    }

    /// Begin a conversation; its id.
    pub async fn session(&self, body: Value) -> anyhow::Result<String> {
        let answer = self.request(Method::POST, "/api/sessions").json(&body).send().await?;
        let status = answer.status();
        let session: Value = answer.json().await?;
        ensure!(status == StatusCode::CREATED, "{status}: {session}");
        Ok(session["id"].as_str().context("a session has an id")?.to_owned())
    }

    /// What is at `path`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.request(Method::GET, path).send().await?.error_for_status()?.json().await?)
    }

    /// A job's events, from the start of its newest attempt or after `last`.
    pub async fn events(&self, id: &str, last: Option<&str>) -> anyhow::Result<Stream> {
        let mut request = self.request(Method::GET, &format!("/api/jobs/{id}/events"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        Stream::of(request.send().await?)
    }

    /// Submit a job that says `text` and follow it on the same response.
    pub async fn chat(&self, text: &str) -> anyhow::Result<Stream> {
        self.chat_with(json!({"message": text, "stream": true})).await
    }

    /// Submit a job and follow it on the same response.
    pub async fn chat_with(&self, body: Value) -> anyhow::Result<Stream> {
        Stream::of(self.request(Method::POST, "/api/chat").json(&body).send().await?)
    }
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its type.
    pub kind: String,
    /// Its data.
    pub data: Value,
}

/// An open event stream.
pub struct Stream {
    response: Response,
    heard: Heard,
}

impl Stream {
    fn of(response: Response) -> anyhow::Result<Self> {
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        ensure!(response.status() == StatusCode::OK && kind.starts_with("text/event-stream"), "{}: {kind}", response.status());
        Ok(Self { response, heard: Heard::default() })
    }

    /// The next event, or `None` at the end of the stream.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            if let Some(event) = self.heard.next() {
                return Ok(Some(event));
            }
            let Some(chunk) = timeout(PATIENCE, self.response.chunk()).await.context("the stream is silent")?? else {
                return Ok(None);
            };
            self.heard.hear(&chunk)?;
        }
    }

    /// The next event of type `kind`; what comes before it is kept in `passed`.
    pub async fn until(&mut self, kind: &str, passed: &mut Vec<Event>) -> anyhow::Result<Event> {
        while let Some(event) = self.next().await? {
            passed.push(event.clone());
            if event.kind == kind {
                return Ok(event);
            }
        }
        let kinds: Vec<&str> = passed.iter().map(|event| event.kind.as_str()).collect();
        bail!("the stream ended without `{kind}`: {kinds:?}")
    }

    /// All events to the end of the stream.
    pub async fn rest(&mut self) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

/// What came of a stream, as events.
#[derive(Default)]
pub(crate) struct Heard {
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
}

impl Heard {
    /// Take in what came next.
    pub(crate) fn hear(&mut self, chunk: &[u8]) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(chunk);
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            self.ready.extend(event(std::str::from_utf8(&block)?)?);
        }
        Ok(())
    }

    /// The next event that is complete.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }
}

fn event(block: &str) -> anyhow::Result<Option<Event>> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let Some(data) = field("data") else { return Ok(None) };
    let kind = field("event").context("an event has a type")?.to_owned();
    Ok(Some(Event { id: field("id").filter(|id| !id.is_empty()).map(str::to_owned), kind, data: serde_json::from_str(data)? }))
}

/// Assert that the ids of `events` have no hole and no repeat, each attempt beginning at 0, and that the
/// last event, and no other, is terminal. Answers the text of the last attempt's deltas.
pub fn assert_whole(events: &[Event]) -> String {
    let mut last: Option<(u32, u32)> = None;
    let mut text = String::new();
    for event in events {
        let Some(id) = &event.id else { continue };
        let (attempt, n) =
            id.split_once('-').and_then(|(a, n)| Some((a.parse::<u32>().ok()?, n.parse::<u32>().ok()?))).expect("`<attempt>-<n>`");
        let follows = match last {
            None => n == 0,
            Some((a, m)) => (attempt, n) == (a, m + 1) || (attempt > a && n == 0),
        };
        assert!(follows, "{id} after {last:?}");
        assert_eq!(event.data["id"], *id);
        last = Some((attempt, n));
        match event.kind.as_str() {
            "job.started" => text.clear(),
            "text.delta" => text.push_str(event.data["text"].as_str().unwrap_or_default()),
            _ => {}
        }
    }
    let terminal = |event: &Event| matches!(event.kind.as_str(), "job.completed" | "job.failed" | "job.cancelled");
    assert_eq!(events.iter().filter(|event| terminal(event)).count(), 1, "one terminal event");
    assert!(events.last().is_some_and(terminal), "the last event is the terminal one");
    text
}
