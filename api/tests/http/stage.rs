//! What a test stands on: a Redis and a database of its own, the endpoint over them, and a hand that runs
//! jobs.

#![expect(clippy::disallowed_types, reason = "starts a redis-server")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use api::{app::App, config::Config, endpoint};
use argon2::{Argon2, PasswordHasher as _};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use poem::{
    Addr, Body, Endpoint as _, Request, RequestBuilder, RequestParts, Response,
    endpoint::BoxEndpoint,
    http::{self, HeaderMap, Method, StatusCode, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    api_keys::NewApiKey,
    audit::By,
    config::{Env, ExposeSecret as _},
    event::EventBody,
    id::{JobId, WorkerId},
    job::JobResult,
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    reconciler,
    store::Store,
    time::Timestamp,
    user::{PasswordHash, Role, User, UserLimits},
    users::NewUser,
    workers::{Membership, NewWorker},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

/// What signs the tokens of every stage.
pub const SECRET: &str = "q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aGe";

/// The password of everybody on a stage.
pub const PASSWORD: &str = "correct horse battery staple";

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running system without a worker.
pub struct Stage {
    pub app: App,
    /// A user, and a key of theirs for all that users may.
    pub user: User,
    pub key: String,
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
        Self::set(&[setting]).await
    }

    /// A stage with settings of its own.
    pub async fn set(settings: &[(&str, &str)]) -> Self {
        let Empty { app, endpoint, redis, directory } = Empty::with(settings).await;
        let user = made(&app, "user@example.com", Role::User).await;
        let key = key_of(&app, &user, &[Scope::Chat, Scope::Read]).await;
        Self { app, user, key, endpoint, redis: Some(redis), directory }
    }

    /// A stage with settings of its own and nobody on it: [`Self::user`] is in no record.
    pub async fn empty(settings: &[(&str, &str)]) -> Self {
        let Empty { app, endpoint, redis, directory } = Empty::with(settings).await;
        let user = User {
            id: shared::id::UserId::new(),
            email: String::new(),
            name: None,
            role: Role::User,
            disabled: false,
            limits: UserLimits::default(),
            created_at: Timestamp::from_unix_ms(0),
            last_login_at: None,
        };
        Self { app, user, key: String::new(), endpoint, redis: Some(redis), directory }
    }

    /// Another server over the same stores, with settings of its own.
    pub async fn elsewhere(&self, settings: &[(&str, &str)]) -> Elsewhere {
        let app = app_in(&self.directory, settings).await;
        let endpoint = Arc::new(poem::EndpointExt::boxed(endpoint(app.clone())));
        Elsewhere { app, endpoint }
    }

    /// An account.
    pub async fn account(&self, email: &str, role: Role) -> User {
        made(&self.app, email, role).await
    }

    /// A key of `user`.
    pub async fn key_of(&self, user: &User, scopes: &[Scope]) -> String {
        key_of(&self.app, user, scopes).await
    }

    /// An access token of a login of `user`.
    pub async fn token_of(&self, user: &User) -> String {
        let (family, _) = self.app.logins.begin(user, &By::default()).await.expect("a login");
        self.app.tokens.issue(user, family).expose_secret().to_owned()
    }

    /// Send `request` as it is, from this machine.
    pub async fn send(&self, request: Request) -> Response {
        send(&self.endpoint, request).await
    }

    /// Send `request` with the key of the user, and read the whole answer.
    pub async fn ask(&self, request: Request) -> Answer {
        Answer::of(self.send(with(request, "x-api-key", &self.key)).await).await
    }

    /// Send a body as whom `credential` says, a token or a key; as nobody if it is empty.
    pub async fn call(&self, credential: &str, method: Method, path: &str, body: &Value) -> Answer {
        Answer::of(self.send(request(credential, method, path, body)).await).await
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

    /// Begin a conversation; its id.
    pub async fn session(&self) -> String {
        let answer = self.post("/api/sessions", &json!({})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Submit a turn of a conversation; its id.
    pub async fn submit_turn(&self, session: &str, message: &str) -> String {
        let answer = self.post("/api/chat", &json!({"message": message, "session_id": session})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{:?}", answer.body);
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Follow a job's events, from after `last` if given.
    pub async fn follow(&self, job: &str, last: Option<&str>) -> Events {
        follow(&self.endpoint, &self.key, job, last).await
    }

    /// A hand that takes jobs.
    pub async fn hand(&self) -> Hand {
        let worker = NewWorker { name: "hand".into(), host: "here".into(), slots: 100, mcp_servers: Vec::new(), lock_file: None };
        let membership = Membership::join(&self.app.store, WorkerId::new(), &worker).await.expect("joined");
        let config = LeaseConfig { spool_dir: self.directory.clone(), longest_run: Duration::from_mins(1) };
        let leases = Leases::open(&self.app.store, membership.id(), config).await.expect("leases");
        Hand { id: membership.id(), leases }
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

    /// Send Redis a command, as an operator would; its answer as it comes over the wire.
    pub async fn redis(&self, words: &[&str]) -> String {
        let mut socket = UnixStream::connect(self.directory.join("redis.sock")).await.expect("a Redis");
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.extend(["$", &word.len().to_string(), "\r\n", word, "\r\n"]);
        }
        socket.write_all(command.as_bytes()).await.expect("sent");
        let mut answer = vec![0; 1024];
        let length = tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await.expect("in time").expect("an answer");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// Let Redis announce what is appended to logs, or append it and announce nothing.
    pub async fn announces(&self, does: bool) {
        let rule = if does { "+publish" } else { "-publish" };
        assert_eq!(self.redis(&["ACL", "SETUSER", "default", rule]).await, "+OK\r\n");
    }

    /// The log of `job` is gone from Redis.
    pub async fn lose_log(&self, job: &str) {
        let id: JobId = job.parse().expect("a job's id");
        self.redis(&["DEL", &format!("j:{{{}}}:log", id.uuid().simple())]).await;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.app.draining.cancel();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A system with nobody on it.
struct Empty {
    app: App,
    endpoint: Arc<BoxEndpoint<'static, Response>>,
    redis: Child,
    directory: PathBuf,
}

impl Empty {
    async fn with(settings: &[(&str, &str)]) -> Self {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("api-stage-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory of our own");
        let redis = start_redis(&directory).await;
        let app = app_in(&directory, settings).await;
        let endpoint = Arc::new(poem::EndpointExt::boxed(endpoint(app.clone())));
        Self { app, endpoint, redis, directory }
    }
}

/// A server over the stores of `directory`.
async fn app_in(directory: &Path, settings: &[(&str, &str)]) -> App {
    let database = format!("sqlite://{}", directory.join("record.db").display());
    let socket = format!("redis+unix://{}", directory.join("redis.sock").display());
    let workspaces = directory.join("workspaces").display().to_string();
    let mut all = [("HOST", "127.0.0.1"); 16];
    let common = [
        ("JWT_SECRET", SECRET),
        ("AUTH_RATE_LIMIT_PER_MINUTE", "10000"),
        ("DATABASE_URL", &database),
        ("REDIS_URL", &socket),
        ("WORKSPACE_STORE", &workspaces),
        // A hand has no heart.
        ("WORKER_TTL", "1h"),
    ];
    for (place, setting) in all.iter_mut().zip(common.iter().chain(settings)) {
        *place = *setting;
    }
    let config = Config::from_env(&Env::of(all)).expect("valid settings");
    let draining = CancellationToken::new();
    let store = Box::pin(Store::open(&config.store, &draining)).await.expect("a store").expect("not told to stop");
    // It ends with the server.
    tokio::spawn(reconciler::run(store.clone(), draining.clone()));
    App::new(config, store, draining)
}

/// Another server over a stage's stores.
pub struct Elsewhere {
    pub app: App,
    endpoint: Arc<BoxEndpoint<'static, Response>>,
}

impl Elsewhere {
    pub async fn call(&self, credential: &str, method: Method, path: &str, body: &Value) -> Answer {
        Answer::of(send(&self.endpoint, request(credential, method, path, body)).await).await
    }

    /// Follow a job's events with `key`, from after `last` if given.
    pub async fn follow(&self, key: &str, job: &str, last: Option<&str>) -> Events {
        follow(&self.endpoint, key, job, last).await
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.app.draining.cancel();
    }
}

async fn follow(endpoint: &BoxEndpoint<'static, Response>, key: &str, job: &str, last: Option<&str>) -> Events {
    let mut request = with(get(&format!("/api/jobs/{job}/events")), "x-api-key", key);
    if let Some(last) = last {
        request = with(request, "last-event-id", last);
    }
    Events::of(send(endpoint, request).await)
}

async fn send(endpoint: &BoxEndpoint<'static, Response>, request: Request) -> Response {
    let request = if request.remote_addr().as_socket_addr().is_some() { request } else { from(request, "127.0.0.1") };
    tokio::time::timeout(PATIENCE, endpoint.get_response(request)).await.expect("an answer in time")
}

/// `request` as it comes from `address`.
pub fn from(request: Request, address: &str) -> Request {
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let peer = Addr::from(std::net::SocketAddr::new(address.parse().expect("an address"), 50_000));
    let (mut parts, ()) = http::Request::builder().method(method).uri(uri).body(()).expect("a request").into_parts();
    parts.headers = headers;
    let local = LocalAddr(Addr::custom("stage", "here"));
    Request::from_parts(RequestParts::from((parts, local, RemoteAddr(peer), Scheme::HTTP)), request.into_body())
}

/// A request with a body, as whom `credential` says.
pub fn request(credential: &str, method: Method, path: &str, body: &Value) -> Request {
    let builder = Request::builder().method(method).uri_str(path).content_type("application/json");
    let builder = if credential.is_empty() { builder } else { builder.header("authorization", format!("Bearer {credential}")) };
    builder.body(body.to_string())
}

/// What is kept of [`PASSWORD`].
fn password_hash() -> PasswordHash {
    PasswordHash::new(Argon2::default().hash_password(PASSWORD.as_bytes()).expect("hashed").to_string())
}

async fn made(app: &App, email: &str, role: Role) -> User {
    let email = email.parse().expect("an address");
    let new = NewUser { email, name: None, password: password_hash(), role, limits: UserLimits::default() };
    app.users.create(new, &By::default()).await.expect("an account")
}

async fn key_of(app: &App, user: &User, scopes: &[Scope]) -> String {
    app.api_keys.create(new_key(user, scopes), &By::default()).await.expect("a key").1.expose().to_owned()
}

/// A key to be.
pub fn new_key(user: &User, scopes: &[Scope]) -> NewApiKey {
    NewApiKey {
        user_id: user.id,
        name: "key".to_owned(),
        scopes: scopes.to_vec(),
        allowed_tools: None,
        allowed_ips: None,
        rate_limit_per_hour: None,
        max_concurrent_jobs: None,
        expires_at: None,
    }
}

async fn start_redis(directory: &Path) -> Child {
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
    Request::builder().method(Method::POST).uri_str(path)
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
    /// Whether it takes the last id away.
    pub forgets: bool,
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
            let chunk = self.piece().await?;
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

    /// The next piece of the answer, as it goes out; `None` at the end.
    pub async fn piece(&mut self) -> Option<Bytes> {
        tokio::time::timeout(PATIENCE, self.body.next()).await.expect("news in time")
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
            "id" if value.is_empty() => message.forgets = true,
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
    id: WorkerId,
    leases: Leases,
}

impl Hand {
    /// The worker that it is.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// The next job.
    pub async fn take(&mut self) -> Lease {
        let never = CancellationToken::new();
        let lease = tokio::time::timeout(PATIENCE, self.leases.next(1, &never)).await.expect("a job in time");
        lease.expect("a lease").pop().expect("not told to stop")
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
