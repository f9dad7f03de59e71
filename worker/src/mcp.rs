//! MCP servers, by the names an operator gave them in `MCP_SERVERS_FILE`. The CLI never reaches one: it hands
//! its JSON-RPC messages to us on the control channel, and we carry them to the server over HTTP (MCP
//! 2025-11-25, "Streamable HTTP"). So addresses and credentials stay here, and a sandbox needs no network.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use hyper::{
    HeaderMap,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue},
};
use reqwest::{Client, Response, Url, redirect::Policy};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::tool::is_mcp_server_name;
use tokio::{task::JoinSet, time::timeout};
use tracing::Instrument as _;

use crate::claude::control::{self, McpMessage};

/// The largest answer of a server. The CLI shows a model less than that, and prints it twice.
const LARGEST_ANSWER: usize = 2 * 1024 * 1024;
/// The largest message to one.
const LARGEST_MESSAGE: usize = 1024 * 1024;
/// What is carried to a server; everything else it may offer is served to nobody.
const CARRIED: [&str; 4] = ["initialize", "ping", "tools/list", "tools/call"];
/// The same for what needs no answer.
const TOLD: [&str; 2] = ["notifications/initialized", "notifications/cancelled"];
/// The most messages of one job that are on their way at a time.
const MOST_AT_ONCE: usize = 64;
/// How long a server may take to say what it offers. A job waits for it.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to answer a call that does not say.
const CALL_LIMIT: Duration = Duration::from_mins(2);
/// How long the end of a session may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// Why the servers of a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    /// The file.
    #[error("could not read `{}`", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// It is not what it should be. What it holds may be a secret, so it is not repeated.
    #[error("line {0}, column {1} is not what it should be")]
    Json(usize, usize),
    /// A name that is none.
    #[error("`{0}` is no name of a server: at most 32 of a-z, 0-9 and single `_` between them, a letter first")]
    Name(String),
    /// An address that cannot be used.
    #[error("the `url` of `{0}` is not `http://` or `https://` and a host")]
    Url(String),
    /// A time that is none.
    #[error("the `timeout_secs` of `{0}` is not from 1 to 3600")]
    Timeout(String),
    /// A header that is none.
    #[error("a header of `{0}` is none")]
    Header(String),
    /// The client could not be set up.
    #[error("could not set up the client")]
    Client(#[from] reqwest::Error),
}

/// What a job may use of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The server.
    pub server: String,
    /// Of its tools, these; all when absent.
    pub tools: Option<Vec<String>>,
}

impl Grant {
    /// The CLI's rules that allow exactly this.
    pub fn rules(&self) -> Vec<String> {
        let server = format!("mcp__{}", self.server);
        match &self.tools {
            None => vec![server],
            Some(tools) => tools.iter().map(|tool| format!("{server}__{tool}")).collect(),
        }
    }
}

/// The servers that jobs may name.
#[derive(Clone, Debug, Default)]
pub struct Servers(BTreeMap<String, Arc<Server>>);

/// A server. A debug print shows neither address nor headers.
struct Server {
    client: Client,
    url: Url,
    headers: HeaderMap,
    /// Of its tools, these; all when absent.
    tools: Option<Vec<String>>,
    call_limit: Duration,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("tools", &self.tools).finish_non_exhaustive()
    }
}

/// A server as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    #[serde(default)]
    headers: HashMap<String, String>,
    tools: Option<Vec<String>>,
    timeout_secs: Option<u64>,
}

impl Servers {
    /// Those of the file at `path`: a JSON object of servers by name.
    pub fn load(path: &Path) -> Result<Self, McpError> {
        Self::parse(&fs::read(path).map_err(|source| McpError::File(path.to_owned(), source))?)
    }

    fn parse(json: &[u8]) -> Result<Self, McpError> {
        let entries: BTreeMap<String, Entry> =
            serde_json::from_slice(json).map_err(|error| McpError::Json(error.line(), error.column()))?;
        // An error says that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(HANDSHAKE_LIMIT)
            // Followed, a redirect would take the credential to wherever it points.
            .redirect(Policy::none())
            .build()?;
        let server = |(name, entry): (String, Entry)| {
            if !is_mcp_server_name(&name) {
                return Err(McpError::Name(name));
            }
            let url = Url::parse(&entry.url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            let Some(url) = url else { return Err(McpError::Url(name)) };
            let mut headers = HeaderMap::new();
            for (header, value) in &entry.headers {
                let (Ok(header), Ok(mut value)) = (header.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
                    return Err(McpError::Header(name));
                };
                value.set_sensitive(true);
                headers.insert(header, value);
            }
            if entry.timeout_secs.is_some_and(|secs| !(1..=3600).contains(&secs)) {
                return Err(McpError::Timeout(name));
            }
            let call_limit = entry.timeout_secs.map_or(CALL_LIMIT, Duration::from_secs);
            Ok((name, Arc::new(Server { client: client.clone(), url, headers, tools: entry.tools, call_limit })))
        };
        Ok(Self(entries.into_iter().map(server).collect::<Result<_, _>>()?))
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Whether there is one of this name.
    pub fn includes(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The way of one job to the servers it was granted.
    pub fn bridge(&self, grants: &[Grant]) -> Bridge {
        let link = |grant: &Grant| {
            let server = self.0.get(&grant.server)?.clone();
            Some((
                grant.server.clone(),
                Arc::new(Link { server, granted: grant.tools.clone(), session: Mutex::default(), is_silent: AtomicBool::new(false) }),
            ))
        };
        Bridge { links: grants.iter().filter_map(link).collect(), answers: JoinSet::new() }
    }
}

/// The way of one job to its servers. Dropping it gives up what is on its way.
#[derive(Debug, Default)]
pub struct Bridge {
    links: BTreeMap<String, Arc<Link>>,
    answers: JoinSet<String>,
}

impl Bridge {
    /// Carry a message of the CLI to its server; the answer comes by [`Self::answer`]. Nothing of it is trusted:
    /// a tool in the sandbox may have got the CLI to say it.
    pub fn ask(&mut self, request_id: String, asked: McpMessage) {
        let McpMessage { server, message } = asked;
        let link = self.links.get(&server).cloned().filter(|_| self.answers.len() < MOST_AT_ONCE && message.len() <= LARGEST_MESSAGE);
        let span = tracing::info_span!("mcp", server);
        let answering = async move {
            let answer = match (link, serde_json::from_str(&message)) {
                (Some(link), Ok(message)) => link.carry(message).await,
                _ => refusal(&Value::Null, "this is not served"),
            };
            control::mcp_answer(&request_id, &answer)
        };
        self.answers.spawn(answering.instrument(span));
    }

    /// The next answer, as a line for the CLI. Waits for ever where nothing was asked. Cancel-safe.
    pub async fn answer(&mut self) -> String {
        loop {
            match self.answers.join_next().await {
                Some(Ok(line)) => return line,
                // A message that is not answered ends by the CLI's own limit.
                Some(Err(panicked)) => tracing::error!(%panicked, "A message to an MCP server was lost"),
                None => std::future::pending().await,
            }
        }
    }

    /// Tell the servers that this job is over.
    pub async fn close(&mut self) {
        self.answers.shutdown().await;
        join_all(self.links.values().map(|link| timeout(FAREWELL_LIMIT, link.leave()))).await;
    }
}

/// A job's session with one server.
#[derive(Debug)]
struct Link {
    server: Arc<Server>,
    granted: Option<Vec<String>>,
    session: Mutex<Session>,
    /// Whether it failed to answer at the beginning.
    is_silent: AtomicBool,
}

/// What the server said at the beginning.
#[derive(Clone, Debug, Default)]
struct Session {
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

/// What went wrong with a server, in words a model may see.
type Trouble = &'static str;

impl Link {
    /// The answer to a JSON-RPC message, whatever becomes of it on its way.
    async fn carry(&self, message: Value) -> Value {
        let method = message["method"].as_str().unwrap_or_default();
        if message.get("id").is_none() || method.is_empty() {
            // A notification, or an answer to something that we never pass on.
            if TOLD.contains(&method) {
                let _ = timeout(HANDSHAKE_LIMIT, self.post(&message)).await;
            }
            return json!({"jsonrpc": "2.0", "result": {}, "id": 0});
        }
        if !CARRIED.contains(&method) {
            return refusal(&message, "this is not served");
        }
        if method == "tools/call" && !message["params"]["name"].as_str().is_some_and(|tool| self.allows(tool)) {
            return refusal(&message, "this tool may not be used here");
        }
        if method == "initialize" && self.is_silent.load(Ordering::Relaxed) {
            // The CLI asks all servers again where one failed; a job waits for it.
            return refusal(&message, "the server did not answer before");
        }
        if method == "initialize" {
            let _ = timeout(FAREWELL_LIMIT, self.leave()).await;
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Session::default();
        }
        let limit = if method == "tools/call" { self.server.call_limit } else { HANDSHAKE_LIMIT };
        let answered = match timeout(limit, self.request(&message)).await {
            Ok(answered) => answered,
            Err(_) => Err("the server did not answer in time"),
        };
        match answered {
            Ok(mut answer) => {
                if method == "tools/list"
                    && let Some(tools) = answer.pointer_mut("/result/tools").and_then(Value::as_array_mut)
                {
                    tools.retain(|tool| tool["name"].as_str().is_some_and(|name| self.allows(name)));
                }
                answer
            }
            Err(trouble) => {
                tracing::warn!(trouble, method, "An MCP server failed");
                self.is_silent.fetch_or(method == "initialize", Ordering::Relaxed);
                refusal(&message, trouble)
            }
        }
    }

    fn allows(&self, tool: &str) -> bool {
        [&self.granted, &self.server.tools].into_iter().flatten().all(|tools| tools.iter().any(|one| one == tool))
    }

    async fn request(&self, message: &Value) -> Result<Value, Trouble> {
        let response = self.post(message).await?;
        if message["method"] == "initialize" {
            let id = response.headers().get(SESSION).cloned();
            self.session.lock().unwrap_or_else(PoisonError::into_inner).id = id;
        }
        let is_stream = response.headers().get(CONTENT_TYPE).is_some_and(is_event_stream);
        let answer = if is_stream { streamed(response, &message["id"]).await? } else { whole(response).await? };
        if message["method"] == "initialize" {
            let version = answer["result"]["protocolVersion"].as_str().and_then(|version| HeaderValue::from_str(version).ok());
            self.session.lock().unwrap_or_else(PoisonError::into_inner).version = version;
        }
        if answer["id"] == message["id"] { Ok(answer) } else { Err("the server answered something else") }
    }

    async fn post(&self, message: &Value) -> Result<Response, Trouble> {
        let accepts = HeaderValue::from_static("application/json, text/event-stream");
        let request = self.server.client.post(self.server.url.clone()).headers(self.headers()).header(ACCEPT, accepts).json(message);
        let response = request.send().await.map_err(|error| {
            // Without the address, which may hold a secret.
            let error = error.without_url();
            tracing::debug!(%error, cause = ?std::error::Error::source(&error), "Could not reach an MCP server");
            "the server cannot be reached"
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        tracing::debug!(status = response.status().as_u16(), "An MCP server refused a message");
        Err("the server refused the message")
    }

    fn headers(&self) -> HeaderMap {
        let Session { id, version } = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut headers = self.server.headers.clone();
        headers.extend(id.map(|id| (SESSION, id)));
        headers.extend(version.map(|version| (VERSION, version)));
        headers
    }

    async fn leave(&self) {
        if self.session.lock().unwrap_or_else(PoisonError::into_inner).id.is_some() {
            // A server may not know how to; then it forgets the session by itself.
            let _ = self.server.client.delete(self.server.url.clone()).headers(self.headers()).send().await;
        }
    }
}

/// A JSON-RPC error in the place of an answer. The CLI shows the model its words.
fn refusal(message: &Value, trouble: Trouble) -> Value {
    json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32000, "message": trouble}})
}

async fn whole(mut response: Response) -> Result<Value, Trouble> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| "the answer broke off")? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err("the answer is too large");
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| "the answer is not JSON")
}

fn is_event_stream(kind: &HeaderValue) -> bool {
    let essence = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("text/event-stream")
}

/// The answer to `id` among the events of a stream. What else the server says is passed over.
async fn streamed(mut response: Response, id: &Value) -> Result<Value, Trouble> {
    let mut events = Events::default();
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.map_err(|_| "the answer broke off")? {
        bytes += chunk.len();
        if bytes > LARGEST_ANSWER {
            return Err("the answer is too large");
        }
        for message in events.feed(&chunk) {
            if message["id"] == *id && message.get("method").is_none() {
                return Ok(message);
            }
        }
    }
    Err("the server did not answer")
}

/// The messages in a stream of server-sent events, each read once.
#[derive(Default)]
struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
}

impl Events {
    /// The messages that end in `chunk`.
    fn feed(&mut self, chunk: &[u8]) -> Vec<Value> {
        let mut messages = Vec::new();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.last() != Some(&b'\n') {
                break;
            }
            let line = self.line.trim_ascii_end();
            if line.is_empty() {
                messages.extend(serde_json::from_slice::<Value>(&self.data));
                self.data.clear();
            } else if let Some(data) = line.strip_prefix(b"data:") {
                self.data.extend_from_slice(data);
                self.data.push(b'\n');
            }
            self.line.clear();
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_servers_is_read_and_a_wrong_one_repeats_no_secret() {
        let servers = Servers::parse(br#"{"docs": {"url": "https://h/mcp?k=s3cret", "headers": {"Authorization": "Bearer s3cret"}}}"#);
        let servers = servers.expect("right");
        assert_eq!(servers.names(), ["docs"]);
        assert!(!format!("{servers:?}").contains("s3cret"));

        for (wrong, what) in [
            (r#"{"Docs": {"url": "https://h"}}"#, "no name"),
            (r#"{"a__b": {"url": "https://h"}}"#, "no name"),
            (r#"{"docs": {"url": "file:///s3cret"}}"#, "not `http://`"),
            (r#"{"docs": {"url": "https://h", "headers": {"a b": "s3cret"}}}"#, "a header of"),
            (r#"{"docs": {"url": "https://h", "headers": {"a": "s3cret\n"}}}"#, "a header of"),
            (r#"{"docs": {"url": "https://h", "token": "s3cret"}}"#, "line 1"),
            (r#"{"docs": "s3cret"}"#, "line 1"),
            (r#"{"docs": {"url": "https://h", "timeout_secs": 0}}"#, "not from 1 to 3600"),
        ] {
            let error = Servers::parse(wrong.as_bytes()).expect_err(wrong).to_string();
            assert!(error.contains(what) && !error.contains("s3cret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_rules_allow_what_was_granted() {
        let all = Grant { server: "docs".into(), tools: None };
        let some = Grant { tools: Some(vec!["a".into(), "b".into()]), ..all.clone() };

        assert_eq!(all.rules(), ["mcp__docs"]);
        assert_eq!(some.rules(), ["mcp__docs__a", "mcp__docs__b"]);
    }

    /// The clock runs ahead whenever nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_waited_for_once() {
        let silent = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let file = format!(r#"{{"docs": {{"url": "http://{}/mcp"}}}}"#, silent.local_addr().expect("bound"));
        let mut bridge = Servers::parse(file.as_bytes()).expect("right").bridge(&[Grant { server: "docs".into(), tools: None }]);
        let mut ask = async |message: &str| {
            let before = tokio::time::Instant::now();
            bridge.ask("r".into(), McpMessage { server: "docs".into(), message: message.into() });
            (bridge.answer().await, before.elapsed())
        };

        let (first, waited) = ask(r#"{"id":1,"method":"initialize"}"#).await;
        let (second, again) = ask(r#"{"id":2,"method":"initialize"}"#).await;

        assert!(first.contains("did not answer in time") && waited >= HANDSHAKE_LIMIT, "{first}");
        assert!(second.contains("did not answer before") && again == Duration::ZERO, "{second}");
        assert!(ask(r#"{"id":3,"method":"resources/list"}"#).await.0.contains("not served"));
        assert!(ask("[1]").await.0.contains("mcp_response"), "what is no message is answered as well");
    }

    #[test]
    fn a_message_is_found_however_its_stream_is_cut() {
        let stream =
            b": ping\n\nevent: message\r\nid: 1\r\ndata: {\"id\":1,\r\ndata:\"result\":{}}\r\n\r\ndata: nonsense\n\ndata: {\"id\":2}\n\n";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let messages: Vec<Value> = stream.chunks(size).flat_map(|chunk| events.feed(chunk)).collect();
            assert_eq!(messages, [json!({"id": 1, "result": {}}), json!({"id": 2})], "{size}");
        }
    }

    #[test]
    fn a_stream_of_events_is_known_by_its_type_alone() {
        for kind in ["text/event-stream", "Text/Event-Stream; charset=utf-8"] {
            assert!(is_event_stream(&HeaderValue::from_static(kind)));
        }
        assert!(!is_event_stream(&HeaderValue::from_static("application/json")));
    }
}
