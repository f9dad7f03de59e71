//! A reply as the API streams it: one event after the other. Deltas are written by hand, since a flood of
//! them is what the doubles are measured by.

use serde_json::{Value, json};

use super::{Block, Reply, reply::SIGNATURE, usage::Usage};

/// One event of a streamed message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ModelEvent<'a> {
    /// `message_start`
    MessageStart,
    /// `content_block_start`
    BlockStart(usize, &'a Block),
    /// `content_block_delta`
    Delta(usize, &'a Block, &'a str),
    /// The `content_block_delta` that signs a thinking block.
    Signature(usize),
    /// `content_block_stop`
    BlockStop(usize, &'a Block),
    /// `message_delta`
    MessageDelta,
    /// `message_stop`
    MessageStop,
}

/// The events `reply` is streamed in.
pub fn events(reply: &Reply) -> impl Iterator<Item = ModelEvent<'_>> {
    let blocks = reply.blocks.iter().enumerate().flat_map(|(index, block)| {
        let deltas = block.pieces().iter().map(move |piece| ModelEvent::Delta(index, block, piece));
        let signature = matches!(block, Block::Thinking(_)).then_some(ModelEvent::Signature(index));
        std::iter::once(ModelEvent::BlockStart(index, block)).chain(deltas).chain(signature).chain([ModelEvent::BlockStop(index, block)])
    });
    std::iter::once(ModelEvent::MessageStart).chain(blocks).chain([ModelEvent::MessageDelta, ModelEvent::MessageStop])
}

impl ModelEvent<'_> {
    /// Its type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MessageStart => "message_start",
            Self::BlockStart(..) => "content_block_start",
            Self::Delta(..) | Self::Signature(_) => "content_block_delta",
            Self::BlockStop(..) => "content_block_stop",
            Self::MessageDelta => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }

    /// Append its JSON to `out`, as an event of `reply` by `model`.
    pub fn write_json(self, reply: &Reply, model: &str, usage: Usage, out: &mut Vec<u8>) {
        if let Self::Delta(index, block, piece) = self {
            return write_delta(index, block, piece, out);
        }
        let name = self.name();
        let json = match self {
            Self::MessageStart => json!({"type": name, "message": {
                "id": reply.id, "type": "message", "role": "assistant", "model": model, "content": [],
                "stop_reason": null, "stop_sequence": null, "usage": usage.at_start(),
            }}),
            Self::BlockStart(index, block) => json!({"type": name, "index": index, "content_block": block.opening()}),
            Self::Signature(index) => {
                json!({"type": name, "index": index, "delta": {"type": "signature_delta", "signature": SIGNATURE}})
            }
            Self::BlockStop(index, _) => json!({"type": name, "index": index}),
            Self::MessageDelta => {
                let delta = json!({"stop_reason": reply.stop.name(), "stop_sequence": null});
                json!({"type": name, "delta": delta, "usage": usage.at_end()})
            }
            Self::MessageStop | Self::Delta(..) => json!({"type": name}),
        };
        write_value(&json, out);
    }
}

fn write_delta(index: usize, block: &Block, piece: &str, out: &mut Vec<u8>) {
    let delta: &[u8] = match block {
        Block::Text(_) => b",\"delta\":{\"type\":\"text_delta\",\"text\":",
        Block::Thinking(_) => b",\"delta\":{\"type\":\"thinking_delta\",\"thinking\":",
        Block::ToolUse { .. } => b",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":",
    };
    out.extend_from_slice(b"{\"type\":\"content_block_delta\",\"index\":");
    out.extend_from_slice(index.to_string().as_bytes());
    out.extend_from_slice(delta);
    serde_json::to_writer(&mut *out, piece).expect("memory takes every write");
    out.extend_from_slice(b"}}");
}

fn write_value(json: &Value, out: &mut Vec<u8>) {
    serde_json::to_writer(out, json).expect("memory takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pace, Step};

    #[test]
    fn a_reply_is_streamed_block_by_block() {
        let reply = Reply::to(&Step::Think("why".into()), &[], Pace { chunk: Some(100), ..Pace::default() });

        let names: Vec<_> = events(&reply).map(ModelEvent::name).collect();

        let block = ["content_block_start", "content_block_delta", "content_block_stop"];
        let thinking = ["content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"];
        assert_eq!(names, [&["message_start"][..], &thinking, &block, &["message_delta", "message_stop"]].concat());
    }

    #[test]
    fn a_delta_is_json_whatever_it_says() {
        let reply = Reply::text("\"\\\n\u{1f600}", Pace { chunk: Some(100), ..Pace::default() });
        let delta = events(&reply).nth(2).expect("a delta");

        let mut json = Vec::new();
        delta.write_json(&reply, "m", Usage::default(), &mut json);

        let json: Value = serde_json::from_slice(&json).expect("JSON");
        let expected = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "\"\\\n\u{1f600}"}});
        assert_eq!(json, expected);
    }
}
