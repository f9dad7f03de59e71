//! The listener: what a client may take, how many there may be, and how it ends.

use std::{sync::Arc, time::Duration};

use api::serve::{self, Limits};
use poem::{Endpoint, EndpointExt as _, Request, Response, endpoint::make};
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
    let listener = serve::listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let draining = CancellationToken::new();
    let running = tokio::spawn(serve::serve(listener, endpoint, Limits { connections, drain }, draining.clone()));
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
    futures_util::future::join_all(says).await;

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
