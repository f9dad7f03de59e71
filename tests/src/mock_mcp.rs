//! An MCP server on loopback, over "Streamable HTTP" (MCP 2025-11-25): it answers with JSON or with a stream of
//! events, keeps a session, and lets in only who shows its token.

use std::{
    convert::Infallible,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What opens it.
pub const TOKEN: &str = "Bearer mcp-s3cret";
const SESSION: &str = "session-1";

/// A running server. Dropping it ends it at once.
pub struct MockMcp {
    base: String,
    heard: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
}

impl MockMcp {
    /// Serve on a free port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let base = format!("http://{}", listener.local_addr()?);
        let (heard, stop, tasks) = (Arc::default(), CancellationToken::new(), TaskTracker::new());
        let accepting = accept(listener, Arc::clone(&heard), tasks.clone(), stop.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { base, heard, stop })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("{}/mcp", self.base)
    }

    /// Where it is when it does not say what tools it has.
    pub fn listless_url(&self) -> String {
        format!("{}/listless", self.base)
    }

    /// The methods that came, in their order; of a call also the tool.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for MockMcp {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, heard: Arc<Mutex<Vec<String>>>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        let heard = Arc::clone(&heard);
        let answer = service_fn(move |request| {
            let heard = Arc::clone(&heard);
            async move { Ok::<_, Infallible>(answer(request, &heard).await) }
        });
        let serving = http1::Builder::new().serve_connection(TokioIo::new(connection), answer);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            // It ends with its client.
            let _ = serving.await;
        }));
    }
}

async fn answer(request: Request<Incoming>, heard: &Mutex<Vec<String>>) -> Response<Full<Bytes>> {
    let note = |what: String| heard.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let is_listless = request.uri().path() == "/listless";
    let (token, session, version) = (header("authorization"), header("mcp-session-id"), header("mcp-protocol-version"));
    if token != TOKEN {
        note("a stranger".to_owned());
        return plain(StatusCode::UNAUTHORIZED);
    }
    if request.method() == Method::DELETE {
        note(format!("the end of {session}"));
        return plain(StatusCode::NO_CONTENT);
    }
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let method = message["method"].as_str().unwrap_or_default();
    let tool = message["params"]["name"].as_str().unwrap_or_default();
    note(format!("{method} {tool}").trim_end().to_owned());
    if method == "initialize" {
        let result =
            json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "mock", "version": "1"}});
        let mut response = whole(&message, &json!({"result": result}));
        response.headers_mut().insert("mcp-session-id", hyper::header::HeaderValue::from_static(SESSION));
        return response;
    }
    if session != SESSION || version != "2025-11-25" {
        return plain(StatusCode::BAD_REQUEST);
    }
    if message.get("id").is_none() {
        return plain(StatusCode::ACCEPTED);
    }
    let text = |text: &str| json!({"result": {"content": [{"type": "text", "text": text}]}});
    match (method, tool) {
        ("tools/list", _) if is_listless => whole(&message, &json!({"error": {"code": 2, "message": "no list today"}})),
        ("tools/list", _) => {
            let schema = json!({"type": "object", "properties": {"text": {"type": "string"}}});
            let tools = ["echo", "fail", "hidden"].map(|name| json!({"name": name, "description": "a tool", "inputSchema": schema}));
            streamed(&message, &json!({"result": {"tools": tools}}))
        }
        ("tools/call", "echo") => {
            streamed(&message, &text(&format!("echo: {}", message["params"]["arguments"]["text"].as_str().unwrap_or("?"))))
        }
        ("tools/call", "fail") => whole(&message, &json!({"error": {"code": 1, "message": "it broke"}})),
        ("tools/call", _) => whole(&message, &text("nobody should see this")),
        _ => plain(StatusCode::NOT_FOUND),
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn json_rpc(asked: &Value, answer: &Value) -> Value {
    let mut answer = answer.clone();
    answer["jsonrpc"] = json!("2.0");
    answer["id"] = asked["id"].clone();
    answer
}

fn whole(asked: &Value, answer: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(json_rpc(asked, answer).to_string()));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// With something else before it, as a server may.
fn streamed(asked: &Value, answer: &Value) -> Response<Full<Bytes>> {
    let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}});
    let body = format!("event: message\ndata: {progress}\n\n: ping\n\nid: 7\r\ndata: {}\r\n\r\n", json_rpc(asked, answer));
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("text/event-stream"));
    response
}
