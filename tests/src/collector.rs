//! A collector of traces on loopback: it reads what comes by OTLP over HTTP, and behaves as well as a test wants.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::Span as Sent,
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::system::PATIENCE;

/// How a collector treats who sends to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It takes everything.
    Polite,
    /// It takes nothing and says so.
    Refusing,
    /// It takes a request and never answers.
    Deaf,
}

/// A span that was collected.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Whose it is.
    pub service: String,
    /// What it is called.
    pub name: String,
    /// What kind it is, by the number in the standard: 1 internal, 2 server, 5 consumer.
    pub kind: i32,
    /// The trace it is of.
    pub trace_id: String,
    /// Its own id.
    pub id: String,
    /// That of its parent; empty without one.
    pub parent: String,
    /// When it began, in nanoseconds since 1970.
    pub began: u64,
    /// What is noted of it.
    pub attributes: BTreeMap<String, String>,
    /// Whether it failed.
    pub is_failure: bool,
}

/// A running collector. Dropping it ends it at once.
pub struct Collector {
    url: String,
    seen: Arc<Seen>,
    requests: watch::Receiver<usize>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Seen {
    spans: Mutex<Vec<Span>>,
    /// All that came, in words, for those who look for what should not be there.
    words: Mutex<String>,
    headers: Mutex<Vec<HeaderMap>>,
}

impl Collector {
    /// Serve on a free port.
    pub async fn start(manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (counter, requests) = watch::channel(0);
        let (seen, stop, tasks) = (Arc::<Seen>::default(), CancellationToken::new(), TaskTracker::new());
        let desk = Desk { manner, seen: seen.clone(), requests: counter };
        tasks.spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::new(desk), tasks.clone(), stop.clone())));
        Ok(Self { url, seen, requests, stop })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What was collected so far.
    pub fn spans(&self) -> Vec<Span> {
        self.seen.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same in words, with all that came with it.
    pub fn words(&self) -> String {
        self.seen.words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The headers of the requests that came.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.seen.headers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wait until so many requests came.
    pub async fn requested(&mut self, count: usize) -> anyhow::Result<()> {
        let came = self.requests.wait_for(|came| *came >= count);
        timeout(PATIENCE, came).await.with_context(|| format!("fewer than {count} requests came"))??;
        Ok(())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Desk {
    manner: Manner,
    seen: Arc<Seen>,
    requests: watch::Sender<usize>,
}

async fn accept(listener: TcpListener, desk: Arc<Desk>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        let desk = Arc::clone(&desk);
        let answer = service_fn(move |request| {
            let desk = Arc::clone(&desk);
            async move { Ok::<_, Infallible>(desk.answer(request).await) }
        });
        let serving = http1::Builder::new().serve_connection(TokioIo::new(connection), answer);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            // It ends with its client.
            let _ = serving.await;
        }));
    }
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let is_right = request.uri().path() == "/v1/traces" && request.headers()["content-type"] == "application/x-protobuf";
        let headers = request.headers().clone();
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        self.seen.headers.lock().unwrap_or_else(PoisonError::into_inner).push(headers);
        let status = match (self.manner, ExportTraceServiceRequest::decode(body)) {
            (Manner::Polite, Ok(traces)) if is_right => {
                self.seen.take(traces);
                StatusCode::OK
            }
            _ => StatusCode::BAD_REQUEST,
        };
        self.requests.send_modify(|came| *came += 1);
        if self.manner == Manner::Deaf {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    }
}

impl Seen {
    fn take(&self, traces: ExportTraceServiceRequest) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = writeln!(words, "{traces:?}");
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in traces.resource_spans {
            let service = service(resource.resource.as_ref());
            let sent = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(sent.map(|sent| Span::of(sent, &service)));
        }
    }
}

impl Span {
    fn of(sent: Sent, service: &str) -> Self {
        Self {
            service: service.to_owned(),
            name: sent.name,
            kind: sent.kind,
            trace_id: hex(&sent.trace_id),
            id: hex(&sent.span_id),
            parent: hex(&sent.parent_span_id),
            began: sent.start_time_unix_nano,
            attributes: sent.attributes.iter().map(|noted| (noted.key.clone(), text(noted.value.as_ref()))).collect(),
            is_failure: sent.status.is_some_and(|status| status.code == 2),
        }
    }
}

fn service(resource: Option<&Resource>) -> String {
    let attributes: &[KeyValue] = resource.map_or(&[], |resource| &resource.attributes);
    attributes.iter().find(|noted| noted.key == "service.name").map(|noted| text(noted.value.as_ref())).unwrap_or_default()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
