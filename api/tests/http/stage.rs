//! What a test stands on: a Redis and a database of its own, the endpoint over them, and a hand that runs
//! jobs.

#![expect(clippy::disallowed_types, reason = "starts a redis-server")]

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use api::{app::App, config::Config, endpoint};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use poem::{
    Body, Endpoint as _, Request, RequestBuilder, Response,
    endpoint::BoxEndpoint,
    http::{HeaderMap, StatusCode},
};
use serde_json::{Value, json};
use shared::{
    config::Env,
    event::EventBody,
    job::JobResult,
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    store::Store,
    workers::{Membership, NewWorker},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

/// The key that every stage lets in.
pub const KEY: &str = "a-key-for-tests-only";

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running system without a worker.
pub struct Stage {
    pub app: App,
    endpoint: Arc<BoxEndpoint<'static, Response>>,
    redis: Option<Child>,
    directory: PathBuf,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(("HOST", "127.0.0.1")).await
    }

    /// A stage with one setting of its own.
    pub async fn with(setting: (&str, &str)) -> Self {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("api-stage-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory of our own");
        let redis = start_redis(&directory).await;

        let database = format!("sqlite://{}", directory.join("record.db").display());
        let socket = format!("redis+unix://{}", directory.join("redis.sock").display());
        let env = Env::of([("BOOTSTRAP_API_KEY", KEY), ("DATABASE_URL", &database), ("REDIS_URL", &socket), setting]);
        let config = Config::from_env(&env).expect("valid settings");
        let draining = CancellationToken::new();
        let store = Box::pin(Store::open(&config.store, &draining)).await.expect("a store").expect("not told to stop");
        let app = App::new(config, store, draining);
        let endpoint = Arc::new(poem::EndpointExt::boxed(endpoint(app.clone())));
        Self { app, endpoint, redis: Some(redis), directory }
    }

    /// Send `request` as it is.
    pub async fn send(&self, request: Request) -> Response {
        tokio::time::timeout(PATIENCE, self.endpoint.get_response(request)).await.expect("an answer in time")
    }

    /// Send `request` with the key, and read the whole answer.
    pub async fn ask(&self, request: Request) -> Answer {
        Answer::of(self.send(with(request, "x-api-key", KEY)).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(get(path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(post(path).content_type("application/json").body(body.to_string())).await
    }

    /// Submit a message; answers the job's id.
    pub async fn submit(&self, message: &str) -> String {
        let answer = self.post("/api/chat", &json!({"message": message})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{:?}", answer.body);
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Follow a job's events, from after `last` if given.
    pub async fn follow(&self, job: &str, last: Option<&str>) -> Events {
        let mut request = with(get(&format!("/api/jobs/{job}/events")), "x-api-key", KEY);
        if let Some(last) = last {
            request = with(request, "last-event-id", last);
        }
        Events::of(self.send(request).await)
    }

    /// A hand that takes jobs.
    pub async fn hand(&self) -> Hand {
        let worker = NewWorker { name: "hand".into(), host: "here".into(), slots: 1 };
        let membership = Membership::join(&self.app.store, &worker).await.expect("joined");
        let config = LeaseConfig { spool_dir: self.directory.clone(), longest_run: Duration::from_mins(1) };
        let leases = Leases::open(&self.app.store, membership.id(), config).await.expect("leases");
        Hand { leases }
    }

    /// Redis is gone, with all it knew.
    pub async fn lose_redis(&mut self) {
        let mut redis = self.redis.take().expect("a Redis");
        redis.kill().await.expect("killed");
        let _ = fs::remove_file(self.directory.join("redis.sock"));
    }

    pub async fn restart_redis(&mut self) {
        self.redis = Some(start_redis(&self.directory).await);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.app.draining.cancel();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

async fn start_redis(directory: &std::path::Path) -> Child {
    let binary = env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
    let mut redis = Command::new(binary)
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(directory.join("redis.sock"))
        .current_dir(directory)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server (or the one that REDIS_SERVER names)");
    let mut lines = BufReader::new(redis.stdout.take().expect("piped")).lines();
    let ready =
        async { while !lines.next_line().await.expect("readable").expect("Redis runs").to_lowercase().contains("ready to accept") {} };
    tokio::time::timeout(PATIENCE, ready).await.expect("Redis accepts connections");
    redis
}

pub fn get(path: &str) -> Request {
    Request::builder().uri_str(path).finish()
}

/// `request` with one more header.
pub fn with(mut request: Request, name: &'static str, value: &str) -> Request {
    request.headers_mut().insert(name, value.parse().expect("a header value"));
    request
}

pub fn post(path: &str) -> RequestBuilder {
    Request::builder().method(poem::http::Method::POST).uri_str(path)
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.into_bytes()).await.expect("a body in time").expect("a whole body");
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// The code of a problem, which must be one.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{:?}", self.body);
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
        problem["code"].as_str().expect("a code").to_owned()
    }
}

/// One message of an event stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: Value,
    pub comment: Option<String>,
    pub retry: Option<String>,
}

impl Message {
    pub fn kind(&self) -> &str {
        self.event.as_deref().unwrap_or_default()
    }
}

/// An event stream, read as a client does.
pub struct Events {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: std::pin::Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    unread: String,
}

impl Events {
    pub fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = Body::into_bytes_stream(body).map(|chunk| chunk.expect("an unbroken stream"));
        Self { status: parts.status, headers: parts.headers, body: Box::pin(body), unread: String::new() }
    }

    /// The next message of any kind; `None` at the end.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((message, rest)) = self.unread.split_once("\n\n") {
                let message = parse(message);
                self.unread = String::from(rest);
                return Some(message);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("news in time")?;
            self.unread.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }

    /// The next message with the type `kind`, passing over all before it.
    pub async fn until(&mut self, kind: &str) -> Message {
        loop {
            let message = self.next().await.unwrap_or_else(|| panic!("the stream ended before `{kind}`"));
            if message.kind() == kind {
                return message;
            }
        }
    }

    /// What is left, as `id type` for what is kept.
    pub async fn rest(mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(message) = self.next().await {
            if let Some(id) = &message.id {
                rest.push(format!("{id} {}", message.kind()));
            }
        }
        rest
    }
}

fn parse(text: &str) -> Message {
    let mut message = Message::default();
    for line in text.lines() {
        let (field, value) = line.split_once(": ").expect("a field");
        match field {
            "id" => message.id = Some(value.to_owned()),
            "event" => message.event = Some(value.to_owned()),
            "data" => message.data = serde_json::from_str(value).expect("JSON"),
            "retry" => message.retry = Some(value.to_owned()),
            "" => message.comment = Some(value.to_owned()),
            other => panic!("no such field: {other}"),
        }
    }
    message
}

/// What a worker is to a job.
pub struct Hand {
    leases: Leases,
}

impl Hand {
    /// The next job.
    pub async fn take(&mut self) -> Lease {
        let never = CancellationToken::new();
        let lease = tokio::time::timeout(PATIENCE, self.leases.next(&never)).await.expect("a job in time");
        lease.expect("a lease").expect("not told to stop")
    }
}

/// Say a piece of the answer.
pub fn say(lease: &Lease, text: &str) {
    let body = EventBody::TextDelta { message_id: "msg_1".into(), text: text.into(), parent_tool_use_id: None };
    lease.emit(&body).expect("emitted");
}

/// End a job.
pub async fn settle(lease: Lease, outcome: Outcome) {
    lease.settle(outcome, Report::default(), &CancellationToken::new()).await.expect("settled");
}

/// End a job well.
pub async fn complete(lease: Lease, text: &str) {
    settle(lease, Outcome::Completed(JobResult { text: text.into(), ..JobResult::default() })).await;
}
