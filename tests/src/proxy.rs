//! A TCP proxy that breaks a connection in the middle of what it carries, or lets it lead nowhere, when it is told to.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What tells a subscriber of Redis from its other clients.
const SUBSCRIBE: &[u8] = b"SUBSCRIBE\r\n";

/// A running proxy. Dropping it ends it and its connections.
pub struct Proxy {
    address: SocketAddr,
    budget: Arc<Budget>,
    lines: Arc<Mutex<Vec<Arc<Line>>>>,
    stop: CancellationToken,
}

/// Where a proxy leads.
#[derive(Clone)]
enum Target {
    Address(SocketAddr),
    Socket(PathBuf),
}

/// A connection through a proxy.
#[derive(Default)]
struct Line {
    /// Whether its client subscribed to something of Redis.
    subscribes: AtomicBool,
    /// Fires when nothing is carried any more, though both ends stay open.
    leads_nowhere: CancellationToken,
}

impl Proxy {
    /// Carry what comes to a free port to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::lead_to(Target::Address(target)).await
    }

    /// Carry what comes to a free port to the Redis behind `socket`.
    pub async fn to_redis(socket: &Path) -> io::Result<Self> {
        Self::lead_to(Target::Socket(socket.to_owned())).await
    }

    async fn lead_to(target: Target) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (budget, lines, stop) = (Arc::new(Budget::default()), Arc::default(), CancellationToken::new());
        let accepting = accept(listener, target, Arc::clone(&budget), Arc::clone(&lines), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { address, budget, lines, stop })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is, for HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Let so many more bytes through to clients, then break the connection that carries the next one.
    pub fn cut_after(&self, bytes: usize) {
        self.budget.left().left = Some(bytes);
    }

    /// Let the connections there are whose clients subscribed to something of Redis lead nowhere: they stay open, and
    /// nothing comes through. How many there are.
    pub fn black_hole_subscribers(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let subscribers = lines.iter().filter(|line| line.subscribes.load(Ordering::Relaxed) && !line.leads_nowhere.is_cancelled());
        subscribers.inspect(|line| line.leads_nowhere.cancel()).count()
    }

    /// Let all the connections there are lead nowhere; those to come are carried. How many they were.
    pub fn black_hole(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| !line.leads_nowhere.is_cancelled()).inspect(|line| line.leads_nowhere.cancel()).count()
    }

    /// How many connections it broke.
    pub fn cuts(&self) -> usize {
        self.budget.left().cuts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What may go to clients before a connection breaks.
#[derive(Default)]
struct Budget(Mutex<Left>);

#[derive(Default)]
struct Left {
    /// `None`: anything.
    left: Option<usize>,
    cuts: usize,
}

impl Budget {
    fn left(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `wanted` bytes may go; fewer than those mean that the connection breaks.
    fn take(&self, wanted: usize) -> usize {
        let mut state = self.left();
        match state.left {
            None => wanted,
            Some(left) if wanted <= left => {
                state.left = Some(left - wanted);
                wanted
            }
            Some(left) => {
                *state = Left { left: None, cuts: state.cuts + 1 };
                left
            }
        }
    }
}

async fn accept(listener: TcpListener, target: Target, budget: Arc<Budget>, lines: Arc<Mutex<Vec<Arc<Line>>>>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let line = Arc::new(Line::default());
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&line));
        let (target, budget) = (target.clone(), Arc::clone(&budget));
        connections.spawn(stop.clone().run_until_cancelled_owned(async move {
            // It ends with one of its ends, or by a cut.
            let _ = match target {
                Target::Address(address) => carry(client, TcpStream::connect(address).await, &budget, &line).await,
                Target::Socket(path) => carry(client, UnixStream::connect(path).await, &budget, &line).await,
            };
        }));
    }
}

async fn carry<S: AsyncRead + AsyncWrite>(client: TcpStream, server: io::Result<S>, budget: &Budget, line: &Line) -> io::Result<()> {
    client.set_nodelay(true)?;
    let ((mut asked, mut answered), (mut answers, mut requests)) = (split(client), split(server?));
    let carrying = async {
        tokio::select! {
            ended = ask(&mut asked, &mut requests, line) => ended,
            ended = answer(&mut answered, &mut answers, budget) => ended,
        }
    };
    match line.leads_nowhere.run_until_cancelled(carrying).await {
        Some(ended) => ended,
        // Whoever waits at one of the ends is to find out by themselves.
        None => std::future::pending().await,
    }
}

async fn ask(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, line: &Line) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if buffer[..read].windows(SUBSCRIBE.len()).any(|bytes| bytes.eq_ignore_ascii_case(SUBSCRIBE)) {
            line.subscribes.store(true, Ordering::Relaxed);
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn answer(mut to: impl AsyncWrite + Unpin, mut from: impl AsyncRead + Unpin, budget: &Budget) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        let allowed = budget.take(read);
        to.write_all(&buffer[..allowed]).await?;
        if read == 0 || allowed < read {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_subscriber_in_a_black_hole_hears_nothing_and_its_connection_stays_open() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let proxy = Proxy::start(server.local_addr().expect("an address")).await.expect("a port");
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for said in ["*1\r\n$4\r\nPING\r\n", "*2\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n"] {
            let mut client = TcpStream::connect(proxy.address()).await.expect("a proxy");
            client.write_all(said.as_bytes()).await.expect("written");
            let (mut serving, _) = server.accept().await.expect("a client");
            serving.read_exact(&mut vec![0; said.len()]).await.expect("what was said");
            clients.push(client);
            servers.push(serving);
        }

        assert_eq!((proxy.black_hole_subscribers(), proxy.black_hole_subscribers()), (1, 0));
        for serving in &mut servers {
            serving.write_all(b"!").await.expect("written");
        }

        assert_eq!(clients[0].read_u8().await.expect("a byte"), b'!');
        let nothing = tokio::time::timeout(std::time::Duration::from_millis(200), clients[1].read_u8()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }

    #[tokio::test]
    async fn a_connection_breaks_after_so_many_bytes_and_the_next_one_does_not() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let proxy = Proxy::start(server.local_addr().expect("an address")).await.expect("a port");
        proxy.cut_after(3);

        for expected in ["hel", "hello"] {
            let mut client = TcpStream::connect(proxy.address()).await.expect("a proxy");
            let (mut answering, _) = server.accept().await.expect("a client");
            answering.write_all(b"hello").await.expect("written");
            drop(answering);
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.expect("an end");
            assert_eq!(heard, expected);
        }
        assert_eq!(proxy.cuts(), 1);
    }
}
