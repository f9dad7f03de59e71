//! The connections. A loop of our own around the endpoint, for what a public listener owes itself: a bound
//! on connections, on the time a client may take to say what it wants and to take what it asked for, and an
//! end that lets requests finish.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{Request, body::Incoming, service::service_fn};
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
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a connection could not be accepted, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bounds of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections at a time.
    pub connections: usize,
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
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    while let Some((socket, peer, slot)) = accept(&listener, &slots, &draining).await {
        let connection = connection(socket, peer, endpoint.clone(), draining.clone());
        let cut_off = cut_off.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut_off.cancelled() => {}
            }
            drop(slot);
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
    let service = service_fn(|request: Request<Incoming>| {
        asked.cancel();
        let request = poem::Request::from((request, local.clone(), remote.clone(), Scheme::HTTP));
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(hyper::Response::from(endpoint.get_response(request).await)) }
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
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = silent => return,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%peer, error, "Lost a connection");
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
