//! The least that serves a stream of events to many: hyper as it is, one broadcast, and a process for both. It
//! passes on the frames that come in on standard input; whoever connects gets the first of them first.

use std::{convert::Infallible, io, net::Ipv4Addr};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::{Request, Response, body::Frame, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast::{self, Receiver, error::RecvError},
    task::spawn_blocking,
};
use tokio_util::task::TaskTracker;

/// As many events as the service keeps for those who are slow.
const QUEUE: usize = 512;
/// What the service says first.
const RETRY: &[u8] = b"retry: 2000\n\n";

/// Serve until standard input ends. Where is said on standard output.
pub fn run() -> anyhow::Result<()> {
    // The runtime of the service.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve())
}

#[expect(clippy::print_stdout, reason = "its parent listens")]
async fn serve() -> anyhow::Result<()> {
    let mut input = io::stdin().lock();
    let first = next_frame(&mut input)?.context("nothing to serve")?;
    let (sender, events) = broadcast::channel(QUEUE);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    drop(input);

    let mut source = spawn_blocking(move || {
        let mut input = io::stdin().lock();
        while let Some(frame) = next_frame(&mut input)? {
            // Nobody may be there to hear it.
            let _ = sender.send(frame);
        }
        io::Result::Ok(())
    });
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(connections.spawn(answer(accepted?.0, first.clone(), events.resubscribe()))),
            ended = &mut source => break ended??,
        }
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

async fn answer(socket: TcpStream, first: Bytes, events: Receiver<Bytes>) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let service = service_fn(|_: Request<Incoming>| {
        let body = StreamBody::new(frames(first.clone(), events.resubscribe()));
        let response = Response::builder().header(header::CONTENT_TYPE, "text/event-stream").header(header::CACHE_CONTROL, "no-store");
        async move { response.body(body) }
    });
    Ok(http1::Builder::new().serve_connection(TokioIo::new(socket), service).await?)
}

fn frames(first: Bytes, events: Receiver<Bytes>) -> impl Stream<Item = Result<Frame<Bytes>, RecvError>> {
    let begin = stream::iter([Bytes::from_static(RETRY), first]).map(Ok::<_, Infallible>);
    let rest = stream::unfold(events, |mut events| async {
        match events.recv().await {
            Ok(event) => Some((Ok(event), events)),
            Err(RecvError::Closed) => None,
            // Breaks the connection, and with it the measurement.
            Err(lagged) => Some((Err(lagged), events)),
        }
    });
    begin.map(|Ok(frame)| Ok(frame)).chain(rest).map(|frame| frame.map(Frame::data))
}

/// The next frame, with the empty line behind it.
fn next_frame(input: &mut impl io::BufRead) -> io::Result<Option<Bytes>> {
    let mut frame = Vec::new();
    while !frame.ends_with(b"\n\n") {
        if input.read_until(b'\n', &mut frame)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(frame.into()))
}
