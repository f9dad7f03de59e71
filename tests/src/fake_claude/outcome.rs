//! How a turn ended, as its `result` line tells it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::model::{Block, Reply, StopReason, Usage};

use super::spent::Spent;

/// The end of a turn.
pub(super) enum Outcome {
    /// The model was not asked.
    Silent,
    Completed {
        text: String,
        stop: StopReason,
        structured: Option<Value>,
    },
    ApiError {
        text: String,
        status: Option<u16>,
    },
    Aborted {
        in_tool: bool,
    },
    MaxTurns(u32),
}

/// What a turn and the whole session took.
pub(super) struct Tally<'a> {
    pub(super) calls: u32,
    pub(super) turn: Usage,
    pub(super) session: &'a Spent,
    pub(super) index: u32,
    pub(super) duration: Duration,
}

impl Outcome {
    pub(super) fn completed(text: &str, stop: StopReason) -> Self {
        Self::Completed { text: text.to_owned(), stop, structured: None }
    }

    /// The turn ends with `reply`.
    pub(super) fn of(reply: &Reply) -> Self {
        let texts = reply.blocks.iter().filter(|block| matches!(block, Block::Text(_)));
        let text: String = texts.flat_map(Block::pieces).map(String::as_str).collect();
        match reply.stop {
            StopReason::EndTurn | StopReason::ToolUse => Self::completed(&text, reply.stop),
            StopReason::MaxTokens => {
                Self::ApiError { text: "API Error: Claude's response exceeded the output token maximum.".into(), status: None }
            }
            StopReason::Refusal => Self::ApiError { text: "API Error: safeguards flagged this message".into(), status: None },
        }
    }

    /// The turn ends with `value` handed in.
    pub(super) fn structured(value: &Value) -> Self {
        Self::Completed { text: value.to_string(), stop: StopReason::ToolUse, structured: Some(value.clone()) }
    }

    pub(super) const fn is_error(&self) -> bool {
        !matches!(self, Self::Completed { .. } | Self::Silent)
    }

    pub(super) const fn is_aborted(&self) -> bool {
        matches!(self, Self::Aborted { .. })
    }

    /// The `result` line.
    pub(super) fn line(&self, model: &str, tally: &Tally<'_>) -> Value {
        let duration_ms = u64::try_from(tally.duration.as_millis()).unwrap_or(u64::MAX);
        let mut line = json!({
            "type": "result", "subtype": self.subtype(), "is_error": self.is_error(),
            "num_turns": tally.calls, "duration_ms": duration_ms, "duration_api_ms": duration_ms, "stop_reason": null,
            "total_cost_usd": tally.session.dollars(), "usage": usage(tally.turn), "modelUsage": model_usage(tally.session),
            "model_usage_since_last_result": model_usage(&Spent::by(model, tally.turn)), "permission_denials": [],
            "queued_turn_count": 0, "result_index": tally.index,
        });
        if let Some(reason) = self.reason() {
            line["terminal_reason"] = json!(reason);
        }
        match self {
            Self::Silent => line["result"] = json!(""),
            Self::Completed { text, stop, structured } => {
                line["result"] = json!(text);
                line["stop_reason"] = json!(stop.name());
                line["api_error_status"] = Value::Null;
                if let Some(value) = structured {
                    line["structured_output"] = value.clone();
                }
            }
            Self::ApiError { text, status } => {
                line["result"] = json!(text);
                line["stop_reason"] = json!("stop_sequence");
                line["api_error_status"] = json!(status);
            }
            Self::Aborted { .. } => line["errors"] = json!(["[ede_diagnostic] result_type=user last_content_type=n/a stop_reason=null"]),
            Self::MaxTurns(limit) => line["errors"] = json!([format!("Reached maximum number of turns ({limit})")]),
        }
        line
    }

    const fn subtype(&self) -> &'static str {
        match self {
            Self::Silent | Self::Completed { .. } | Self::ApiError { .. } => "success",
            Self::Aborted { .. } => "error_during_execution",
            Self::MaxTurns(_) => "error_max_turns",
        }
    }

    const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Silent => None,
            Self::Completed { .. } => Some("completed"),
            Self::ApiError { .. } => Some("api_error"),
            Self::Aborted { in_tool: false } => Some("aborted_streaming"),
            Self::Aborted { in_tool: true } => Some("aborted_tools"),
            Self::MaxTurns(_) => Some("max_turns"),
        }
    }
}

/// The `result` line of a session that could not begin.
pub(super) fn never_begun(reason: &str) -> Value {
    json!({
        "type": "result", "subtype": "error_during_execution", "duration_ms": 0, "duration_api_ms": 0, "is_error": true, "num_turns": 0,
        "stop_reason": null, "total_cost_usd": 0, "usage": usage(Usage::default()), "modelUsage": {}, "permission_denials": [],
        "errors": [reason], "result_index": 0,
    })
}

fn usage(usage: Usage) -> Value {
    let mut json = usage.at_end();
    json["service_tier"] = json!("standard");
    json
}

fn model_usage(spent: &Spent) -> Value {
    let mut json = spent.json();
    for used in json.as_object_mut().into_iter().flatten().map(|(_, used)| used) {
        used["contextWindow"] = json!(1_000_000);
        used["maxOutputTokens"] = json!(128_000);
    }
    json
}
