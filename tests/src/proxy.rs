//! A TCP proxy that breaks what it carries when it is told to: in the middle of an answer, after a request whose answer
//! nobody hears, or by letting everything lead nowhere. One before each process makes "this worker alone is cut off"
//! one call.

mod faults;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::{TcpListener, TcpStream, UnixStream},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::servers::TestDatabase;

use faults::{Faults, Watched};

/// What tells a subscriber of Redis from its other clients.
const SUBSCRIBE: &[u8] = b"SUBSCRIBE\r\n";

/// A running proxy. Dropping it ends it and its connections.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Faults>,
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
    /// Whether the next answer is lost, and the connection with it.
    loses_answer: AtomicBool,
    /// Fires when nothing is carried any more, though both ends stay open.
    leads_nowhere: CancellationToken,
    /// Fires when it is to end.
    broken: CancellationToken,
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

    /// Carry what comes to a free port to the server of a PostgreSQL database.
    pub async fn to_postgres(database: &TestDatabase) -> anyhow::Result<Self> {
        Ok(Self::start(database.address()?).await?)
    }

    async fn lead_to(target: Target) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (faults, lines, stop) = (Arc::new(Faults::default()), Arc::default(), CancellationToken::new());
        let accepting = accept(listener, target, Arc::clone(&faults), Arc::clone(&lines), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { address, faults, lines, stop })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is, for HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it is, for clients of Redis.
    pub fn redis_url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Let so many more bytes through to clients, then break the connection that carries the next one.
    pub fn cut_after(&self, bytes: usize) {
        self.faults.cut_after(bytes);
    }

    /// Let the `nth` request from here on that has `bytes` in it through, then break its connection instead of
    /// bringing an answer: what was asked for is done, and who asked does not know it. Letters of either case are the
    /// same.
    pub fn drop_reply_then_close(&self, bytes: &[u8], nth: usize) {
        self.faults.watch_requests(Watched::new(bytes, nth));
    }

    /// Break the connection that is about to bring the `nth` answer from here on that has `bytes` in it.
    pub fn swallow_reply(&self, bytes: &[u8], nth: usize) {
        self.faults.watch_answers(Watched::new(bytes, nth));
    }

    /// How many answers were lost by [`Self::drop_reply_then_close`] and [`Self::swallow_reply`].
    pub fn lost_replies(&self) -> usize {
        self.faults.lost_replies()
    }

    /// Let everything lead nowhere, what is there and what comes: connections stay open, and nothing comes through
    /// either way, until it is healed.
    pub fn black_hole(&self) {
        self.faults.hole.send_replace(true);
    }

    /// End what [`Self::black_hole`], [`Self::refuse`] and [`Self::latency`] began. What waited is carried.
    pub fn heal(&self) {
        self.faults.hole.send_replace(false);
        self.faults.refuses.store(false, Ordering::Relaxed);
        self.latency(Duration::ZERO);
    }

    /// Hold everything up for so long, each way.
    pub fn latency(&self, delay: Duration) {
        self.faults.set_delay(delay);
    }

    /// Break all connections there are.
    pub fn reset(&self) {
        for line in lock(&self.lines).drain(..) {
            line.broken.cancel();
        }
    }

    /// Break all connections there are, and every further one at once, until it is healed.
    pub fn refuse(&self) {
        self.faults.refuses.store(true, Ordering::Relaxed);
        self.reset();
    }

    /// Let the connections there are whose clients subscribed to something of Redis lead nowhere: they stay open, and
    /// nothing comes through. How many there are.
    pub fn black_hole_subscribers(&self) -> usize {
        let lines = lock(&self.lines);
        let leading = |line: &&Arc<Line>| !line.leads_nowhere.is_cancelled() && !line.broken.is_cancelled();
        let subscribers = lines.iter().filter(|line| line.subscribes.load(Ordering::Relaxed)).filter(leading);
        subscribers.inspect(|line| line.leads_nowhere.cancel()).count()
    }

    /// Let all the connections there are lead nowhere; those to come are carried. How many they were.
    pub fn black_hole_present(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| !line.leads_nowhere.is_cancelled()).inspect(|line| line.leads_nowhere.cancel()).count()
    }

    /// How many connections it broke in the middle of an answer.
    pub fn cuts(&self) -> usize {
        self.faults.cuts()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, target: Target, faults: Arc<Faults>, lines: Arc<Mutex<Vec<Arc<Line>>>>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if faults.refuses.load(Ordering::Relaxed) {
            continue;
        }
        let line = Arc::new(Line::default());
        {
            let mut lines = lock(&lines);
            lines.retain(|line| !line.broken.is_cancelled());
            lines.push(Arc::clone(&line));
        }
        let (target, faults) = (target.clone(), Arc::clone(&faults));
        connections.spawn(stop.clone().run_until_cancelled_owned(async move {
            // It ends with one of its ends, or by a fault.
            let _ = match target {
                Target::Address(address) => carry(client, TcpStream::connect(address).await, &faults, &line).await,
                Target::Socket(path) => carry(client, UnixStream::connect(path).await, &faults, &line).await,
            };
            line.broken.cancel();
        }));
    }
}

async fn carry<S: AsyncRead + AsyncWrite>(client: TcpStream, server: io::Result<S>, faults: &Faults, line: &Line) -> io::Result<()> {
    client.set_nodelay(true)?;
    let ((mut asked, mut answered), (mut answers, mut requests)) = (split(client), split(server?));
    let carrying = async {
        tokio::select! {
            ended = ask(&mut asked, &mut requests, faults, line) => ended,
            ended = answer(&mut answered, &mut answers, faults, line) => ended,
            () = line.broken.cancelled() => Ok(()),
        }
    };
    tokio::select! {
        // First: what is asked after that was said must not get through.
        biased;
        () = line.leads_nowhere.cancelled() => {}
        ended = carrying => return ended,
    }
    // Whoever waits at one of the ends is to find out by themselves.
    line.broken.cancelled().await;
    Ok(())
}

async fn ask(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, faults: &Faults, line: &Line) -> io::Result<()> {
    let (mut buffer, mut before) = (vec![0; 16 * 1024], Vec::new());
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if contains(&buffer[..read], SUBSCRIBE) {
            line.subscribes.store(true, Ordering::Relaxed);
        }
        pass(faults).await;
        // Before it goes: the answer may be here at once.
        if faults.is_watched_request(&mut before, &buffer[..read]) {
            line.loses_answer.store(true, Ordering::Release);
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn answer(mut to: impl AsyncWrite + Unpin, mut from: impl AsyncRead + Unpin, faults: &Faults, line: &Line) -> io::Result<()> {
    let (mut buffer, mut before) = (vec![0; 16 * 1024], Vec::new());
    loop {
        let read = from.read(&mut buffer).await?;
        pass(faults).await;
        if line.loses_answer.load(Ordering::Acquire) || faults.is_watched_answer(&mut before, &buffer[..read]) {
            faults.lose_reply();
            return Ok(());
        }
        let allowed = faults.take(read);
        to.write_all(&buffer[..allowed]).await?;
        if read == 0 || allowed < read {
            return Ok(());
        }
    }
}

/// Wait as long as nothing gets through.
async fn pass(faults: &Faults) {
    let delay = faults.delay();
    if !delay.is_zero() {
        sleep(delay).await;
    }
    // Its sender lives as long as the faults do.
    let _ = faults.hole.subscribe().wait_for(|is_open| !is_open).await;
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|bytes| bytes.eq_ignore_ascii_case(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_subscriber_in_a_black_hole_hears_nothing_and_its_connection_stays_open() {
        let (server, proxy) = pair().await;
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
        let nothing = tokio::time::timeout(Duration::from_millis(200), clients[1].read_u8()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }

    #[tokio::test]
    async fn a_connection_breaks_after_so_many_bytes_and_the_next_one_does_not() {
        let (server, proxy) = pair().await;
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

    #[tokio::test]
    async fn what_was_asked_for_is_done_and_its_answer_is_lost() {
        let (server, proxy) = pair().await;
        proxy.drop_reply_then_close(b"set", 2);

        for (said, is_answered) in [("SET a", true), ("get a", true), ("SET b", false)] {
            let mut client = TcpStream::connect(proxy.address()).await.expect("a proxy");
            client.write_all(said.as_bytes()).await.expect("written");
            let (mut serving, _) = server.accept().await.expect("a client");
            let mut heard = vec![0; said.len()];
            serving.read_exact(&mut heard).await.expect("what was said");
            assert_eq!(heard, said.as_bytes());
            serving.write_all(b"done").await.expect("written");
            drop(serving);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("an end");
            assert_eq!(answer, if is_answered { "done" } else { "" }, "{said}");
        }
        assert_eq!(proxy.lost_replies(), 1);
    }

    #[tokio::test]
    async fn an_answer_is_known_by_what_is_in_it_even_where_it_comes_in_two_parts() {
        let (server, proxy) = pair().await;
        proxy.swallow_reply(b"entry", 1);
        let mut client = TcpStream::connect(proxy.address()).await.expect("a proxy");
        let (mut serving, _) = server.accept().await.expect("a client");

        serving.write_all(b"nothing;ent").await.expect("written");
        let mut heard = vec![0; 11];
        client.read_exact(&mut heard).await.expect("the first part");
        serving.write_all(b"ry;").await.expect("written");

        assert_eq!(client.read_to_end(&mut heard).await.expect("an end"), 0);
        assert_eq!((heard.as_slice(), proxy.lost_replies()), (b"nothing;ent".as_slice(), 1));
    }

    #[tokio::test]
    async fn a_black_hole_holds_what_comes_until_it_is_healed() {
        let (server, proxy) = pair().await;
        let mut client = TcpStream::connect(proxy.address()).await.expect("a proxy");
        let (mut serving, _) = server.accept().await.expect("a client");

        proxy.black_hole();
        client.write_all(b"?").await.expect("written");
        let mut late = TcpStream::connect(proxy.address()).await.expect("a proxy");
        late.write_all(b"?").await.expect("written");
        let (mut serving_late, _) = server.accept().await.expect("a client");
        for serving in [&mut serving, &mut serving_late] {
            let nothing = tokio::time::timeout(Duration::from_millis(100), serving.read_u8()).await;
            assert!(nothing.is_err(), "{nothing:?}");
        }
        proxy.heal();

        assert_eq!(serving.read_u8().await.expect("a byte"), b'?');
        assert_eq!(serving_late.read_u8().await.expect("a byte"), b'?');
    }

    #[tokio::test]
    async fn who_is_refused_may_come_again_once_it_is_healed() {
        let (server, proxy) = pair().await;
        let mut present = TcpStream::connect(proxy.address()).await.expect("a proxy");
        let (_serving, _) = server.accept().await.expect("a client");

        proxy.refuse();
        let mut refused = TcpStream::connect(proxy.address()).await.expect("a proxy");
        for client in [&mut present, &mut refused] {
            assert_eq!(client.read(&mut [0]).await.expect("an end"), 0);
        }
        proxy.heal();

        let _again = TcpStream::connect(proxy.address()).await.expect("a proxy");
        server.accept().await.expect("a client");
    }

    async fn pair() -> (TcpListener, Proxy) {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let proxy = Proxy::start(server.local_addr().expect("an address")).await.expect("a port");
        (server, proxy)
    }
}
