//! Sockets, over a listener.

mod handshake;
mod jobs;
mod limits;
mod news;
mod standing;

use api::{
    app::App,
    endpoint,
    serve::{self, Limits},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    socket::Socket,
    stage::{Elsewhere, PATIENCE, Stage},
};

/// A server that listens. It ends with its stage.
struct Server {
    base: String,
    running: JoinHandle<()>,
}

impl Server {
    async fn of(app: &App) -> Self {
        let listener = serve::listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let running = tokio::spawn(serve::serve(listener, endpoint(app.clone()), Limits::of(app), app.draining.clone()));
        Self { base, running }
    }

    /// A socket of whom `credential` says, a token or a key.
    async fn socket(&self, credential: &str) -> Socket {
        Socket::connect(&self.base, &[("authorization", &format!("Bearer {credential}"))]).await.expect("a socket")
    }
}

impl Stage {
    /// A server of this stage, and a socket of its user.
    async fn socket(&self) -> (Server, Socket) {
        let server = Server::of(&self.app).await;
        let socket = server.socket(&self.key).await;
        (server, socket)
    }
}

impl Elsewhere {
    async fn server(&self) -> Server {
        Server::of(&self.app).await
    }
}

fn subscribe(job: &str) -> Value {
    json!({"type": "subscribe", "job_id": job})
}

fn watch(what: &str) -> Value {
    json!({"type": "watch", "what": what})
}

fn auth(token: &str) -> Value {
    json!({"type": "auth", "token": token})
}

fn ping() -> Value {
    json!({"type": "ping"})
}

/// A figure of the server of `stage`.
async fn figure(stage: &Stage, name: &str) -> Option<String> {
    let page = stage.get("/health/metrics").await;
    let page = String::from_utf8(page.body.to_vec()).expect("text");
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}

/// Wait until the server of `stage` has so many sockets. It announces none, so this looks again and again.
async fn until_open(stage: &Stage, count: u32) {
    let seen = async {
        while figure(stage, "claude_api_websockets_open").await != Some(count.to_string()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("so many sockets");
}
