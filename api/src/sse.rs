//! A watch as a stream of server-sent events. The stream outlives pauses of the job and of Redis; it ends
//! after the job's last event, or when the server is about to stop.

use std::time::Duration;

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
use serde_json::json;
use shared::time::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    feed::Advice,
    metrics::OpenStream,
    routes::events::Event,
    watch::{Notice, Watch},
};

/// How long a client waits before it connects again.
const RETRY: &[u8] = b"retry: 2000\n\n";
/// Keeps proxies from closing a silent stream.
const PING: &[u8] = b": ping\n\n";
/// Tells a person who reads along why the stream ends.
const GOODBYE: &[u8] = b": the server is about to stop\n\n";
/// How long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(15);

/// An answer that is a stream of server-sent events.
pub struct EventStream {
    body: Body,
}

impl EventStream {
    /// Everything `watch` tells, until `draining`; counted as `open` for as long.
    pub fn new(watch: Watch, draining: CancellationToken, open: OpenStream) -> Self {
        let chunks = chunks(watch, draining, open).map(Ok::<_, std::io::Error>);
        Self { body: Body::from_bytes_stream(chunks) }
    }
}

fn chunks(mut watch: Watch, draining: CancellationToken, open: OpenStream) -> impl Stream<Item = Bytes> + Send {
    stream! {
        let _open = open;
        yield Bytes::from_static(RETRY);
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled() => {
                    yield Bytes::from_static(GOODBYE);
                    break;
                }
                notice = watch.next() => match notice {
                    Some(notice) => yield frame(notice),
                    None => break,
                },
                () = sleep(SILENCE) => yield Bytes::from_static(PING),
            }
        }
    }
}

/// What goes out for `notice`. Only events of the log have an id: a client must not resume from anything
/// else.
fn frame(notice: Notice) -> Bytes {
    let at = Timestamp::now();
    let (kind, data) = match notice {
        Notice::Event(event) => return event.frame,
        Notice::Advice(Advice::Queued(queued)) => {
            let (position, estimated_wait_ms) = (queued.position, queued.estimated_wait_ms);
            ("job.queued", json!({"type": "job.queued", "at": at, "position": position, "estimated_wait_ms": estimated_wait_ms}))
        }
        Notice::Advice(Advice::Retrying(retrying)) => {
            let (attempt, reason, delay_ms) = (retrying.attempt, retrying.reason, retrying.delay_ms);
            ("retrying", json!({"type": "retrying", "at": at, "attempt": attempt, "reason": reason, "delay_ms": delay_ms}))
        }
        Notice::Resync(job) => ("resync", json!({"type": "resync", "at": at, "job": job})),
    };
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Queued, Retrying};
    use shared::event::StartReason;

    #[test]
    fn what_is_not_of_the_log_has_no_id() {
        let queued = frame(Notice::Advice(Advice::Queued(Queued { position: 3, estimated_wait_ms: None })));
        let retrying = frame(Notice::Advice(Advice::Retrying(Retrying { attempt: 2, reason: StartReason::WorkerLost, delay_ms: 40 })));

        let text = String::from_utf8([queued, retrying].concat()).expect("UTF-8");
        assert!(text.starts_with("event: job.queued\ndata: {"), "{text}");
        assert!(text.contains("\"position\":3") && text.contains("\"estimated_wait_ms\":null"), "{text}");
        assert!(text.contains("\n\nevent: retrying\ndata: {") && text.contains("\"reason\":\"worker_lost\""), "{text}");
        assert!(!text.contains("id: ") && text.ends_with("}\n\n"), "{text}");
    }
}
