//! A TCP proxy that breaks a connection in the middle of what it carries, when it is told to.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A running proxy. Dropping it ends it and its connections.
pub struct Proxy {
    address: SocketAddr,
    budget: Arc<Budget>,
    stop: CancellationToken,
}

impl Proxy {
    /// Carry what comes to a free port to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (budget, stop) = (Arc::new(Budget::default()), CancellationToken::new());
        let accepting = accept(listener, target, Arc::clone(&budget), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { address, budget, stop })
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

async fn accept(listener: TcpListener, target: SocketAddr, budget: Arc<Budget>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let carrying = carry(client, target, Arc::clone(&budget));
        connections.spawn(stop.clone().run_until_cancelled_owned(async move {
            // It ends with one of its ends, or by a cut.
            let _ = carrying.await;
        }));
    }
}

async fn carry(client: TcpStream, target: SocketAddr, budget: Arc<Budget>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((mut asked, answers), (answered, mut requests)) = (client.into_split(), server.into_split());
    tokio::select! {
        ended = copy(&mut asked, &mut requests) => ended.map(drop),
        ended = answer(answered, answers, &budget) => ended,
    }
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, budget: &Budget) -> io::Result<()> {
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
