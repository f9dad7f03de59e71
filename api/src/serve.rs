//! The connections. A loop of our own around the endpoint, for what a public listener owes itself: bounds on
//! connections, in all and of one address, on the time a client may take to say what it wants and to take
//! what it asked for, and an end that lets requests finish.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    Request,
    body::{Body, Frame, Incoming, SizeHint},
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use poem::{
    Addr, Endpoint, Response,
    http::{Method, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, Sleep, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    app::App,
    client_address::{ClientAddress, TrustedProxies},
    handover::{Handover, Leaving, Left},
    places::{Place, Places},
};

/// How long a client may take to send the head of a request; on HTTP/1.1 also how long it may have none to
/// send after an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// What no request of HTTP/1.1 begins with (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2";
/// How much is read before it is known which protocol a client speaks: most requests whole, in bytes.
const FIRST: usize = 4 * 1024;
/// How long a client may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of an answer waits for a client to take it, and how long the head of a request may be, in bytes.
const BUFFER: usize = 16 * 1024;
/// How long a connection is kept that has nothing to do. Only HTTP/2 gets there.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait after a connection could not be accepted, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bounds of the listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most connections at a time.
    pub connections: usize,
    /// The most connections of one address at a time.
    pub per_address: usize,
    /// Whose connections are not counted by address.
    pub uncounted: TrustedProxies,
    /// How long requests may take to finish once the server was told to stop.
    pub drain: Duration,
    /// Counts the clients that were cut off because they took nothing of their answer.
    pub dropped: Counter,
}

impl Limits {
    /// Those that `app` is set to.
    pub fn of(app: &App) -> Self {
        let config = &app.config;
        Self {
            connections: config.max_connections,
            per_address: config.max_connections_per_address,
            uncounted: config.trusted_proxies.and_this_machine(),
            drain: config.drain_timeout,
            dropped: app.metrics.traffic.readers.dropped.clone(),
        }
    }
}

/// Listen on `address`.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => " (hint: another program listens there: stop it, or set `PORT` to a free one)",
            io::ErrorKind::PermissionDenied => " (hint: ports below 1024 are the system's: set `PORT` to another)",
            io::ErrorKind::AddrNotAvailable => " (hint: `HOST` must be an address of this machine)",
            _ => "",
        };
        io::Error::new(error.kind(), format!("could not listen on {address}: {error}{hint}"))
    })
}

/// Answer what comes in on `listener` by `endpoint` until `draining`, then let requests finish.
pub async fn serve<E>(listener: TcpListener, endpoint: E, limits: Limits, draining: CancellationToken)
where
    E: Endpoint<Output = Response> + 'static,
{
    let endpoint = Arc::new(endpoint);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let neighbours = Neighbours { places: Places::new(limits.per_address), uncounted: limits.uncounted };
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    while let Some((socket, peer, slot)) = accept(&listener, &slots, &draining).await {
        let Ok(place) = neighbours.admit(peer.ip()) else {
            debug!(%peer, "Closed a connection: its address has too many");
            continue;
        };
        let streams = Streams { tasks: connections.clone(), cut_off: cut_off.clone(), dropped: limits.dropped.clone() };
        let connection = connection(socket, peer, endpoint.clone(), streams, draining.clone(), (slot, place));
        connections.spawn(cut_off.clone().run_until_cancelled_owned(connection));
    }
    drop(listener);
    connections.close();
    info!("Letting {} connections and streams finish", connections.len());
    if timeout(limits.drain, connections.wait()).await.is_err() {
        warn!("Cutting off {} connections and streams that did not finish in time", connections.len());
        cut_off.cancel();
        connections.wait().await;
    }
}

/// The next connection, once there is room for it. `None` once draining began.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    draining: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let accepted = async {
        // Room first: those without wait in the kernel's queue, which is bounded too.
        let slot = slots.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => return Some((socket, peer, slot)),
                // The client gave up before we got to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    warn!(%error, "Could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = draining.cancelled() => None,
        accepted = accepted => accepted,
    }
}

/// One connection, HTTP/1.1 or HTTP/2, to its end, and what it is upgraded to.
async fn connection<E>(
    mut socket: TcpStream,
    peer: SocketAddr,
    endpoint: Arc<E>,
    streams: Streams,
    draining: CancellationToken,
    _held: (OwnedSemaphorePermit, Option<Place<IpAddr>>),
) where
    E: Endpoint<Output = Response> + 'static,
{
    // Events are small and wanted at once.
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%peer, %error, "Could not set TCP_NODELAY");
    }
    let local = LocalAddr(socket.local_addr().map_or_else(|_| Addr::custom("tcp", "unknown"), Addr::from));
    let remote = RemoteAddr(Addr::from(peer));
    let first = draining.run_until_cancelled(timeout(HEAD_TIMEOUT, Box::pin(first_bytes(&mut socket)))).await;
    let Some(Ok(Ok(first))) = first else { return };
    let is_http2 = first.starts_with(HTTP2);
    let handover = Handover::default();
    let io = TokioIo::new(Wire::new(socket, first, handover.clone(), streams.dropped.clone()));

    let requests = Requests::default();
    let service = service_fn(|request: Request<Incoming>| {
        let open = requests.open();
        let version = request.version();
        let lasts = !is_http2 && *request.method() != Method::HEAD;
        let mut request = poem::Request::from((request, local.clone(), remote.clone(), Scheme::HTTP));
        let handover = lasts.then(|| handover.clone());
        if let Some(handover) = &handover {
            request.set_data(handover.clone());
        }
        let endpoint = endpoint.clone();
        // Boxed: a connection keeps room for it as long as it lives.
        Box::pin(async move {
            let response = endpoint.get_response(request).await;
            let response = match handover {
                Some(handover) => handover.take_out(response, version),
                None => Some(response),
            };
            // One that was taken out is answered elsewhere: hyper is let go of while it waits for it here.
            let Some(response) = response else { return std::future::pending().await };
            let progress = PROGRESS.try_with(Clone::clone).ok();
            Ok::<_, Infallible>(hyper::Response::from(response).map(|body| Answer { body, progress, _open: open }))
        })
    });
    // Both boxed, because only one is needed.
    let lasting = if is_http2 {
        let connection = Box::pin(http2_builder(streams).serve_connection(io, service));
        let ended = until_told(connection, http2::Connection::graceful_shutdown, &requests, &draining).await;
        Left::Ended(ended)
    } else {
        let connection = Box::pin(Leaving::new(http1_builder().serve_connection(io, service), handover.clone()));
        until_told(connection, Leaving::shut_down, &requests, &draining).await.map(|connection| {
            let parts = connection.into_parts();
            parts.io.into_inner().after(parts.read_buf)
        })
    };
    let ended = match lasting {
        Left::Ended(ended) => ended.map_err(io::Error::other),
        Left::Handed(wire, lasting) => lasting.go_on(wire).await,
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "Lost a connection");
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER);
    builder
}

fn http2_builder(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder.timer(TokioTimer::new()).max_concurrent_streams(200).max_header_list_size(16 * 1024).max_send_buf_size(BUFFER);
    builder.keep_alive_interval(Duration::from_secs(30)).keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Run `connection` until it ends, and ask it to once draining began or it has had nothing to do for long.
async fn until_told<F: Future>(
    mut connection: Pin<Box<F>>,
    shut_down: impl FnOnce(Pin<&mut F>),
    requests: &Requests,
    draining: &CancellationToken,
) -> F::Output {
    tokio::select! {
        outcome = &mut connection => return outcome,
        () = draining.cancelled() => {}
        () = requests.none_for(IDLE_TIMEOUT) => {}
    }
    shut_down(connection.as_mut());
    connection.await
}

/// What a client says first, as much as tells which protocol it speaks. hyper would find out by itself, but
/// keeps twice the memory for each connection that way.
async fn first_bytes(socket: &mut TcpStream) -> io::Result<Bytes> {
    let mut first = BytesMut::with_capacity(FIRST);
    loop {
        if socket.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !HTTP2.starts_with(&first) || first.len() >= HTTP2.len() {
            return Ok(first.freeze());
        }
    }
}

/// Runs the streams of an HTTP/2 connection, and gives up one whose client takes nothing of it: while the
/// connection carries others, no socket stands still.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    cut_off: CancellationToken,
    dropped: Counter,
}

tokio::task_local! {
    /// How the answer on this stream of an HTTP/2 connection is being taken.
    static PROGRESS: Arc<Progress>;
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (progress, cut_off, dropped) = (Arc::new(Progress::default()), self.cut_off.clone(), self.dropped.clone());
        self.tasks.spawn(PROGRESS.scope(progress.clone(), async move {
            tokio::select! {
                () = stream => {}
                () = progress.stalled() => drop(dropped.inc()),
                () = cut_off.cancelled() => {}
            }
        }));
    }
}

/// How an answer is being taken by its client.
#[derive(Debug, Default)]
struct Progress {
    /// How often it was asked for more.
    asked: AtomicU64,
    /// Whether what it answered last has yet to be taken.
    is_waiting: AtomicBool,
}

impl Progress {
    fn note(&self, is_waiting: bool) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.is_waiting.store(is_waiting, Ordering::Relaxed);
    }

    /// Wait until the client has taken nothing for [`WRITE_TIMEOUT`] and a little more.
    async fn stalled(&self) {
        let mut seen = u64::MAX;
        let mut since = Instant::now();
        let mut looks = interval(WRITE_TIMEOUT / 10);
        loop {
            looks.tick().await;
            let asked = self.asked.load(Ordering::Relaxed);
            if asked != seen || !self.is_waiting.load(Ordering::Relaxed) {
                (seen, since) = (asked, Instant::now());
            } else if since.elapsed() >= WRITE_TIMEOUT {
                return;
            }
        }
    }
}

/// The bound on the connections of one address.
struct Neighbours {
    places: Places<IpAddr>,
    uncounted: TrustedProxies,
}

impl Neighbours {
    /// A place for a connection of `peer`; none where it needs none.
    fn admit(&self, peer: IpAddr) -> Result<Option<Place<IpAddr>>, Crowded> {
        let peer = peer.to_canonical();
        if self.uncounted.contains(peer) {
            return Ok(None);
        }
        self.places.take(ClientAddress(peer).network()).map(Some).ok_or(Crowded)
    }
}

/// An address has as many connections as it may have.
#[derive(Debug)]
struct Crowded;

/// The requests of one connection whose answers have not been sent to their end.
#[derive(Clone, Default)]
struct Requests(watch::Sender<usize>);

/// One of them.
struct Open(Requests);

impl Requests {
    fn open(&self) -> Open {
        self.0.send_modify(|count| *count += 1);
        Open(self.clone())
    }

    /// Wait until there was none for so long.
    async fn none_for(&self, limit: Duration) {
        let mut count = self.0.subscribe();
        loop {
            let is_idle = *count.borrow_and_update() == 0;
            let is_unchanged = timeout(limit, count.changed()).await.is_err();
            if is_idle && is_unchanged {
                return;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// A body that keeps its request open until it is sent or given up.
struct Answer<B> {
    body: B,
    progress: Option<Arc<Progress>>,
    _open: Open,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(progress) = &self.progress {
            progress.note(matches!(polled, Poll::Ready(Some(_))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection of ours.
pub type Wire = Impatient<TcpStream>;

/// A socket that gives up on a peer which takes nothing of what is written to it. The clock is here and not
/// in the body: a body is only asked for more while the peer takes it.
pub struct Impatient<S> {
    socket: S,
    /// What was read of it already.
    first: Bytes,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Hears whether what was written has left.
    handover: Handover<Self>,
    dropped: Counter,
}

impl<S> Impatient<S> {
    fn new(socket: S, first: Bytes, handover: Handover<Self>, dropped: Counter) -> Self {
        Self { socket, first, stalled: None, handover, dropped }
    }

    /// The same after `read` was read of it and not used.
    fn after(self, read: Bytes) -> Self {
        let first = if read.is_empty() { self.first } else { [read, self.first].concat().into() };
        Self { first, ..self }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let clock = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(clock.as_mut().poll(context));
        self.dropped.inc();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.socket).poll_read(context, buffer);
        }
        let now = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(now));
        if self.first.is_empty() {
            // Or its memory would stay as long as the connection.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.handover.note_flushed(false);
        let outcome = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.judge(context, outcome)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.handover.note_flushed(false);
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.judge(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.socket).poll_flush(context);
        if outcome.is_ready() {
            self.handover.note_flushed(true);
        }
        self.judge(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let ((ours, _theirs), dropped) = (duplex(10), Counter::default());
        let begun = Instant::now();

        let error =
            Impatient::new(ours, Bytes::new(), Handover::default(), dropped.clone()).write_all(&[0; 11]).await.expect_err("given up");

        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_TIMEOUT));
        assert_eq!(dropped.get(), 1);
    }

    #[test]
    fn an_address_has_so_many_places_and_a_proxy_any_number() {
        let uncounted = "10.0.0.0/8".parse().expect("a network");
        let neighbours = Neighbours { places: Places::new(2), uncounted };
        let admit = |peer: &str| neighbours.admit(peer.parse().expect("an address"));

        let places = [admit("203.0.113.1"), admit("::ffff:203.0.113.1"), admit("2001:db8::1"), admit("2001:db8::2")];
        assert!(places.iter().all(Result::is_ok));
        assert!(admit("203.0.113.1").is_err() && admit("2001:db8::3").is_err());
        assert!(admit("203.0.113.2").is_ok() && admit("2001:db8:0:1::1").is_ok());
        let proxied: Vec<_> = (0..5).map(|_| admit("10.0.0.1")).collect();
        assert!(proxied.iter().all(Result::is_ok));

        drop(places);
        assert!(admit("203.0.113.1").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_its_last_answer_was_sent_for_so_long() {
        let (requests, begun) = (Requests::default(), Instant::now());

        let work = async {
            sleep(IDLE_TIMEOUT / 2).await;
            let open = requests.open();
            sleep(IDLE_TIMEOUT * 3).await;
            drop(Answer { body: String::new(), progress: None, _open: open });
            sleep(IDLE_TIMEOUT / 2).await;
            drop(requests.open());
        };
        tokio::join!(requests.none_for(IDLE_TIMEOUT), work);

        assert_eq!(begun.elapsed(), IDLE_TIMEOUT * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_given_up_when_nothing_of_it_is_taken_for_so_long() {
        let (progress, begun) = (Progress::default(), Instant::now());

        let takes = async {
            // Somebody who waits for what there is not is not slow.
            progress.note(false);
            sleep(WRITE_TIMEOUT * 10).await;
            for _ in 0..4 {
                progress.note(true);
                sleep(WRITE_TIMEOUT * 9 / 10).await;
            }
            progress.note(true);
            Instant::now()
        };
        let ((), last) = tokio::join!(progress.stalled(), takes);

        let stood = last.elapsed();
        assert!((WRITE_TIMEOUT..=WRITE_TIMEOUT + WRITE_TIMEOUT / 5).contains(&stood), "{stood:?}");
        assert!(begun.elapsed() > WRITE_TIMEOUT * 14);
    }

    #[tokio::test(start_paused = true)]
    async fn one_stream_is_given_up_and_the_others_of_its_connection_go_on() {
        let (tasks, cut_off) = (TaskTracker::new(), CancellationToken::new());
        let streams = Streams { tasks: tasks.clone(), cut_off: cut_off.clone(), dropped: Counter::default() };
        let (done, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let stream = |name: &'static str, takes: bool| {
            let done = done.clone();
            async move {
                let _says = scopeguard(move || done.send(name).expect("somebody hears"));
                loop {
                    PROGRESS.with(|progress| progress.note(true));
                    if !takes {
                        std::future::pending::<()>().await;
                    }
                    sleep(WRITE_TIMEOUT / 2).await;
                }
            }
        };

        streams.execute(stream("taken", true));
        streams.execute(stream("stalled", false));

        assert_eq!(ended.recv().await, Some("stalled"));
        assert!(timeout(WRITE_TIMEOUT * 10, ended.recv()).await.is_err());
        cut_off.cancel();
        assert_eq!(ended.recv().await, Some("taken"));
        tasks.close();
        tasks.wait().await;
    }

    /// Does `act` when it is dropped.
    fn scopeguard<F: FnOnce()>(act: F) -> impl Drop {
        struct Guard<F: FnOnce()>(Option<F>);
        impl<F: FnOnce()> Drop for Guard<F> {
            fn drop(&mut self) {
                if let Some(act) = self.0.take() {
                    act();
                }
            }
        }
        Guard(Some(act))
    }

    /// A socket and the client at its other end.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        (listener.accept().await.expect("accepted").0, client)
    }

    #[tokio::test]
    async fn what_a_client_says_first_tells_its_protocol_however_it_comes() {
        for (said, is_http2) in
            [(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], true), (b"PRI * HTTP/1.1\r\n", false), (b"GET / HTTP/1.1\r\n", false)]
        {
            let (mut ours, mut theirs) = connected().await;
            let writes = async {
                for byte in said {
                    theirs.write_all(&[*byte]).await.expect("sent");
                    tokio::task::yield_now().await;
                }
            };
            let (first, ()) = tokio::join!(first_bytes(&mut ours), writes);

            let first = first.expect("something");
            assert!(said.starts_with(&first), "{first:?}");
            assert_eq!(first.starts_with(HTTP2), is_http2, "{first:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_stops_in_the_middle_of_its_protocol_is_waited_for_until_it_closes() {
        let (mut ours, mut theirs) = connected().await;
        theirs.write_all(&HTTP2[..5]).await.expect("sent");
        ours.readable().await.expect("readable");

        let mut first = Box::pin(first_bytes(&mut ours));
        assert!(futures_util::poll!(&mut first).is_pending());
        drop(theirs);

        assert_eq!(first.await.expect_err("closed").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_merely_slow_is_served() {
        let (ours, mut theirs) = duplex(1);
        let mut ours = Impatient::new(ours, Bytes::new(), Handover::default(), Counter::default());

        let write = async { ours.write_all(&[0; 4]).await };
        let read = async {
            for _ in 0..4 {
                sleep(WRITE_TIMEOUT / 2).await;
                theirs.read_u8().await.expect("a byte");
            }
        };

        let (written, ()) = tokio::join!(write, read);
        assert!(written.is_ok());
    }
}
