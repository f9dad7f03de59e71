//! The few pages of a worker for supervisors and Prometheus: whether it lives, whether it takes jobs, and
//! what it measures. One request for each connection, and every connection has its end: nobody can hold
//! one of the few places for long.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use shared::metrics::{self as page, Caller, MetricsAccess, Verdict, is_of_a_proxy};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The most connections. More wait in the system's queue.
const CONNECTIONS: usize = 32;
/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last.
const LIFE: Duration = Duration::from_secs(20);
/// How long to leave a listener alone that could not accept: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the pages tell.
#[derive(Clone)]
pub struct Pages {
    /// What is measured, and whether this worker is at work.
    pub metrics: Metrics,
    /// Who may read what is measured.
    pub access: MetricsAccess,
    /// Set once this worker takes no more jobs.
    pub draining: CancellationToken,
}

/// Listen on `address`.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| {
        let hint = "hint: `WORKER_HTTP_HOST` and `WORKER_HTTP_PORT` must name a free port of this machine";
        io::Error::new(error.kind(), format!("could not listen on {address}: {error} ({hint})"))
    };
    TcpListener::bind(address).await.map_err(named)
}

/// Answer what comes in on `listener` until `stop`.
pub async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) {
    // Dropping the set ends what is left of it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((socket, peer)) => {
                    connections.spawn(converse(socket, peer, pages.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(socket: TcpStream, peer: SocketAddr, pages: Pages) {
    let service = service_fn(|request: Request<Incoming>| {
        let pages = &pages;
        async move { Ok::<_, Infallible>(pages.answer(request.method(), request.uri().path(), request.headers(), peer).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false).max_buf_size(16 * 1024);
    // How it ended, its client has seen.
    let _ = timeout(LIFE, builder.serve_connection(TokioIo::new(socket), service)).await;
}

type Reply = Response<Full<Bytes>>;

impl Pages {
    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap, peer: SocketAddr) -> Reply {
        if !matches!(path, "/health/alive" | "/health/ready" | "/health/metrics") {
            return problem(StatusCode::NOT_FOUND, "there is nothing here");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, "this path does not answer that method: see `Allow`");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match path {
            "/health/alive" if self.metrics.event_loop.is_stuck() => problem(StatusCode::SERVICE_UNAVAILABLE, "the event loop stood still"),
            "/health/alive" => json(StatusCode::OK, &json!({"status": "alive"})),
            "/health/ready" => self.ready().await,
            _ => self.measured(headers, peer),
        }
    }

    /// Whether this worker takes jobs, and if not, everything that keeps it from it.
    async fn ready(&self) -> Reply {
        let health = match self.metrics.store() {
            Some(store) => Some(store.health().await),
            None => None,
        };
        let reasons = [
            // Which of the two it waits for, its log says.
            (health.is_none(), "stores"),
            (health.is_some_and(|health| health.database.is_none()), "database"),
            (health.is_some_and(|health| health.redis.is_none()), "redis"),
            (!self.metrics.pulse.is_joined(), "membership"),
            (self.draining.is_cancelled(), "draining"),
        ];
        let down: Vec<&str> = reasons.into_iter().filter_map(|(is_down, name)| is_down.then_some(name)).collect();
        if down.is_empty() {
            return json(StatusCode::OK, &json!({"status": "ready"}));
        }
        json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "unavailable", "down": down}))
    }

    fn measured(&self, headers: &HeaderMap, peer: SocketAddr) -> Reply {
        let caller = Caller {
            peer: Some(peer.ip()),
            is_forwarded: headers.keys().any(|name| is_of_a_proxy(name.as_str())),
            authorization: headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes),
        };
        match self.access.judge(caller) {
            Verdict::Allowed => reply(StatusCode::OK, page::CONTENT_TYPE, self.metrics.page()),
            Verdict::TokenMissing => unauthorized("this needs the metrics token: `Authorization: Bearer <token>`"),
            Verdict::TokenWrong => unauthorized("this metrics token is not valid"),
            Verdict::NotLocal => problem(StatusCode::FORBIDDEN, "only callers on this host may do this"),
        }
    }
}

fn unauthorized(detail: &str) -> Reply {
    let mut refusal = problem(StatusCode::UNAUTHORIZED, detail);
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"claude-worker\""));
    refusal
}

/// RFC 9457.
fn problem(status: StatusCode, detail: &str) -> Reply {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    reply(status, "application/problem+json", body.to_string())
}

fn json(status: StatusCode, body: &Value) -> Reply {
    reply(status, "application/json", body.to_string())
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use shared::config::{self, Env};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn pages(env: &Env) -> Pages {
        let access = config::read(env, MetricsAccess::read).expect("valid");
        Pages { metrics: Metrics::new(2), access, draining: CancellationToken::new() }
    }

    async fn ask(pages: &Pages, method: &Method, path: &str, headers: &[(&'static str, &'static str)]) -> Reply {
        let headers = headers.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        pages.answer(method, path, &headers.collect(), "10.0.0.1:1".parse().expect("an address")).await
    }

    async fn body(reply: Reply) -> Value {
        serde_json::from_slice(&reply.into_body().collect().await.expect("whole").to_bytes()).expect("JSON")
    }

    #[tokio::test]
    async fn a_worker_without_stores_lives_and_says_what_it_lacks() {
        let pages = pages(&Env::default());
        pages.draining.cancel();

        assert_eq!(ask(&pages, &Method::GET, "/health/alive", &[]).await.status(), StatusCode::OK);
        let ready = ask(&pages, &Method::GET, "/health/ready", &[]).await;
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body(ready).await["down"], json!(["stores", "membership", "draining"]));
    }

    #[tokio::test]
    async fn metrics_are_for_whoever_may_read_them() {
        let local = pages(&Env::default());
        assert_eq!(ask(&local, &Method::GET, "/health/metrics", &[]).await.status(), StatusCode::FORBIDDEN);

        let guarded = pages(&Env::of([("METRICS_TOKEN", TOKEN)]));
        let refused = ask(&guarded, &Method::GET, "/health/metrics", &[("authorization", "Bearer 0123456789abcdeX")]).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert!(refused.headers().contains_key(header::WWW_AUTHENTICATE));
        let shown = ask(&guarded, &Method::GET, "/health/metrics", &[("authorization", "Bearer 0123456789abcdef")]).await;
        assert_eq!(shown.status(), StatusCode::OK);
        assert_eq!(shown.headers()[header::CONTENT_TYPE], page::CONTENT_TYPE);
    }

    #[tokio::test]
    async fn there_is_nothing_else_and_no_other_method() {
        let pages = pages(&Env::default());

        for path in ["/", "/health", "/health/alive/", "/metrics"] {
            assert_eq!(ask(&pages, &Method::GET, path, &[]).await.status(), StatusCode::NOT_FOUND, "{path}");
        }
        let refused = ask(&pages, &Method::POST, "/health/alive", &[]).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD");
    }

    #[tokio::test]
    async fn a_silent_client_is_closed_and_all_end_with_the_server() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, pages(&Env::default()), stop.clone()));
        let mut silent = TcpStream::connect(address).await.expect("connected");
        silent.write_all(b"GET /health/alive HT").await.expect("sent");

        let mut word = Vec::new();
        let closed = timeout(HEAD_TIMEOUT * 3, silent.read_to_end(&mut word)).await;
        assert!(closed.is_ok(), "a client that says nothing is closed");

        stop.cancel();
        timeout(HEAD_TIMEOUT, server).await.expect("ended in time").expect("without a panic");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
