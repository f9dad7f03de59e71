//! How a turn ended, as its `result` line tells it.

use std::{fmt::Display, time::Duration};

use serde_json::{Value, json};

use crate::model::{ApiError, Block, Reply, StopReason, Usage};

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
    Failed(Failure),
    Aborted {
        in_tool: bool,
    },
    MaxTurns(u32),
}

/// What is wrong with the API or with what it said. It is told twice: in the model's place, and in the result.
pub(super) struct Failure {
    /// The CLI's word for it.
    pub(super) word: &'static str,
    pub(super) text: String,
    pub(super) stop: &'static str,
    reason: &'static str,
    /// The fields that both lines have.
    pub(super) details: Value,
}

impl Failure {
    /// The API refuses to answer.
    pub(super) fn of_api(ApiError { status, kind }: &ApiError) -> Self {
        let word = match status {
            401 | 403 => "authentication_failed",
            404 => "model_not_found",
            413 => "invalid_request",
            429 => "rate_limit",
            500.. => "server_error",
            _ => "unknown",
        };
        let details = json!({"api_error_status": status, "api_error_type": kind});
        // The real CLI takes it that only images can be so large.
        let reason = if *status == 413 { "image_error" } else { "api_error" };
        Self { reason, ..Self::new(word, format!("{status} mock {kind}"), details) }
    }

    /// The API cannot be reached.
    pub(super) fn of_connection() -> Self {
        Self::new("server_error", "Connection dropped (ECONNRESET).", json!({"api_error": "connection_failed"}))
    }

    /// The model was cut off too often.
    pub(super) fn of_length() -> Self {
        let word = "max_output_tokens";
        Self::new(word, "Claude's response exceeded the output token maximum.", json!({"api_error": word}))
    }

    /// The model must not answer.
    pub(super) fn of_refusal() -> Self {
        let failure = Self::new("invalid_request", "safeguards flagged this message", json!({}));
        Self { stop: StopReason::Refusal.name(), ..failure }
    }

    fn new(word: &'static str, what: impl Display, details: Value) -> Self {
        Self { word, text: format!("API Error: {what}"), stop: "stop_sequence", reason: "api_error", details }
    }
}

/// What a turn and the whole session took.
pub(super) struct Tally<'a> {
    /// What the CLI calls turns: the prompt, and each line in a person's name after it.
    pub(super) turns: u32,
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
        Self::completed(&text, reply.stop)
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
            "num_turns": tally.turns, "duration_ms": duration_ms, "duration_api_ms": duration_ms, "stop_reason": null,
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
            Self::Failed(failure) => {
                line["result"] = json!(failure.text);
                line["stop_reason"] = json!(failure.stop);
                line["api_error_status"] = Value::Null;
                extend(&mut line, &failure.details);
            }
            Self::Aborted { in_tool } => {
                let stop = in_tool.then(|| StopReason::ToolUse.name());
                line["stop_reason"] = json!(stop);
                let words = format!("[ede_diagnostic] result_type=user last_content_type=n/a stop_reason={}", stop.unwrap_or("null"));
                line["errors"] = json!([words]);
            }
            Self::MaxTurns(limit) => {
                line["stop_reason"] = json!(StopReason::ToolUse.name());
                line["errors"] = json!([format!("Reached maximum number of turns ({limit})")]);
            }
        }
        line
    }

    const fn subtype(&self) -> &'static str {
        match self {
            Self::Silent | Self::Completed { .. } | Self::Failed(_) => "success",
            Self::Aborted { .. } => "error_during_execution",
            Self::MaxTurns(_) => "error_max_turns",
        }
    }

    const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Silent => None,
            Self::Completed { .. } => Some("completed"),
            Self::Failed(failure) => Some(failure.reason),
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

/// Give `line` more fields.
pub(super) fn extend(line: &mut Value, more: &Value) {
    if let (Value::Object(line), Value::Object(more)) = (line, more) {
        line.extend(more.clone());
    }
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
