//! The CLI's output, line by line, into what happened: a fold without I/O. Nothing in a line is an error
//! here: releases add types and fields, tools print anything, a killed process leaves half a line. What
//! is not understood is counted by the caller and passed over.

mod draft;
#[cfg(test)]
mod golden;
mod line;
mod turn;

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, value::RawValue};
use shared::event::EventBody;

use self::{
    draft::Drafts,
    line::{ApiRetry, Assistant, Delta, Head, Init, Output, SessionState, StreamEvent, TaskEnded, TurnEnd, User, UserBlock},
    turn::Meter,
};
use super::control::{Answer, Question};

pub use self::turn::{MAX_TEXT_BYTES, TurnResult};

/// The longest piece of text in one event, in bytes.
pub const MAX_DELTA_BYTES: usize = 32 * 1024;

/// The most of a tool's output that is shown, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 16 * 1024;

/// What a line tells.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Something clients see.
    Event(EventBody),
    /// A turn begins: the CLI has taken the message.
    Initialized {
        /// The model it starts with.
        model: String,
        /// The tools the model may call, by the names clients know.
        tools: Vec<String>,
        /// The CLI's version.
        version: String,
    },
    /// The CLI answers a control request of ours.
    Answered(Answer),
    /// The CLI asks us; it waits until it is answered.
    Asked(Question),
    /// The API failed and is asked again after a wait.
    Retrying {
        /// Which retry this is, from 1.
        attempt: u32,
        /// How long the CLI waits first.
        delay_ms: u64,
        /// What the API answered; absent where it did not.
        status: Option<u16>,
    },
    /// A turn ended. Another may follow unasked until [`Step::Idle`].
    TurnEnded(Box<TurnResult>),
    /// Nothing more comes unasked.
    Idle,
    /// A line that is not understood: its type, never its content.
    Unknown(String),
}

impl Step {
    /// Whether this is text of the answer itself.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Event(EventBody::TextDelta { parent_tool_use_id: None, .. }))
    }
}

/// What is known of a process's output so far.
#[derive(Default)]
pub struct Parser {
    tools: Vec<String>,
    drafts: Drafts,
    open_calls: HashSet<String>,
    model: Option<String>,
    api_error: Option<String>,
    retry_delay: Option<Duration>,
    meter: Meter,
}

/// More open tool calls than this are not counted, so that a mad model cannot fill the memory.
const MAX_OPEN_CALLS: usize = 1024;

impl Parser {
    /// A parser for a process that has said nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tool calls have no result yet. While there are some, silence is no sign of trouble.
    pub fn open_tool_calls(&self) -> usize {
        self.open_calls.len()
    }

    /// Read one line, without its line break.
    pub fn feed(&mut self, line: &[u8]) -> Vec<Step> {
        if line.trim_ascii().is_empty() {
            return Vec::new();
        }
        let text = line::text_of(line);
        let Ok(head) = serde_json::from_str::<Head>(&text) else { return vec![Step::Unknown("not an event".into())] };
        let kind = head.kind.as_str();
        let steps = match kind {
            "stream_event" => self.streamed(&text),
            "assistant" => self.assistant(&text),
            "user" => self.user(&text),
            "result" => self.result(&text),
            "system" => self.system(head.subtype.as_deref().unwrap_or_default(), &text),
            "control_response" => Answer::parse(&text).map(|answer| vec![Step::Answered(answer)]),
            "control_request" => Question::parse(&text).map(|question| vec![Step::Asked(question)]),
            "control_cancel_request" | "keep_alive" | "command_lifecycle" | "rate_limit_event" => Some(Vec::new()),
            _ => None,
        };
        steps.unwrap_or_else(|| vec![Step::Unknown(name(&head))])
    }

    fn system(&mut self, subtype: &str, text: &str) -> Option<Vec<Step>> {
        match subtype {
            "init" => {
                let Init { model, tools, claude_code_version } = serde_json::from_str(text).ok()?;
                self.model = Some(column(&model));
                self.tools.clone_from(&tools);
                Some(vec![Step::Initialized { model: column(&model), tools, version: column(&claude_code_version) }])
            }
            "api_retry" => {
                let ApiRetry { attempt, retry_delay_ms, error_status } = serde_json::from_str(text).ok()?;
                self.retry_delay = Some(Duration::from_millis(retry_delay_ms));
                Some(vec![Step::Retrying { attempt, delay_ms: retry_delay_ms, status: error_status }])
            }
            "session_state_changed" => {
                let SessionState { state } = serde_json::from_str(text).ok()?;
                Some(if state == "idle" { vec![Step::Idle] } else { Vec::new() })
            }
            "task_notification" => {
                let TaskEnded { tool_use_id } = serde_json::from_str(text).ok()?;
                let mut events = Vec::new();
                self.drafts.end_of(&tool_use_id?, &mut events);
                Some(steps(events))
            }
            "status"
            | "thinking_tokens"
            | "model_fallback"
            | "permission_denied"
            | "task_started"
            | "task_updated"
            | "task_progress"
            | "background_tasks_changed"
            | "hook_started"
            | "hook_response"
            | "compact_boundary"
            | "model_refusal_no_fallback"
            | "informational"
            | "ui_invalidate" => Some(Vec::new()),
            _ => None,
        }
    }

    /// An event of the Messages API, passed through.
    fn streamed(&mut self, text: &str) -> Option<Vec<Step>> {
        let StreamEvent { event, api_message_id, parent_tool_use_id, abandoned_blocks } = serde_json::from_str(text).ok()?;
        let parent = parent_tool_use_id.as_deref();
        let mut events = Vec::new();
        match event.kind.as_str() {
            "message_start" => {
                let message = event.message?;
                self.drafts.open(parent, &message.id, &mut events).streamed = true;
                if let (None, Some(model)) = (parent, message.model) {
                    self.model = Some(column(&model));
                }
            }
            "content_block_start" => self.drafts.find(parent)?.index = event.index,
            "content_block_delta" => {
                let Delta { kind, text, thinking } = event.delta?;
                let id = match api_message_id {
                    Some(id) => id,
                    None => self.drafts.find(parent)?.id().to_owned(),
                };
                let draft = self.drafts.open(parent, &id, &mut events);
                draft.streamed = true;
                draft.index = event.index;
                match kind.as_str() {
                    "text_delta" => {
                        let text = text?;
                        if !text.is_empty() {
                            draft.loosen();
                        }
                        events.extend(text_deltas(&id, parent, &text));
                    }
                    "thinking_delta" if parent.is_none() => {
                        events.extend(pieces(&thinking?).map(|piece| EventBody::ThinkingDelta { message_id: id.clone(), text: piece.to_owned() }));
                    }
                    _ => {}
                }
            }
            "message_stop" => {
                if let Some(draft) = self.drafts.find(parent) {
                    if let Some(abandoned) = abandoned_blocks.filter(|abandoned| abandoned.api_message_id == draft.id()) {
                        for call in draft.abandon_from(abandoned.from_block_index, &mut events) {
                            self.open_calls.remove(&call);
                        }
                    }
                    draft.close(&mut events);
                }
            }
            "content_block_stop" | "message_delta" | "ping" => {}
            _ => return None,
        }
        Some(steps(events))
    }

    /// Finished blocks of a message, or what the CLI says of an API error in the model's place.
    fn assistant(&mut self, text: &str) -> Option<Vec<Step>> {
        let Assistant { message, parent_tool_use_id, error, is_api_error_message } = serde_json::from_str(text).ok()?;
        if is_api_error_message || message.model == SYNTHETIC {
            if parent_tool_use_id.is_none() {
                self.api_error = error.or(self.api_error.take());
            }
            return Some(Vec::new());
        }
        let parent = parent_tool_use_id.as_deref();
        if parent.is_none() && !message.model.is_empty() {
            self.model = Some(column(&message.model));
        }
        let mut events = Vec::new();
        self.drafts.open(parent, &message.id, &mut events);
        for raw in message.content {
            self.block(parent, &message.id, raw, &mut events)?;
        }
        Some(steps(events))
    }

    fn block(&mut self, parent: Option<&str>, id: &str, raw: &RawValue, events: &mut Vec<EventBody>) -> Option<()> {
        let mut block: Value = serde_json::from_str(raw.get()).ok()?;
        if block["type"] == "tool_use" {
            let name = self.announced(block["name"].as_str()?).to_owned();
            let tool_use_id = block["id"].as_str()?.to_owned();
            if self.open_calls.len() < MAX_OPEN_CALLS {
                self.open_calls.insert(tool_use_id.clone());
            }
            events.push(EventBody::ToolStarted {
                tool_use_id,
                name: name.clone(),
                input: block["input"].clone(),
                parent_tool_use_id: parent.map(str::to_owned),
                truncated: false,
            });
            block["name"] = Value::String(name);
        }
        let draft = self.drafts.open(parent, id, events);
        // What did not stream (a fallback answer, a sub-agent's words) has no deltas of its own; with these
        // the deltas of every message that stands make up its text.
        if let (false, Some("text"), Some(text)) = (draft.streamed, block["type"].as_str(), block["text"].as_str()) {
            events.extend(text_deltas(id, parent, text));
        }
        draft.add(block, raw);
        Some(())
    }

    /// Results of tools; other words in the user's name are the CLI's own business.
    fn user(&mut self, text: &str) -> Option<Vec<Step>> {
        let User { message, parent_tool_use_id, is_replay } = serde_json::from_str(text).ok()?;
        if is_replay {
            return Some(Vec::new());
        }
        let mut events = Vec::new();
        for block in message.blocks() {
            let UserBlock { kind, tool_use_id: Some(tool_use_id), is_error, content } = block else { continue };
            if kind != "tool_result" {
                continue;
            }
            self.open_calls.remove(&tool_use_id);
            self.drafts.end_of(&tool_use_id, &mut events);
            let (output, truncated) = content.map(shown).unwrap_or_default();
            let parent_tool_use_id = parent_tool_use_id.clone();
            events.push(EventBody::ToolFinished { tool_use_id, is_error, output, parent_tool_use_id, truncated });
        }
        Some(steps(events))
    }

    fn result(&mut self, text: &str) -> Option<Vec<Step>> {
        let end: TurnEnd = serde_json::from_str(text).ok()?;
        let mut events = Vec::new();
        self.drafts.end_all(&mut events);
        self.open_calls.clear();

        let (usage, cost) = self.meter.read(&end);
        let is_error = end.is_error.unwrap_or(true);
        // An error that the turn got over is none of the turn's.
        let api_error = self.api_error.take().filter(|_| is_error);
        let mut text = end.result;
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        let turn = TurnResult {
            is_error,
            subtype: end.subtype,
            terminal_reason: end.terminal_reason,
            text,
            stop_reason: end.stop_reason,
            num_turns: end.num_turns,
            permission_denials: end.permission_denials.into_iter().map(|denial| self.denied(denial)).collect(),
            usage,
            cost,
            model: self.model.clone(),
            api_error_status: end.api_error_status,
            api_error: end.api_error.or(api_error),
            errors: end.errors,
            retry_delay: self.retry_delay.take(),
        };
        let mut steps = steps(events);
        steps.push(Step::TurnEnded(Box::new(turn)));
        Some(steps)
    }

    fn denied(&self, line::Denial { tool_name, tool_use_id }: line::Denial) -> shared::job::PermissionDenial {
        shared::job::PermissionDenial { tool_name: self.announced(&tool_name).to_owned(), tool_use_id }
    }

    /// The name by which the CLI announces a tool: it calls `Task` `Agent` when it speaks to the model.
    fn announced<'a>(&self, name: &'a str) -> &'a str {
        if name == "Agent" && !self.tools.iter().any(|tool| tool == "Agent") { "Task" } else { name }
    }
}

/// The model of messages that no model wrote.
const SYNTHETIC: &str = "<synthetic>";

fn steps(events: Vec<EventBody>) -> Vec<Step> {
    events.into_iter().map(Step::Event).collect()
}

fn text_deltas(id: &str, parent: Option<&str>, text: &str) -> impl Iterator<Item = EventBody> {
    pieces(text).map(move |piece| EventBody::TextDelta {
        message_id: id.to_owned(),
        text: piece.to_owned(),
        parent_tool_use_id: parent.map(str::to_owned),
    })
}

/// `text` in pieces that fit in an event; none of an empty text.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.floor_char_boundary(MAX_DELTA_BYTES));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A tool's output as far as it is shown, and whether it was cut. What is not text is named.
fn shown(content: &RawValue) -> (String, bool) {
    let mut output = match serde_json::from_str(content.get()) {
        Ok(Output::Text(text)) => text,
        Ok(Output::Blocks(blocks)) => {
            let blocks = blocks.into_iter().map(|block| block.text.unwrap_or_else(|| format!("[{}]", block.kind)));
            blocks.collect::<Vec<_>>().join("\n")
        }
        Err(_) => String::new(),
    };
    let end = output.floor_char_boundary(MAX_OUTPUT_BYTES);
    let truncated = end < output.len();
    output.truncate(end);
    (output, truncated)
}

/// A text that may become a database column, where NUL cannot be.
fn column(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The type of a line, short enough for a log.
fn name(head: &Head) -> String {
    let mut name = match &head.subtype {
        Some(subtype) => format!("{}/{subtype}", head.kind),
        None => head.kind.clone(),
    };
    name.truncate(name.floor_char_boundary(64));
    name
}
