//! The CLI's output, line by line, into what happened: a fold without I/O. Nothing in a line is an error
//! here: releases add types and fields, tools print anything, a killed process leaves half a line. What
//! is not understood is counted by the caller and passed over.

mod draft;
#[cfg(test)]
mod golden;
mod line;
mod tally;
mod text;
mod turn;

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, value::RawValue};
use shared::{
    event::EventBody,
    job::{PermissionDenial, Usage},
};

use self::{
    draft::Drafts,
    line::{ApiRetry, Assistant, Delta, Denial, Head, Init, SessionState, StreamEvent, TaskEnded, TurnEnd, User, UserBlock},
    tally::Tally,
    text::{column, pieces, shown},
    turn::Meter,
};
use super::control::{Answer, Question};

#[cfg(test)]
pub(super) use self::golden::recorded_turns;
pub use self::text::{MAX_DELTA_BYTES, MAX_OUTPUT_BYTES};
pub use self::turn::{MAX_TEXT_BYTES, TurnResult};

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
    tally: Tally,
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

    /// The tokens that were seen since the last result, which no result has accounted for.
    pub fn untold(&self) -> Usage {
        self.tally.sum()
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
                self.tally.note(&message.id, &message.usage);
                self.drafts.open(parent, &message.id, &mut events).streamed = true;
                if let (None, Some(model)) = (parent, message.model) {
                    self.model = Some(column(&model));
                }
            }
            "content_block_start" => self.drafts.find(parent)?.index = event.index,
            "content_block_delta" => {
                let delta = event.delta?;
                let id = match api_message_id {
                    Some(id) => id,
                    None => self.drafts.find(parent)?.id().to_owned(),
                };
                self.delta(parent, &id, event.index, delta, &mut events);
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
            "message_delta" => {
                let id = api_message_id.as_deref().or_else(|| self.drafts.find(parent).map(|draft| draft.id()));
                self.tally.note(id?, &event.usage);
            }
            "content_block_stop" | "ping" => {}
            _ => return None,
        }
        Some(steps(events))
    }

    fn delta(&mut self, parent: Option<&str>, id: &str, index: usize, delta: Delta, events: &mut Vec<EventBody>) {
        let Delta { kind, text, thinking } = delta;
        let draft = self.drafts.open(parent, id, events);
        draft.streamed = true;
        draft.index = index;
        match (kind.as_str(), text, thinking) {
            ("text_delta", Some(text), _) if !text.is_empty() => {
                draft.loosen();
                events.extend(text_deltas(id, parent, &text));
            }
            // Nothing on the wire tells whose thinking it is, so only that of the main conversation is shown.
            ("thinking_delta", _, Some(thinking)) if parent.is_none() => {
                let deltas = pieces(&thinking).map(|piece| EventBody::ThinkingDelta { message_id: id.to_owned(), text: piece.to_owned() });
                events.extend(deltas);
            }
            _ => {}
        }
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
        self.tally.note(&message.id, &message.usage);
        let mut events = Vec::new();
        self.drafts.open(parent, &message.id, &mut events);
        let mut is_understood = true;
        for raw in message.content {
            is_understood &= self.block(parent, &message.id, raw, &mut events).is_some();
        }
        let mut steps = steps(events);
        if !is_understood {
            steps.push(Step::Unknown("assistant block".into()));
        }
        Some(steps)
    }

    /// A finished block. `None` if it is not understood; it is then left out.
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
        if end.accounts() {
            self.tally.clear();
        }
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
            structured_output: end.structured_output,
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

    fn denied(&self, Denial { tool_name, tool_use_id }: Denial) -> PermissionDenial {
        PermissionDenial { tool_name: self.announced(&tool_name).to_owned(), tool_use_id }
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

/// The type of a line, short enough for a log.
fn name(head: &Head) -> String {
    let mut name = match &head.subtype {
        Some(subtype) => format!("{}/{subtype}", head.kind),
        None => head.kind.clone(),
    };
    name.truncate(name.floor_char_boundary(64));
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::event::MAX_EVENT_BYTES;

    use super::*;

    const INIT: &str = r#"{"type":"system","subtype":"init","model":"m","tools":["Bash","Task"],"claude_code_version":"2"}"#;

    fn fed(parser: &mut Parser, lines: &[Value]) -> Vec<EventBody> {
        let steps = lines.iter().flat_map(|line| parser.feed(line.to_string().as_bytes()));
        steps.filter_map(|step| if let Step::Event(body) = step { Some(body) } else { None }).collect()
    }

    fn stream(event: &Value) -> Value {
        json!({"type": "stream_event", "event": event, "api_message_id": "msg_1", "parent_tool_use_id": null})
    }

    fn start() -> Value {
        stream(&json!({"type": "message_start", "message": {"id": "msg_1", "model": "m"}}))
    }

    fn delta(text: &str) -> Value {
        stream(&json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}))
    }

    fn stop() -> Value {
        stream(&json!({"type": "message_stop"}))
    }

    fn assistant(id: &str, block: &Value) -> Value {
        json!({"type": "assistant", "message": {"id": id, "model": "m", "content": [block]}, "parent_tool_use_id": null})
    }

    fn call(id: &str) -> Value {
        json!({"type": "tool_use", "id": id, "name": "Bash", "input": {}})
    }

    fn tool_result(id: &str, content: &Value) -> Value {
        json!({"type": "user", "message": {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": content}]}})
    }

    #[test]
    fn a_long_delta_is_split_between_characters_and_loses_nothing() {
        let text = format!("a{}", "\u{1f600}".repeat(MAX_DELTA_BYTES / 2));

        let events = fed(&mut Parser::new(), &[start(), delta(&text)]);

        let pieces: Vec<&str> = events.iter().map(|event| if let EventBody::TextDelta { text, .. } = event { text } else { "" }).collect();
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| piece.len() <= MAX_DELTA_BYTES));
    }

    #[test]
    fn an_empty_delta_is_no_event() {
        assert_eq!(fed(&mut Parser::new(), &[start(), delta(""), stop()]), []);
    }

    #[test]
    fn a_message_is_sent_once_even_if_a_block_comes_late() {
        let block = json!({"type": "text", "text": "hi"});
        let lines = [start(), assistant("msg_1", &block), stop(), assistant("msg_1", &block), stop()];

        let events = fed(&mut Parser::new(), &lines);

        assert_eq!(
            events,
            [EventBody::Message {
                message_id: "msg_1".into(),
                role: "assistant".into(),
                content: json!([block]),
                parent_tool_use_id: None,
                truncated: false
            }]
        );
    }

    #[test]
    fn a_block_not_understood_costs_only_itself() {
        let nameless = json!({"type": "tool_use", "id": "toolu_1"});
        let mut line = assistant("msg_2", &nameless);
        line["message"]["content"] = json!([nameless, {"type": "text", "text": "two"}]);
        let one = assistant("msg_1", &json!({"type": "text", "text": "one"}));
        let mut parser = Parser::new();
        fed(&mut parser, &[start(), one]);

        let steps = parser.feed(line.to_string().as_bytes());

        let [Step::Event(EventBody::Message { message_id: first, .. }), Step::Event(EventBody::TextDelta { text, .. }), Step::Unknown(_)] =
            steps.as_slice()
        else {
            panic!("{steps:?}")
        };
        assert_eq!((first.as_str(), text.as_str()), ("msg_1", "two"));
    }

    #[test]
    fn a_finished_block_that_is_abandoned_is_withdrawn_with_its_tool_call() {
        let mut parser = Parser::new();
        fed(&mut parser, &[start(), assistant("msg_1", &json!({"type": "text", "text": "kept"}))]);
        fed(&mut parser, &[stream(&json!({"type": "content_block_start", "index": 1})), assistant("msg_1", &call("toolu_1"))]);
        assert_eq!(parser.open_tool_calls(), 1);

        let mut stop = stop();
        stop["abandoned_blocks"] = json!({"api_message_id": "msg_1", "from_block_index": 1});
        let events = fed(&mut parser, &[stop]);

        assert_eq!(parser.open_tool_calls(), 0);
        assert_eq!(events[0], EventBody::MessageWithdrawn { message_id: "msg_1".into() });
        let EventBody::Message { content, .. } = &events[1] else { panic!("no message: {events:?}") };
        assert_eq!(*content, json!([{"type": "text", "text": "kept"}]));
    }

    #[test]
    fn what_a_killed_turn_left_open_is_closed_by_its_result() {
        let mut parser = Parser::new();
        fed(&mut parser, &[start(), assistant("msg_1", &call("toolu_1")), delta("loose")]);

        let events = fed(&mut parser, &[json!({"type": "result", "is_error": true})]);

        assert_eq!(events[0], EventBody::MessageWithdrawn { message_id: "msg_1".into() });
        assert!(matches!(&events[1..], [EventBody::Message { .. }]));
        assert_eq!(parser.open_tool_calls(), 0);
    }

    #[test]
    fn a_call_is_open_until_its_result() {
        let mut parser = Parser::new();

        fed(&mut parser, &[assistant("msg_1", &call("toolu_1")), assistant("msg_1", &call("toolu_2"))]);
        assert_eq!(parser.open_tool_calls(), 2);
        fed(&mut parser, &[tool_result("toolu_2", &json!("ok"))]);
        assert_eq!(parser.open_tool_calls(), 1);
    }

    #[test]
    fn a_tools_output_is_cut_between_characters_and_says_so() {
        let long = format!("a{}", "\u{20ac}".repeat(MAX_OUTPUT_BYTES));
        let blocks = json!([{"type": "text", "text": "x"}, {"type": "image", "source": {"data": "AAAA"}}]);

        let events = fed(&mut Parser::new(), &[tool_result("toolu_1", &json!(long)), tool_result("toolu_2", &blocks)]);

        let [EventBody::ToolFinished { output: cut, truncated: true, .. }, EventBody::ToolFinished { output, truncated: false, .. }] =
            events.as_slice()
        else {
            panic!("{events:?}")
        };
        assert!(long.starts_with(cut.as_str()) && cut.len() > MAX_OUTPUT_BYTES - 4 && cut.len() <= MAX_OUTPUT_BYTES);
        assert_eq!(output, "x\n[image]");
    }

    #[test]
    fn a_message_too_large_for_an_event_is_not_kept() {
        let block = json!({"type": "text", "text": "x".repeat(MAX_EVENT_BYTES)});

        let events = fed(&mut Parser::new(), &[start(), assistant("msg_1", &block), stop()]);

        assert!(matches!(events.as_slice(), [EventBody::Message { content, truncated: true, .. }] if *content == json!([])));
    }

    #[test]
    fn a_tool_has_the_name_it_is_announced_with() {
        let agent = json!({"type": "tool_use", "id": "t", "name": "Agent", "input": {}});
        let name = |init: &str| {
            let mut parser = Parser::new();
            parser.feed(init.as_bytes());
            match fed(&mut parser, &[assistant("msg_1", &agent)]).as_slice() {
                [EventBody::ToolStarted { name, .. }] => name.clone(),
                other => panic!("{other:?}"),
            }
        };

        assert_eq!(name(INIT), "Task");
        assert_eq!(name(&INIT.replace("Task", "Agent")), "Agent");
    }

    #[test]
    fn only_the_main_conversation_is_the_answer() {
        let text = |parent: Option<&str>| {
            Step::Event(EventBody::TextDelta { message_id: "m".into(), text: "x".into(), parent_tool_use_id: parent.map(str::to_owned) })
        };

        assert!(text(None).is_text());
        assert!(!text(Some("toolu_1")).is_text());
        assert!(!Step::Idle.is_text());
    }

    #[test]
    fn a_result_that_does_not_state_success_is_a_failure_and_its_text_is_bounded() {
        let line = json!({"type": "result", "subtype": "success", "result": "\u{20ac}".repeat(MAX_TEXT_BYTES)});

        let steps = Parser::new().feed(line.to_string().as_bytes());

        let [Step::TurnEnded(turn)] = steps.as_slice() else { panic!("no result") };
        assert!(turn.is_error);
        assert!(turn.text.len() <= MAX_TEXT_BYTES && turn.text.len() > MAX_TEXT_BYTES - 3);
    }

    #[test]
    fn a_model_name_can_become_a_column() {
        let steps = Parser::new().feed(INIT.replace(r#""m""#, r#""m\u0000\ud83d""#).as_bytes());

        assert!(matches!(steps.as_slice(), [Step::Initialized { model, .. }] if model == "m\u{fffd}\u{fffd}"));
    }
}
