//! What the model says in one call: blocks, already cut into the deltas they are streamed in.

use std::{
    iter,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{Pace, Step, ToolCall, filling, fresh_id, said::recalled};

/// The characters in a delta of a text that is to be said in no time.
const LARGE_PIECE: usize = 64 * 1024;

/// One message of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Its id, as in `message.id`.
    pub id: String,
    /// What it consists of, in order.
    pub blocks: Vec<Block>,
    /// Why it ends.
    pub stop: StopReason,
    /// The time before each delta.
    pub delay: Duration,
    /// Whether each delta waits until it is let out.
    pub is_gated: bool,
    /// Whether each delta tells when it is said, by [`clock`], and not what its block has.
    pub tells_time: bool,
}

/// One content block, in the pieces it is streamed in.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Text.
    Text(Vec<String>),
    /// Thinking, with its signature.
    Thinking(Vec<String>),
    /// A tool call.
    ToolUse {
        /// The call's id.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments.
        input: Value,
        /// The arguments' JSON.
        pieces: Vec<String>,
    },
}

/// Why a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It is complete.
    EndTurn,
    /// It wants tools run.
    ToolUse,
    /// It ran into the token limit.
    MaxTokens,
    /// It was stopped by a safety rule.
    Refusal,
}

impl Reply {
    /// What `step` answers to somebody who `said` all this, when the API works. Steps that are faults recover:
    /// `recovered`.
    pub fn to(step: &Step, said: &[String], pace: Pace) -> Self {
        match step {
            Step::Say(text) => Self::text(text, pace),
            Step::Recall(_) => Self::text(&recalled(said), pace),
            Step::Think(text) => Self::thought(text, pace),
            Step::Tools(calls) => Self::tools(calls, pace),
            Step::Loop(call) => Self::tools(std::slice::from_ref(call), pace),
            Step::Slow(count, every) => Self { delay: *every, ..Self::ticks(*count, pace) },
            Step::Gated(count) => Self { is_gated: true, ..Self::ticks(*count, pace) },
            Step::Clock(count, every) => Self {
                delay: *every,
                tells_time: true,
                ..Self::of(vec![Block::Text((0..*count).map(|_| clock()).collect())], StopReason::EndTurn, pace)
            },
            Step::Flood(count) => Self::of(vec![Block::Text((0..*count).map(|n| format!("w{n} ")).collect())], StopReason::EndTurn, pace),
            Step::Grow(bytes) => Self::text(&filling(*bytes), Pace { chunk: pace.chunk.or(Some(LARGE_PIECE)), ..pace }),
            Step::MaxTokens(text) => Self { stop: StopReason::MaxTokens, ..Self::text(text, pace) },
            Step::Structured(value) => {
                let call = ToolCall { name: "StructuredOutput".into(), input: value.clone(), is_announced: false };
                Self::tools(&[call], pace)
            }
            Step::Refuse => Self::of(Vec::new(), StopReason::Refusal, pace),
            Step::Empty => Self::of(Vec::new(), StopReason::EndTurn, pace),
            Step::Fail(..) | Step::StreamError(..) | Step::Drop(_) => Self::text("recovered", pace),
            Step::Hang | Step::HangMid | Step::Cli(_) => Self::text("done", pace),
        }
    }

    /// A message of text alone.
    pub fn text(text: &str, pace: Pace) -> Self {
        Self::of(vec![Block::text(text, pace)], StopReason::EndTurn, pace)
    }

    /// What is left to say once the tools have answered `results`.
    pub fn to_results(results: &[ToolResult], pace: Pace) -> Self {
        match results {
            [result] if result.is_error => Self::text(&format!("tool failed: {}", cut(&result.text)), pace),
            [result] => Self::text(&format!("tool said: {}", cut(&result.text)), pace),
            _ => Self::text("parallel done", pace),
        }
    }

    /// The tokens it counts for.
    pub fn output_tokens(&self) -> u64 {
        self.blocks.iter().map(Block::tokens).sum::<u64>().max(1)
    }

    fn ticks(count: u32, pace: Pace) -> Self {
        Self::of(vec![Block::Text((0..count).map(|n| format!("tick {n} ")).collect())], StopReason::EndTurn, pace)
    }

    fn thought(text: &str, pace: Pace) -> Self {
        let blocks = vec![Block::Thinking(chunks(text, pace.chunk())), Block::text(&format!("Answer: {text}"), pace)];
        Self::of(blocks, StopReason::EndTurn, pace)
    }

    fn tools(calls: &[ToolCall], pace: Pace) -> Self {
        let announcement = calls.iter().find(|call| call.is_announced).map(|call| Block::text(&format!("Using {}. ", call.name), pace));
        let blocks = announcement.into_iter().chain(calls.iter().map(|call| Block::tool_use(call, pace))).collect();
        Self::of(blocks, StopReason::ToolUse, pace)
    }

    fn of(blocks: Vec<Block>, stop: StopReason, pace: Pace) -> Self {
        Self { id: fresh_id("msg"), blocks, stop, delay: pace.delay, is_gated: false, tells_time: false }
    }
}

/// What is said now by a model that tells the time: nanoseconds since 1970, and a space.
pub fn clock() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} ", since.as_nanos())
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// Its text.
    pub text: String,
    /// Whether it failed or was refused.
    pub is_error: bool,
}

impl Block {
    /// The block's opening: without content.
    pub fn opening(&self) -> Value {
        match self {
            Self::Text(_) => json!({"type": "text", "text": ""}),
            Self::Thinking(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Self::ToolUse { id, name, .. } => json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
        }
    }

    /// The block as it is when it has been said.
    pub fn complete(&self) -> Value {
        self.spoken(usize::MAX)
    }

    /// The block as far as its first `pieces` deltas tell it.
    pub fn spoken(&self, pieces: usize) -> Value {
        let said = |all: &[String]| all.iter().take(pieces).map(String::as_str).collect::<String>();
        match self {
            Self::Text(all) => json!({"type": "text", "text": said(all)}),
            Self::Thinking(all) => json!({"type": "thinking", "thinking": said(all), "signature": SIGNATURE}),
            Self::ToolUse { id, name, input, .. } => json!({"type": "tool_use", "id": id, "name": name, "input": input}),
        }
    }

    /// Its deltas, in order.
    pub fn pieces(&self) -> &[String] {
        match self {
            Self::Text(pieces) | Self::Thinking(pieces) | Self::ToolUse { pieces, .. } => pieces,
        }
    }

    fn text(text: &str, pace: Pace) -> Self {
        Self::Text(chunks(text, pace.chunk()))
    }

    fn tool_use(call: &ToolCall, pace: Pace) -> Self {
        // Arguments come in larger pieces than text.
        let pieces = chunks(&call.input.to_string(), pace.chunk() * 3);
        Self::ToolUse { id: fresh_id("toolu"), name: call.name.clone(), input: call.input.clone(), pieces }
    }

    fn tokens(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.chars().count()).sum::<usize>().div_ceil(4).try_into().unwrap_or(u64::MAX)
    }
}

impl StopReason {
    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::ToolUse => "tool_use",
            Self::MaxTokens => "max_tokens",
            Self::Refusal => "refusal",
        }
    }
}

/// What closes a thinking block.
pub const SIGNATURE: &str = "bW9ja3NpZw==";

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

fn chunks(text: &str, size: usize) -> Vec<String> {
    let mut characters = text.chars();
    iter::from_fn(|| Some(characters.by_ref().take(size).collect::<String>()).filter(|piece| !piece.is_empty())).collect()
}
