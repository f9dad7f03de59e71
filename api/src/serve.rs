//! The connections. A loop of our own around the endpoint, for what a public listener owes itself: bounds on
//! connections, in all and of one address, on the time a client may take to say what it wants and to take
//! what it asked for, and an end that lets requests finish.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    Request,
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use poem::{
    Addr, Endpoint, Response,
    http::uri::Scheme,
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::client_address::{ClientAddress, TrustedProxies};

/// How long a client may take to send the head of a request; on HTTP/1.1 also how long it may have none to
/// send after an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
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
    let neighbours = Neighbours { most: limits.per_address, uncounted: limits.uncounted, counts: Arc::default() };
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    while let Some((socket, peer, slot)) = accept(&listener, &slots, &draining).await {
        let Some(place) = neighbours.admit(peer.ip()) else {
            debug!(%peer, "Closed a connection: its address has too many");
            continue;
        };
        let connection = connection(socket, peer, endpoint.clone(), draining.clone());
        let cut_off = cut_off.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut_off.cancelled() => {}
            }
            drop((slot, place));
        });
    }
    drop(listener);
    connections.close();
    info!("Letting {} connections finish", connections.len());
    if timeout(limits.drain, connections.wait()).await.is_err() {
        warn!("Cutting off {} connections that did not finish in time", connections.len());
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

/// One connection, HTTP/1.1 or HTTP/2, to its end.
async fn connection<E>(socket: TcpStream, peer: SocketAddr, endpoint: Arc<E>, draining: CancellationToken)
where
    E: Endpoint<Output = Response> + 'static,
{
    // Events are small and wanted at once.
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "Could not set TCP_NODELAY");
    }
    let local = LocalAddr(socket.local_addr().map_or_else(|_| Addr::custom("tcp", "unknown"), Addr::from));
    let remote = RemoteAddr(Addr::from(peer));
    let asked = CancellationToken::new();
    let requests = Requests::default();
    let service = service_fn(|request: Request<Incoming>| {
        asked.cancel();
        let open = requests.open();
        let request = poem::Request::from((request, local.clone(), remote.clone(), Scheme::HTTP));
        let endpoint = endpoint.clone();
        async move {
            let response = hyper::Response::from(endpoint.get_response(request).await);
            Ok::<_, Infallible>(response.map(|body| Answer { body, _open: open }))
        }
    });

    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(200).max_header_list_size(16 * 1024);
    builder.http2().keep_alive_interval(Duration::from_secs(30)).keep_alive_timeout(Duration::from_secs(20));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Impatient::new(socket)), service));

    // hyper's own time-out begins with the first byte that tells the protocol; this one with the connection.
    let silent = async {
        if timeout(HEAD_TIMEOUT, asked.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let over = async {
        tokio::select! {
            () = draining.cancelled() => {}
            () = requests.none_for(IDLE_TIMEOUT) => {}
        }
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = silent => return,
        () = over => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%peer, error, "Lost a connection");
    }
}

/// How many connections each address has.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The bound on the connections of one address.
struct Neighbours {
    most: usize,
    uncounted: TrustedProxies,
    counts: Counts,
}

/// The place of one connection among those of its address.
struct Place(Option<(IpAddr, Counts)>);

impl Neighbours {
    /// A place for a connection of `peer`, if there is one.
    fn admit(&self, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        if self.uncounted.contains(peer) {
            return Some(Place(None));
        }
        let network = ClientAddress(peer).network();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place(Some((network, self.counts.clone()))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((network, counts)) = &self.0 else { return };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(network);
            }
        }
    }
}

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
    _open: Open,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that gives up on a peer which takes nothing of what is written to it. The clock is here and not
/// in the body: a body is only asked for more while the peer takes it.
struct Impatient<S> {
    socket: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(socket: S) -> Self {
        Self { socket, stalled: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let clock = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(clock.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.judge(context, outcome)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.judge(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = duplex(10);
        let begun = Instant::now();

        let error = Impatient::new(ours).write_all(&[0; 11]).await.expect_err("given up");

        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_TIMEOUT));
    }

    #[test]
    fn an_address_has_so_many_places_and_a_proxy_any_number() {
        let uncounted = "10.0.0.0/8".parse().expect("a network");
        let neighbours = Neighbours { most: 2, uncounted, counts: Arc::default() };
        let admit = |peer: &str| neighbours.admit(peer.parse().expect("an address"));

        let places = [admit("203.0.113.1"), admit("::ffff:203.0.113.1"), admit("2001:db8::1"), admit("2001:db8::2")];
        assert!(places.iter().all(Option::is_some));
        assert!(admit("203.0.113.1").is_none() && admit("2001:db8::3").is_none());
        assert!(admit("203.0.113.2").is_some() && admit("2001:db8:0:1::1").is_some());
        let proxied: Vec<_> = (0..5).map(|_| admit("10.0.0.1")).collect();
        assert!(proxied.iter().all(Option::is_some));

        drop(places);
        assert!(admit("203.0.113.1").is_some());
        assert!(neighbours.counts.lock().expect("not poisoned").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_its_last_answer_was_sent_for_so_long() {
        let (requests, begun) = (Requests::default(), Instant::now());

        let work = async {
            sleep(IDLE_TIMEOUT / 2).await;
            let open = requests.open();
            sleep(IDLE_TIMEOUT * 3).await;
            drop(Answer { body: String::new(), _open: open });
            sleep(IDLE_TIMEOUT / 2).await;
            drop(requests.open());
        };
        tokio::join!(requests.none_for(IDLE_TIMEOUT), work);

        assert_eq!(begun.elapsed(), IDLE_TIMEOUT * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_merely_slow_is_served() {
        let (ours, mut theirs) = duplex(1);
        let mut ours = Impatient::new(ours);

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
