//! The listener: what a client may take, how many there may be, and how it ends.

use std::{sync::Arc, time::Duration};

use api::{
    client_address::TrustedProxies,
    serve::{self, Limits},
};
use poem::{Endpoint, EndpointExt as _, Request, Response, endpoint::make};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::stage::PATIENCE;

struct Server {
    address: std::net::SocketAddr,
    draining: CancellationToken,
    running: JoinHandle<()>,
}

async fn start(endpoint: impl Endpoint<Output = Response> + 'static, connections: usize, drain: Duration) -> Server {
    let uncounted = TrustedProxies::default().and_this_machine();
    start_with(endpoint, Limits { connections, per_address: 1, uncounted, drain, dropped: Counter::default() }).await
}

async fn start_with(endpoint: impl Endpoint<Output = Response> + 'static, limits: Limits) -> Server {
    let listener = serve::listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let draining = CancellationToken::new();
    let running = tokio::spawn(serve::serve(listener, endpoint, limits, draining.clone()));
    Server { address, draining, running }
}

fn hello() -> impl Endpoint<Output = Response> {
    make(|_: Request| async { "hello" }).map_to_response()
}

/// An endpoint that says when a request came, and answers it with a permit.
fn slow(came: Arc<Notify>, gate: Arc<Semaphore>) -> impl Endpoint<Output = Response> {
    make(move |_: Request| {
        let (came, gate) = (came.clone(), gate.clone());
        async move {
            came.notify_one();
            gate.acquire().await.expect("open").forget();
            "hello"
        }
    })
    .map_to_response()
}

async fn to_end(socket: &mut TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut text)).await.expect("closed in time").expect("readable");
    text
}

/// Whether the peer says something, or closes, within `limit`.
async fn heard(socket: &mut TcpStream, byte: &mut [u8; 1], limit: Duration) -> bool {
    tokio::time::timeout(limit, socket.read(byte)).await.is_ok()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_request_is_answered() {
    let server = start(hello(), 10, PATIENCE).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");

    socket.write_all(GET).await.expect("sent");

    let answer = to_end(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn http_2_is_spoken_without_an_upgrade() {
    let server = start(hello(), 10, PATIENCE).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");

    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");

    // Length 3, type SETTINGS, stream 0: the server's first frame.
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.expect("a frame");
    assert_eq!((head[3], &head[5..]), (4, [0u8; 4].as_slice()));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed_after_ten_seconds() {
    let server = start(hello(), 10, PATIENCE).await;
    let begun = tokio::time::Instant::now();

    let says = [b"" as &[u8], b"PRI * HT", b"GET / HTTP/1.1\r\nhost:"].map(|said| async move {
        let mut socket = TcpStream::connect(server.address).await.expect("connected");
        socket.write_all(said).await.expect("sent");
        // Closed, with a word about it or without one.
        let mut word = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut word)).await.expect("closed in time");
    });
    let drips = async {
        let mut socket = TcpStream::connect(server.address).await.expect("connected");
        let mut byte = [0];
        let drip = async {
            let head = b"GET / HTTP/1.1\r\nhost: here\r\nx-slow: ".iter().chain(b"s".iter().cycle());
            for said in head {
                if socket.write_all(&[*said]).await.is_err() || heard(&mut socket, &mut byte, Duration::from_millis(300)).await {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, drip).await.expect("closed in time");
    };
    tokio::join!(futures_util::future::join_all(says), drips);

    assert!((9..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_connection_beyond_the_bound_waits_for_room() {
    let server = start(hello(), 1, PATIENCE).await;
    let first = TcpStream::connect(server.address).await.expect("connected");
    let mut second = TcpStream::connect(server.address).await.expect("in the kernel's queue");
    second.write_all(GET).await.expect("sent");

    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(300), second.read(&mut byte)).await.is_err(), "answered without room");
    drop(first);

    assert!(to_end(&mut second).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn one_address_cannot_have_all_connections() {
    let limits =
        Limits { connections: 10, per_address: 2, uncounted: TrustedProxies::default(), drain: PATIENCE, dropped: Counter::default() };
    let server = start_with(hello(), limits).await;
    let connect = async || TcpStream::connect(server.address).await.expect("connected");
    let mut places = [connect().await, connect().await];

    let mut third = connect().await;
    let mut byte = [0];
    let closed = tokio::time::timeout(PATIENCE, third.read(&mut byte)).await.expect("closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    places[0].write_all(GET).await.expect("sent");
    assert!(to_end(&mut places[0]).await.ends_with("hello"));

    // The place is free once the server has seen its connection end.
    let answered = async {
        loop {
            let (mut socket, mut answer) = (connect().await, Vec::new());
            if socket.write_all(GET).await.is_ok() && socket.read_to_end(&mut answer).await.is_ok_and(|length| length > 0) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("a place in time");
}

#[tokio::test]
async fn a_connection_without_another_request_is_closed() {
    let server = start(hello(), 10, PATIENCE).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await.expect("sent");
    let begun = tokio::time::Instant::now();

    assert!(to_end(&mut socket).await.ends_with("hello"));

    assert!((9..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_request_knows_its_peer() {
    let tells = make(|request: Request| async move { request.remote_addr().to_string() }).map_to_response();
    let server = start(tells, 10, PATIENCE).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");

    socket.write_all(GET).await.expect("sent");

    let ours = socket.local_addr().expect("connected");
    assert!(to_end(&mut socket).await.ends_with(&format!("socket://{ours}")));
}

#[tokio::test]
async fn requests_finish_before_the_server_ends() {
    let (came, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let server = start(slow(came.clone(), gate.clone()), 10, PATIENCE).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await.expect("sent");
    came.notified().await;

    server.draining.cancel();
    gate.add_permits(1);

    assert!(to_end(&mut socket).await.ends_with("hello"));
    tokio::time::timeout(PATIENCE, server.running).await.expect("ended in time").expect("without a panic");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_request_that_does_not_finish_is_cut_off() {
    let (came, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let server = start(slow(came.clone(), gate), 10, Duration::from_millis(100)).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    socket.write_all(GET).await.expect("sent");
    came.notified().await;

    server.draining.cancel();

    tokio::time::timeout(PATIENCE, server.running).await.expect("ended in time").expect("without a panic");
    assert_eq!(to_end(&mut socket).await, "");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_way_out() {
    let server = start(hello(), 1, PATIENCE).await;

    let error = serve::listen(server.address).await.expect_err("taken").to_string();

    assert!(error.starts_with(&format!("could not listen on {}", server.address)) && error.contains("`PORT`"), "{error}");
}
