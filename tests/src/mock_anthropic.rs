//! The Messages API on loopback, as far as the Claude CLI uses it. What it answers is written in the
//! prompts themselves (`model::Script`), so tests that share one server do not disturb each other.

mod answer;
mod conversation;
mod memory;
mod received;
mod service;
mod speech;

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use received::Received;
use service::Service;

const MAX_CONNECTIONS: usize = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server does beside the scripts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The port to listen on; 0 lets the system choose.
    pub port: u16,
    /// Answer prompts that are no script as a demonstration for people, not as an echo for tests.
    pub demo: bool,
    /// The only credential that is let in.
    pub require_key: Option<String>,
    /// How many of the latest requests are kept for [`MockAnthropic::requests`].
    pub keep: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { port: 0, demo: false, require_key: None, keep: 256 }
    }
}

/// A running server. Dropping it ends it at once.
pub struct MockAnthropic {
    url: String,
    service: Arc<Service>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl MockAnthropic {
    /// Serve on a free port.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Serve as `options` say.
    pub async fn start_with(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let service = Arc::new(Service::new(options, tasks.clone()));
        let serving = accept(listener, Arc::clone(&service), tasks.clone(), stop.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(serving));
        Ok(Self { url, service, stop, tasks })
    }

    /// Where it listens, for `ANTHROPIC_BASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The requests it got, oldest first; the latest ones when there were many.
    pub fn requests(&self) -> Vec<Arc<Received>> {
        self.service.log.all()
    }

    /// Wait until it got `count` requests in all.
    pub async fn received(&self, count: u64) {
        self.service.log.reached(count).await;
    }

    /// Let `count` deltas of gated scripts out, the ones that wait or the next ones.
    pub fn let_out(&self, count: usize) {
        self.service.gate.add_permits(count);
    }

    /// Wait until no answer is under way: each was given, or its client left.
    pub async fn idle(&self) {
        self.service.log.idle().await;
    }

    /// End it and wait until its port is free.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for MockAnthropic {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>, tasks: TaskTracker, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        // A refused connection (out of descriptors, gone again) concerns its client alone.
        let Ok((connection, _)) = listener.accept().await else { continue };
        let serving = serve(connection, Arc::clone(&service));
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            serving.await;
            drop(slot);
        }));
    }
}

async fn serve(connection: TcpStream, service: Arc<Service>) {
    // Deltas are small and each of them matters at once.
    let _ = connection.set_nodelay(true);
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { service.answer(request).await }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    // It ends by the client's leave or by a scripted drop, both of which hyper calls an error.
    let _ = server.serve_connection(TokioIo::new(connection), answer).await;
}

#[cfg(test)]
mod tests;
