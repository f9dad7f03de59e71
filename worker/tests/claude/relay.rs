//! The relay between a child, played by a plain client, and an API that does as each test wants.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Frame, Incoming},
    client::conn::http1::{self, SendRequest},
    server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use worker::claude::{
    relay::{Endpoint, Listen, Relay},
    upstream::{Credential, Upstream},
};

use crate::room::{Room, SOON, spawn};

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An API on a loopback port, and the requests it got.
struct Api {
    base: String,
    server: JoinHandle<()>,
}

impl Api {
    /// Answers each request by `answer`.
    async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/base/", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = Arc::clone(&answer);
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async { Ok::<_, Infallible>(answer.await) }
                });
                tokio::spawn(async move { server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
            }
        });
        Self { base, server }
    }

    /// Answers each request with what it was.
    async fn echo() -> Self {
        Self::start(async |request: Request<Incoming>| {
            let (parts, body) = request.into_parts();
            let headers: Vec<_> = parts.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
            let count = body.collect().await.unwrap().to_bytes().len();
            whole(format!("{} {}\n{}{count} bytes", parts.method, parts.uri, headers.concat()))
        })
        .await
    }

    fn upstream(&self) -> Upstream {
        Upstream::new(&self.base, &Credential::ApiKey("real-key".into())).unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn whole(text: impl Into<Bytes>) -> Answer {
    Response::builder().header("set-cookie", "a=b").header("x-kept", "1").body(Full::new(text.into()).boxed()).unwrap()
}

/// An answer whose chunks the test sends. The receiving end closes when the relay gives the answer up.
fn streamed() -> (mpsc::Sender<&'static str>, Answer) {
    let (chunks, mut receiver) = mpsc::channel(1);
    let stream = async_stream(move |context| receiver.poll_recv(context));
    (chunks, Response::new(BoxBody::new(StreamBody::new(stream))))
}

fn async_stream(
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<&'static str>> + Send + Sync + 'static,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync + 'static {
    futures_util::stream::poll_fn(move |context| poll(context).map(|chunk| Some(Ok(Frame::data(Bytes::from_static(chunk?.as_bytes()))))))
}

struct Child {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    connection: JoinHandle<()>,
}

impl Child {
    async fn connect(socket: &std::path::Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async { drop(connection.await) });
        Self { sender, connection }
    }

    async fn send(&mut self, method: Method, target: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "child")
            .header("x-api-key", "made-up")
            .header("authorization", "Bearer made-up")
            .header("anthropic-version", "2023-06-01")
            .body(Full::new(body.into()).boxed())
            .unwrap();
        self.sender.ready().await.unwrap();
        timeout(SOON, self.sender.send_request(request)).await.expect("an answer in time").unwrap()
    }
}

async fn on_socket(room: &Room, api: &Api) -> (Relay, PathBuf) {
    let socket = room.path("sock/api.sock");
    (Relay::start(Listen::Socket(socket.clone()), api.upstream()).await.unwrap(), socket)
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn a_request_goes_through_with_the_real_credential() {
    let (room, api) = (Room::new(), Api::echo().await);
    let (_relay, socket) = on_socket(&room, &api).await;
    let mut child = Child::connect(&socket).await;

    let response = child.send(Method::POST, "/v1/messages?beta=true", "{}").await;

    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-kept"], "1");
    assert!(!response.headers().contains_key("set-cookie"));
    let seen = text(response).await;
    assert!(seen.starts_with("POST /base/v1/messages?beta=true\n"), "{seen}");
    for part in ["x-api-key: real-key\n", "anthropic-version: 2023-06-01\n", "content-length: 2\n", "\n2 bytes"] {
        assert!(seen.contains(part), "no {part:?} in {seen}");
    }
    for part in ["made-up", "host: child"] {
        assert!(!seen.contains(part), "{part:?} in {seen}");
    }
}

#[tokio::test]
async fn only_the_api_s_paths_are_open() {
    let (room, api) = (Room::new(), Api::echo().await);
    let (_relay, socket) = on_socket(&room, &api).await;
    let mut child = Child::connect(&socket).await;

    for (method, target) in [
        (Method::POST, "/v1/messages/count_tokens?beta=true"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/models/claude-sonnet-4-5@20250929?limit=1"),
        (Method::HEAD, "/"),
    ] {
        assert_eq!(child.send(method, target, "").await.status(), 200, "{target}");
    }
    for (method, target) in [
        (Method::GET, "/v1/messages"),
        (Method::POST, "/v1/messages/batches"),
        (Method::POST, "/v1/files"),
        (Method::DELETE, "/v1/models/a"),
        (Method::GET, "/v1/models/../files"),
        (Method::GET, "/v1/models/%2e%2e/files"),
        (Method::GET, "/v1/models/a/b"),
        (Method::GET, "//v1/models"),
        (Method::GET, "/"),
    ] {
        let response = child.send(method, target, "").await;
        assert_eq!(response.status(), 403, "{target}");
        assert_eq!(
            text(response).await,
            r#"{"error":{"message":"this path is not open to jobs","type":"permission_error"},"type":"error"}"#
        );
    }
}

#[tokio::test]
async fn an_answer_arrives_chunk_by_chunk() {
    let (chunks, answer) = streamed();
    let answer = std::sync::Mutex::new(Some(answer));
    let api = Api::start(move |_| std::future::ready(answer.lock().unwrap().take().unwrap())).await;
    let room = Room::new();
    let (_relay, socket) = on_socket(&room, &api).await;
    let mut child = Child::connect(&socket).await;

    chunks.send("first").await.unwrap();
    let mut body = child.send(Method::POST, "/v1/messages", "{}").await.into_body().into_data_stream();
    // The API still has its end open.
    assert_eq!(timeout(SOON, body.next()).await.expect("the first chunk").unwrap().unwrap(), "first");

    chunks.send("second").await.unwrap();
    assert_eq!(timeout(SOON, body.next()).await.expect("the second chunk").unwrap().unwrap(), "second");
    drop(chunks);
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn a_child_that_hangs_up_cancels_its_request() {
    let (chunks, answer) = streamed();
    let answer = std::sync::Mutex::new(Some(answer));
    let api = Api::start(move |_| std::future::ready(answer.lock().unwrap().take().unwrap())).await;
    let room = Room::new();
    let (_relay, socket) = on_socket(&room, &api).await;
    let mut child = Child::connect(&socket).await;
    chunks.send("first").await.unwrap();
    let response = child.send(Method::POST, "/v1/messages", "{}").await;

    child.connection.abort();
    drop(response);

    timeout(SOON, chunks.closed()).await.expect("the API's connection is closed");
}

#[tokio::test]
async fn dropping_the_relay_ends_its_requests_and_removes_its_socket() {
    let (chunks, answer) = streamed();
    let answer = std::sync::Mutex::new(Some(answer));
    let api = Api::start(move |_| std::future::ready(answer.lock().unwrap().take().unwrap())).await;
    let room = Room::new();
    let (relay, socket) = on_socket(&room, &api).await;
    let mut child = Child::connect(&socket).await;
    chunks.send("first").await.unwrap();
    let response = child.send(Method::POST, "/v1/messages", "{}").await;

    drop(relay);

    timeout(SOON, chunks.closed()).await.expect("the API's connection is closed");
    timeout(SOON, response.into_body().collect()).await.expect("an end").expect_err("the answer is cut off");
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_request_too_large_is_refused_whether_it_says_so_or_not() {
    let (room, api) = (Room::new(), Api::echo().await);
    let (_relay, socket) = on_socket(&room, &api).await;

    let mut child = Child::connect(&socket).await;
    let response = child.send(Method::POST, "/v1/messages", vec![b' '; 48 * 1024 * 1024 + 1]).await;
    assert_eq!(response.status(), 413);
    assert!(text(response).await.contains("request_too_large"));

    // As large as may be passes, on the same connection.
    let response = child.send(Method::POST, "/v1/messages", vec![b' '; 48 * 1024 * 1024]).await;
    assert!(text(response).await.ends_with("\n50331648 bytes"));

    let chunk = Bytes::from(vec![b' '; 1 << 20]);
    let chunks = futures_util::stream::iter((0..49).map(move |_| Ok(Frame::data(chunk.clone()))));
    let request = Request::post("/v1/messages").body(BoxBody::new(StreamBody::new(chunks))).unwrap();
    let response = timeout(SOON, child.sender.send_request(request)).await.expect("an answer in time").unwrap();
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn an_api_that_is_away_is_an_error_worth_a_retry() {
    let room = Room::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let upstream = Upstream::new(&format!("http://{closed}"), &Credential::ApiKey("real-key".into())).unwrap();
    let socket = room.path("sock/api.sock");
    let _relay = Relay::start(Listen::Socket(socket.clone()), upstream).await.unwrap();

    let response = Child::connect(&socket).await.send(Method::POST, "/v1/messages", "{}").await;

    assert_eq!(response.status(), 502);
    assert_eq!(text(response).await, r#"{"error":{"message":"the API could not be reached","type":"api_error"},"type":"error"}"#);
}

#[tokio::test]
async fn no_more_than_sixteen_requests_are_under_way() {
    let (arrivals, mut arrived) = mpsc::channel(32);
    let api = Api::start(move |_| {
        let arrivals = arrivals.clone();
        async move {
            let (chunks, answer) = streamed();
            arrivals.send(chunks).await.unwrap();
            answer
        }
    })
    .await;
    let room = Room::new();
    let (_relay, socket) = on_socket(&room, &api).await;
    let send = async |socket: PathBuf| {
        let mut child = Child::connect(&socket).await;
        let response = child.send(Method::POST, "/v1/messages", "{}").await;
        (child, response)
    };
    let mut under_way = Vec::new();
    for _ in 0..16 {
        let answered = send(socket.clone()).await;
        under_way.push((arrived.recv().await.unwrap(), answered));
    }

    let last = tokio::spawn(send(socket.clone()));
    let mut other = Child::connect(&socket).await;
    // Far more of the relay's turns than the last one needs to get through.
    for _ in 0..50 {
        assert_eq!(other.send(Method::GET, "/", "").await.status(), 403);
    }
    assert!(arrived.try_recv().is_err(), "a seventeenth request arrived");

    // One that ends makes room for it.
    let (chunks, (_child, response)) = under_way.pop().unwrap();
    drop(chunks);
    response.into_body().collect().await.unwrap();
    timeout(SOON, last).await.expect("its turn").unwrap();
}

#[tokio::test]
async fn without_a_sandbox_only_the_secret_path_is_open() {
    let api = Api::echo().await;
    let relay = Relay::start(Listen::Loopback, api.upstream()).await.unwrap();
    let Endpoint::Url(base) = relay.endpoint() else { panic!("not a URL") };
    let client = reqwest::Client::new();

    let inside = client.post(format!("{base}/v1/messages?beta=true")).body("{}").send().await.unwrap();
    assert!(inside.text().await.unwrap().starts_with("POST /base/v1/messages?beta=true\n"));
    assert_eq!(client.head(base).send().await.unwrap().status(), 200);

    let (origin, secret) = base.rsplit_once('/').unwrap();
    assert_eq!(secret.len(), 32);
    for guess in ["", "/00000000000000000000000000000000", "/short"] {
        let outside = client.post(format!("{origin}{guess}/v1/messages")).send().await.unwrap();
        assert_eq!(outside.status(), 403, "{guess}");
    }
    assert!(!format!("{relay:?}").contains(secret));
}

#[tokio::test]
async fn in_a_sandbox_the_api_is_open_to_the_cli_and_not_to_what_it_runs() {
    let (room, api) = (Room::new(), Api::echo().await);
    let (_relay, _) = on_socket(&room, &api).await;
    // The CLI, and a tool that it starts.
    let ask = r#"
        use IO::Socket::UNIX;
        my $socket = IO::Socket::UNIX->new(Peer => "/sock/api.sock") or die "no socket";
        print $socket "GET /v1/models HTTP/1.1\r\nhost: child\r\nconnection: close\r\n\r\n";
        my $status = <$socket>;
        print $status;
    "#;
    let script = r#"$| = 1; eval $ARGV[0]; die $@ if $@; system("/usr/bin/perl", "-e", $ARGV[0])"#;
    let launch = room.confined(room.launch("/usr/bin/perl", ["-e", script, ask])).await;

    let mut process = spawn(&launch);
    let mut answers = Vec::new();
    while let Some(line) = process.next_line().await.unwrap() {
        answers.push(String::from_utf8(line).unwrap().trim().to_owned());
    }

    assert_eq!(answers, ["HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"], "{}", process.stderr_tail());
}
