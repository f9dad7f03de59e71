//! A reply on the wire: whole, or as server-sent events at the pace the script asks for.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};

use crate::model::{Block, ModelEvent, Reply, Usage, clock, events};

use super::{answer::Ending, received::Open};

/// The body of an answer. An error in it breaks the connection.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Deltas that go out together when they may go as fast as they can.
const BATCH_BYTES: usize = 16 * 1024;
const PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// A body of JSON.
pub(super) fn whole(json: &Value) -> Body {
    Full::new(Bytes::from(json.to_string())).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body whose chunks are received from the returned sender's other half. `gate` lets gated deltas out.
pub(super) fn streamed(gate: Arc<Semaphore>) -> (Chunks, Body) {
    let (chunks, receiver) = mpsc::channel(16);
    let frames = stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async {
        let chunk: io::Result<Bytes> = receiver.recv().await?;
        Some((chunk.map(Frame::data), receiver))
    });
    (Chunks { body: chunks, batch: Vec::new(), gate }, StreamBody::new(frames).boxed_unsync())
}

/// A message as JSON.
pub(super) fn message(reply: &Reply, model: &str, usage: Usage) -> Value {
    let mut totals = usage.at_start();
    totals["output_tokens"] = json!(usage.output);
    json!({
        "id": reply.id, "type": "message", "role": "assistant", "model": model,
        "content": reply.blocks.iter().map(Block::complete).collect::<Vec<_>>(),
        "stop_reason": reply.stop.name(), "stop_sequence": null, "usage": totals,
    })
}

/// The sending half of a streamed body.
pub(super) struct Chunks {
    body: mpsc::Sender<io::Result<Bytes>>,
    batch: Vec<u8>,
    gate: Arc<Semaphore>,
}

/// The client has left.
struct Gone;

impl Chunks {
    /// Say `reply` and end as `ending` wants. Returns early when the client leaves; the answer is under
    /// way (`_open`) until then.
    pub(super) async fn speak(mut self, reply: Reply, model: String, usage: Usage, ending: Ending, _open: Open) {
        let client = self.body.clone();
        tokio::select! {
            _ = self.try_speak(&reply, &model, usage, ending) => {}
            () = client.closed() => {}
        }
    }

    async fn try_speak(&mut self, reply: &Reply, model: &str, usage: Usage, ending: Ending) -> Result<(), Gone> {
        let mut deltas = 0;
        for event in events(reply) {
            if matches!(event, ModelEvent::Delta(..)) {
                if deltas == 2 && ending != Ending::Whole {
                    return self.break_off(ending).await;
                }
                deltas += 1;
                if !reply.delay.is_zero() {
                    self.flush().await?;
                    sleep(reply.delay).await;
                }
                if reply.is_gated {
                    self.flush().await?;
                    self.gate.acquire().await.map_err(|_| Gone)?.forget();
                }
            }
            let time;
            let event = match event {
                ModelEvent::Delta(index, block, _) if reply.tells_time => {
                    time = clock();
                    ModelEvent::Delta(index, block, &time)
                }
                event => event,
            };
            self.event(event.name(), |json| event.write_json(reply, model, usage, json));
            if event == ModelEvent::MessageStart {
                self.batch.extend_from_slice(PING.as_bytes());
            }
            if self.batch.len() >= BATCH_BYTES {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    async fn break_off(&mut self, ending: Ending) -> Result<(), Gone> {
        match ending {
            Ending::Whole => {}
            Ending::Error(error) => self.event("error", |json| json.extend_from_slice(error.body().to_string().as_bytes())),
            Ending::Drop => {
                self.flush().await?;
                self.send(Err(io::ErrorKind::ConnectionAborted.into())).await?;
            }
            Ending::Silence => {
                self.flush().await?;
                self.body.closed().await;
            }
        }
        self.flush().await
    }

    fn event(&mut self, name: &str, write_json: impl FnOnce(&mut Vec<u8>)) {
        self.batch.extend_from_slice(b"event: ");
        self.batch.extend_from_slice(name.as_bytes());
        self.batch.extend_from_slice(b"\ndata: ");
        write_json(&mut self.batch);
        self.batch.extend_from_slice(b"\n\n");
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.send(Ok(batch.into())).await
    }

    async fn send(&self, chunk: io::Result<Bytes>) -> Result<(), Gone> {
        self.body.send(chunk).await.map_err(|_| Gone)
    }
}
