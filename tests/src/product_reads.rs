//! What the product reads of a CLI's lines. A line without it is a CLI that the product does not
//! understand, however little else has changed.

use serde_json::Value;

use crate::recording::{fields, kind};

/// The fields the product reads, by the kind of line. A null counts as there.
const READ: [(&str, &[&str]); 20] = [
    ("system/init", &["session_id", "tools[]", "model", "claude_code_version"]),
    ("system/api_retry", &["attempt", "max_retries", "retry_delay_ms", "error_status", "error"]),
    ("system/session_state_changed", &["state"]),
    ("command_lifecycle", &["command_uuid", "state"]),
    ("stream_event", &["api_message_id", "parent_tool_use_id", "session_id", "event.type"]),
    ("stream_event/message_start", &["event.message.id", "event.message.model", "event.message.usage.input_tokens"]),
    ("stream_event/content_block_start", &["event.index", "event.content_block.type"]),
    ("stream_event/content_block_start/tool_use", &["event.content_block.id", "event.content_block.name"]),
    ("stream_event/content_block_delta/text_delta", &["event.index", "event.delta.text"]),
    ("stream_event/content_block_delta/thinking_delta", &["event.index", "event.delta.thinking"]),
    ("stream_event/content_block_delta/input_json_delta", &["event.index", "event.delta.partial_json"]),
    ("stream_event/message_delta", &["event.delta.stop_reason", "event.usage.output_tokens"]),
    ("stream_event/message_stop/abandoned", &["abandoned_blocks.api_message_id", "abandoned_blocks.from_block_index"]),
    ("assistant", &["message.id", "message.model", "message.content[].type", "parent_tool_use_id"]),
    ("assistant/text", &["message.content[].text"]),
    ("assistant/tool_use", &["message.content[].id", "message.content[].name"]),
    ("user", &["parent_tool_use_id"]),
    ("user/tool_result", &["message.content[].tool_use_id", "message.content[].content"]),
    ("result", &["is_error", "terminal_reason", "num_turns", "duration_ms", "stop_reason", "total_cost_usd", "usage.output_tokens"]),
    ("result/success", &["result", "api_error_status"]),
];

/// The fields the product reads that `line` lacks.
pub fn missing(line: &Value) -> Vec<String> {
    if is_silent(line) {
        return Vec::new();
    }
    let kind = kind(line);
    let has: Vec<_> = fields(line).into_iter().map(|(path, _)| path).collect();
    let reads = READ.iter().filter(|(start, _)| kind.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let missing = reads.flat_map(|(_, paths)| paths.iter()).filter(|path| !has.iter().any(|has| has == *path));
    missing.map(|path| format!("{kind}: {path}")).collect()
}

/// Whether `line` ends a turn in which the model was not asked: of such a turn the product reads the
/// beginning.
fn is_silent(line: &Value) -> bool {
    line["type"] == "result" && line["num_turns"] == 0
}
