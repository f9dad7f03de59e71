//! The lines of a turn that are not the stream itself, with the fields the real CLI gives them.

use std::time::Duration;

use serde_json::{Value, json};
use shared::time::Timestamp;

use crate::model::{ApiError, Reply, StopReason, Usage, fresh_id};

use super::{
    Cli,
    outcome::{Failure, extend},
};

impl Cli {
    pub(super) fn announce(&mut self) {
        let cwd = std::env::current_dir().unwrap_or_default();
        self.voice.say(json!({
            "type": "system", "subtype": "init", "cwd": cwd.to_string_lossy(), "tools": self.options.tools, "mcp_servers": [],
            "model": self.options.model, "permissionMode": self.options.permission_mode, "slash_commands": [],
            "apiKeySource": "ANTHROPIC_API_KEY", "claude_code_version": super::VERSION, "output_style": "default",
            "agents": [], "skills": [], "plugins": [],
        }));
    }

    pub(super) fn say_retry(&mut self, attempt: u32, error: Option<&ApiError>, delay: Duration) {
        let kind = match error.map(|error| error.status) {
            None => "unknown",
            Some(401) => "authentication_failed",
            Some(429) => "rate_limit",
            Some(529) => "overloaded",
            Some(_) => "server_error",
        };
        self.voice.say(json!({
            "type": "system", "subtype": "api_retry", "attempt": attempt, "max_retries": self.options.max_retries,
            "retry_delay_ms": delay.as_millis(), "error_status": error.map(|error| error.status), "error": kind,
        }));
    }

    /// An `assistant` line: one complete block.
    pub(super) fn say_block(&mut self, reply: &Reply, block: &Value, usage: Usage, stop: Option<StopReason>, is_aborted: bool) {
        let mut line = json!({
            "type": "assistant",
            "message": {
                "id": reply.id, "type": "message", "role": "assistant", "model": self.options.model, "content": [block],
                "stop_reason": stop.map(StopReason::name), "stop_sequence": null, "usage": usage.at_start(),
            },
            "parent_tool_use_id": null, "timestamp": Timestamp::now(), "request_id": fresh_id("req"),
        });
        if is_aborted {
            line["aborted"] = json!(true);
        }
        // What is kept has waited for the end of the message, and knows how it ended.
        let mut kept = line["message"].clone();
        kept["stop_reason"] = if is_aborted { Value::Null } else { json!(reply.stop.name()) };
        kept["usage"]["output_tokens"] = json!(usage.output);
        let more = json!({"message": kept, "requestId": line["request_id"]});
        self.tell(line, more);
    }

    pub(super) fn say_tool_result(&mut self, id: &str, text: &str, is_error: bool, details: Option<Value>) {
        let mut line = json!({
            "type": "user",
            "message": {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": id, "content": text, "is_error": is_error},
            ]},
            "parent_tool_use_id": null, "timestamp": Timestamp::now(),
        });
        let mut more = json!({});
        if let Some(details) = details {
            more["toolUseResult"] = details.clone();
            line["tool_use_result"] = details;
        }
        self.tell(line, more);
    }

    pub(super) fn say_user(&mut self, text: &str) {
        let line = json!({
            "type": "user", "message": {"role": "user", "content": [{"type": "text", "text": text}]},
            "parent_tool_use_id": null, "timestamp": Timestamp::now(),
        });
        self.tell(line, json!({}));
    }

    /// The `assistant` line that stands in the place of an answer.
    pub(super) fn say_failure(&mut self, failure: &Failure) {
        let mut line = json!({
            "type": "assistant",
            "message": {
                "id": uuid::Uuid::new_v4(), "type": "message", "role": "assistant", "model": "<synthetic>",
                "content": [{"type": "text", "text": failure.text}], "stop_reason": failure.stop, "stop_sequence": "",
            },
            "parent_tool_use_id": null, "timestamp": Timestamp::now(), "error": failure.word, "is_api_error_message": true,
        });
        extend(&mut line, &failure.details);
        self.tell(line, json!({"isApiErrorMessage": true, "error": failure.word}));
    }

    /// Say `line`, which has a message, once the transcript has it: who hears of it finds it there. `more`
    /// is what the transcript has beside it, or in place of it.
    fn tell(&mut self, mut line: Value, more: Value) {
        self.voice.user_lines += u32::from(line["type"] == "user");
        let id = self.voice.fresh_uuid();
        self.transcript.message(line["type"].as_str().unwrap_or_default(), &id, &line["message"], more);
        line["uuid"] = json!(id);
        self.voice.say(line);
    }
}
