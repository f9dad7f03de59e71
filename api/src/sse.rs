//! A watch as a stream of server-sent events. The stream outlives pauses of the job and of Redis; it ends
//! after the job's last event, or when the server is about to stop.

use std::{pin::pin, sync::Arc, time::Duration};

use async_stream::stream;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use poem::{
    Body, IntoResponse, Response,
    http::{HeaderValue, header},
};
use poem_openapi::{
    payload::Payload,
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::Type as _,
};
use shared::principal::Principal;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    metrics::Open,
    ring::Framed,
    routes::{events::Event, jobs},
    standing::Standing,
    watch::{Notice, ROOM, Remark, Watch},
};

/// How long a client waits before it connects again.
const RETRY: &[u8] = b"retry: 2000\n\n";
/// Keeps proxies from closing a silent stream.
const PING: &[u8] = b": ping\n\n";
/// Tells a person who reads along why the stream ends.
const GOODBYE: &[u8] = b": the server is about to stop\n\n";
/// The same, to one whose credentials are no longer good.
const DISMISSAL: &[u8] = b": these credentials are no longer good\n\n";
/// How long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(15);

/// An answer that is a stream of server-sent events.
pub struct EventStream {
    body: Body,
}

impl EventStream {
    /// Everything that `watch` tells `reader`, until it is told or the server is about to stop. Its
    /// access token may end meanwhile; its login and its key may not.
    pub fn new(app: &App, reader: &Arc<Principal>, watch: Watch) -> Self {
        let expires_at = reader.key().and_then(|key| key.expires_at);
        let standing = Standing::new(&app.access, reader.clone(), expires_at);
        let chunks = chunks(watch, standing, app.draining.clone(), app.metrics.traffic.open_stream());
        Self { body: Body::from_bytes_stream(chunks.map(Ok::<_, std::io::Error>)) }
    }
}

fn chunks(mut watch: Watch, mut standing: Standing, draining: CancellationToken, open: Open) -> impl Stream<Item = Bytes> + Send {
    stream! {
        let _open = open;
        // Each is one for the whole stream: set anew with each event they would cost more than sending it.
        let mut stop = pin!(draining.cancelled());
        let mut silence = pin!(sleep(SILENCE));
        yield Bytes::from_static(RETRY);
        let mut said = Instant::now();
        loop {
            // Here, to its end, and not beside what else may happen: a look that is left half done while the client
            // takes nothing would hold up whoever shows the same credential.
            if standing.is_doubted() && (standing.look().await.is_err() || jobs::judge(standing.principal(), watch.owner()).is_err()) {
                yield Bytes::from_static(DISMISSAL);
                break;
            }
            tokio::select! {
                // A watch that always has something to tell must not keep the stream from its end.
                biased;
                () = &mut stop => {
                    yield Bytes::from_static(GOODBYE);
                    break;
                }
                notice = watch.next() => match notice {
                    Some(Notice::Events(events)) => {
                        let mut parts = Parts::of(events);
                        while let Some(part) = parts.next(&watch).await {
                            yield part;
                        }
                        if parts.is_broken {
                            break;
                        }
                        said = Instant::now();
                    }
                    Some(Notice::Remark(remark)) => {
                        yield unnumbered(&remark);
                        said = Instant::now();
                    }
                    None => break,
                },
                () = standing.doubt() => {}
                () = &mut silence => {
                    if said.elapsed() >= SILENCE {
                        yield Bytes::from_static(PING);
                        said = Instant::now();
                    }
                    silence.as_mut().reset(said + SILENCE);
                }
            }
        }
    }
}

/// What goes out for some events, in pieces that a client may leave untaken without holding more than one.
struct Parts {
    /// What has been made already.
    ready: Option<Bytes>,
    /// How much of it went out.
    sent: usize,
    len: usize,
    /// Whether the rest of an event is gone: the client has to come again for the whole.
    is_broken: bool,
}

impl Parts {
    fn of(events: Vec<Framed>) -> Self {
        let ready = match <[Framed; 1]>::try_from(events) {
            // As it is in the ring, for everybody.
            Ok([event]) => event.frame,
            Err(events) => events.iter().map(|event| event.frame.as_ref()).collect::<Vec<_>>().concat().into(),
        };
        Self { sent: 0, len: ready.len(), ready: Some(ready), is_broken: false }
    }

    /// The next piece. Several events are one; a large one is many, each a copy: what the client leaves
    /// untaken must not keep the whole.
    async fn next(&mut self, watch: &Watch) -> Option<Bytes> {
        if self.sent == self.len {
            return None;
        }
        let whole = match self.ready.take() {
            Some(ready) if self.len <= ROOM => {
                self.sent = self.len;
                return Some(ready);
            }
            Some(ready) => Some(ready),
            None => Box::pin(watch.again()).await.map(|event| event.frame),
        };
        let Some(whole) = whole.filter(|whole| whole.len() == self.len) else {
            self.is_broken = true;
            return None;
        };
        let part = Bytes::copy_from_slice(&whole[self.sent..self.len.min(self.sent + ROOM)]);
        self.sent += part.len();
        Some(part)
    }
}

/// What is not of the log has no id: a client must not resume from it. After `resync` it must not resume from what it had
/// either, if the next event never reaches it: an empty id takes that away (HTML standard, section 9.2.6).
fn unnumbered(remark: &Remark) -> Bytes {
    let forget = if remark.kind == "resync" { "id: \n" } else { "" };
    Bytes::from(format!("event: {}\n{forget}data: {}\n\n", remark.kind, remark.event))
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        let mut response = Response::builder().content_type(Self::CONTENT_TYPE).body(self.body);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // nginx would collect events before it passes them on.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

impl Payload for EventStream {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn schema_ref() -> MetaSchemaRef {
        // OpenAPI 3.0 has no word for a stream. Tools that read one hold each message of it against this.
        let text =
            |description| MetaSchemaRef::Inline(Box::new(MetaSchema { description: Some(description), ..MetaSchema::new("string") }));
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            description: Some("One message of the stream."),
            required: vec!["event", "data"],
            properties: vec![
                ("id", text("What to send as `Last-Event-ID`; absent for what is not kept.")),
                ("event", text("The `type` of the `Event`.")),
                ("data", text("An `Event`, as JSON on one line.")),
            ],
            ..MetaSchema::new("object")
        }))
    }

    fn register(registry: &mut Registry) {
        Event::register(registry);
    }
}
