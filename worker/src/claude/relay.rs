//! The model's API as one CLI process sees it: a server of its own that lets nothing but the API's paths
//! through and adds the credential, so that neither the CLI nor its tools ever hold the key. In a sandbox it serves
//! the CLI alone: what a tool asked the model for would be on nobody's bill. Headers, bodies and, where there is no
//! sandbox, the address (whoever knows it may use it) reach no log.

use std::{
    convert::Infallible,
    error::Error,
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Body, Frame, Incoming, SizeHint},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::sleep,
};
use tokio_util::{either::Either, task::AbortOnDropHandle};

use super::upstream::{Upstream, remove_hop};

/// The largest request: the API itself takes 32 MB.
const REQUEST_LIMIT: usize = 48 * 1024 * 1024;
/// How much of a larger one is read and thrown away, so that its sender is there to read the refusal.
const DISCARD_LIMIT: usize = 4 * REQUEST_LIMIT;
/// The most requests under way. More wait: sub-agents come in bursts.
const REQUESTS: usize = 16;
/// The most connections. More wait in the system's queue.
const CONNECTIONS: usize = 64;
/// The CLI in its pid namespace: the first process that bwrap, the namespace's init, starts.
const CLI_PID: &str = "2";
/// How long to leave a listener alone that could not accept: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a relay listens.
#[derive(Clone, Debug)]
pub enum Listen {
    /// On a unix socket, for a CLI in a sandbox that sees the socket's directory and no network.
    Socket(PathBuf),
    /// On a loopback port below a secret path, for a CLI without a sandbox.
    Loopback,
}

/// What the CLI has to be told.
#[derive(Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The host's path of the socket.
    Socket(PathBuf),
    /// The base URL.
    Url(String),
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
            Self::Url(_) => f.write_str("Url(_)"),
        }
    }
}

/// A running relay. Dropping it ends all its requests and removes its socket.
#[derive(Debug)]
pub struct Relay {
    endpoint: Endpoint,
    _server: AbortOnDropHandle<()>,
}

impl Relay {
    /// Listen, and forward to `upstream`.
    pub async fn start(listen: Listen, upstream: Upstream) -> io::Result<Self> {
        let (listener, endpoint, prefix) = match listen {
            Listen::Socket(path) => {
                let listener = UnixListener::bind(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                (Either::Left(listener), Endpoint::Socket(path), String::new())
            }
            Listen::Loopback => {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
                let prefix = secret_path()?;
                let endpoint = Endpoint::Url(format!("http://{}{prefix}", listener.local_addr()?));
                (Either::Right(listener), endpoint, prefix)
            }
        };
        let gate = Arc::new(Gate { upstream, prefix, slots: Arc::new(Semaphore::new(REQUESTS)) });
        Ok(Self { endpoint, _server: AbortOnDropHandle::new(tokio::spawn(serve(listener, gate))) })
    }

    /// Where it can be reached.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Endpoint::Socket(path) = &self.endpoint {
            // Gone with the job's directory at the latest.
            let _ = fs::remove_file(path);
        }
    }
}

type Listener = Either<UnixListener, TcpListener>;

async fn serve(listener: Listener, gate: Arc<Gate>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = accept(&listener), if connections.len() < CONNECTIONS => match accepted {
                Ok(stream) => {
                    connections.spawn(converse(stream, Arc::clone(&gate)));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: &Listener) -> io::Result<Either<UnixStream, TcpStream>> {
    match listener {
        Either::Left(socket) => Ok(Either::Left(socket.accept().await?.0)),
        Either::Right(port) => {
            let (stream, _) = port.accept().await?;
            // Deltas are small and must not wait for each other.
            stream.set_nodelay(true)?;
            Ok(Either::Right(stream))
        }
    }
}

async fn converse(stream: Either<UnixStream, TcpStream>, gate: Arc<Gate>) {
    let is_tool = matches!(&stream, Either::Left(socket) if is_tool(socket));
    let service = service_fn(|request| {
        let gate = Arc::clone(&gate);
        async move {
            let answer = if is_tool { Err(Refusal::NotTheCli) } else { gate.forward(request).await };
            Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::response))
        }
    });
    // Its error is the child's hanging up or the API's; the child sees both for itself.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Whether another process than the CLI of a sandbox is at the other end. One that is gone by now, or that nothing can
/// be told of, is none that waits for an answer.
fn is_tool(socket: &UnixStream) -> bool {
    let Some(pid) = socket.peer_cred().ok().and_then(|peer| peer.pid()) else { return true };
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    // From this process's namespace inwards; there is one number outside of any sandbox.
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let inner = pids.split_ascii_whitespace().skip(1);
    inner.last().is_some_and(|pid| pid != CLI_PID)
}

type Reply = BoxBody<Bytes, reqwest::Error>;

/// What a request passes through.
struct Gate {
    upstream: Upstream,
    /// The secret path all targets begin with, or nothing.
    prefix: String,
    slots: Arc<Semaphore>,
}

impl Gate {
    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Reply>, Refusal> {
        let target = self.target(request.method(), request.uri()).ok_or(Refusal::NotTheApi)?;
        if request.body().size_hint().lower() > REQUEST_LIMIT as u64 {
            discard(request.into_body()).await;
            return Err(Refusal::TooLarge);
        }
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| Refusal::Unreachable)?;
        let (parts, body) = request.into_parts();
        let body = reqwest::Body::wrap(Limited::new(body, REQUEST_LIMIT));
        let response = self.upstream.send(parts.method, &target, parts.headers, body).await.map_err(|error| Refusal::of(&error))?;

        let (mut parts, body) = Response::<reqwest::Body>::from(response).into_parts();
        remove_hop(&mut parts.headers);
        parts.headers.remove(header::SET_COOKIE);
        Ok(Response::from_parts(parts, Slotted { body, _slot: slot }.boxed()))
    }

    /// What to ask the API for, if it is something a CLI may ask for.
    fn target(&self, method: &Method, uri: &Uri) -> Option<String> {
        let (prefix, path) = uri.path().split_at_checked(self.prefix.len())?;
        if !bool::from(prefix.as_bytes().ct_eq(self.prefix.as_bytes())) {
            return None;
        }
        let is_allowed = match *method {
            Method::POST => matches!(path, "/v1/messages" | "/v1/messages/count_tokens"),
            Method::GET => path == "/v1/models" || path.strip_prefix("/v1/models/").is_some_and(is_model),
            Method::HEAD => matches!(path, "" | "/"),
            _ => false,
        };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        is_allowed.then(|| format!("{path}{query}"))
    }
}

/// A name that stays one segment of the path, whoever reads it.
fn is_model(name: &str) -> bool {
    !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte))
}

/// Why the relay itself answers, in the API's own form.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    NotTheApi,
    NotTheCli,
    TooLarge,
    Unreachable,
}

impl Refusal {
    fn of(error: &reqwest::Error) -> Self {
        let mut cause = error.source();
        while let Some(error) = cause {
            if error.is::<LengthLimitError>() {
                return Self::TooLarge;
            }
            cause = error.source();
        }
        Self::Unreachable
    }

    fn response(self) -> Response<Reply> {
        let (status, kind, message) = match self {
            Self::NotTheApi => (StatusCode::FORBIDDEN, "permission_error", "this path is not open to jobs"),
            Self::NotTheCli => (StatusCode::FORBIDDEN, "permission_error", "the API is not open to what a job runs"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", "the request is larger than 48 MiB"),
            // A status the CLI tries again after.
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "api_error", "the API could not be reached"),
        };
        let text = json!({"type": "error", "error": {"type": kind, "message": message}}).to_string();
        let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed());
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

async fn discard(mut body: Incoming) {
    let mut left = DISCARD_LIMIT;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

/// 128 random bits: other users of the host can connect, but not guess it.
fn secret_path() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("/{:032x}", u128::from_be_bytes(bytes)))
}

/// An answer of the API, which occupies its slot to its end.
struct Slotted {
    body: reqwest::Body,
    _slot: OwnedSemaphorePermit,
}

impl Body for Slotted {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
