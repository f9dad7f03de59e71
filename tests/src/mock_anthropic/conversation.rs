//! What a request to the Messages API says: who asks, what was last asked, and how far its answer is.

use hyper::HeaderMap;
use serde_json::Value;

use crate::model::{ToolResult, is_from_the_cli};

/// One request's content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) model: String,
    /// The CLI's session; empty when the client has none.
    pub(super) session: String,
    pub(super) is_streaming: bool,
    pub(super) is_cached: bool,
    pub(super) prompt_tokens: u64,
    /// The last text that a person, not the CLI, wrote.
    pub(super) prompt: String,
    /// All such texts, oldest first.
    pub(super) said: Vec<String>,
    /// How many answers of the model follow the prompt.
    pub(super) answers: usize,
    /// The tool results that follow the last answer.
    pub(super) results: Vec<ToolResult>,
}

impl Conversation {
    /// Read a request's body. `None` when it lacks what every request must have.
    pub(super) fn read(headers: &HeaderMap, body: &Value) -> Option<Self> {
        let session = headers.get("x-claude-code-session-id").and_then(|id| id.to_str().ok());
        let mut conversation = Self {
            model: body["model"].as_str()?.to_owned(),
            session: session.unwrap_or_default().to_owned(),
            is_streaming: body["stream"].as_bool().unwrap_or(false),
            is_cached: asks_for_caching(body),
            prompt_tokens: prompt_tokens(body),
            prompt: String::new(),
            said: Vec::new(),
            answers: 0,
            results: Vec::new(),
        };
        for message in body["messages"].as_array()? {
            conversation.follow(message);
        }
        Some(conversation)
    }

    fn follow(&mut self, message: &Value) {
        match message["role"].as_str() {
            Some("assistant") => {
                self.answers += 1;
                self.results.clear();
            }
            Some("user") => {
                for (kind, text, is_error) in blocks(&message["content"]) {
                    if kind == "tool_result" {
                        self.results.push(ToolResult { text, is_error });
                    } else if kind == "text" && !is_from_the_cli(&text) {
                        self.said.push(text.clone());
                        self.prompt = text;
                        self.answers = 0;
                        self.results.clear();
                    }
                }
            }
            _ => {}
        }
    }
}

/// The tokens of a request's prompt, at four bytes of JSON each.
pub(super) fn prompt_tokens(body: &Value) -> u64 {
    let bytes = ["system", "tools", "messages"].iter().map(|part| &body[part]).filter(|part| !part.is_null());
    let bytes: usize = bytes.map(|part| part.to_string().len()).sum();
    u64::try_from(bytes / 4).unwrap_or(u64::MAX)
}

fn asks_for_caching(body: &Value) -> bool {
    let marks = |blocks: &Value| blocks.as_array().is_some_and(|blocks| blocks.iter().any(|block| block.get("cache_control").is_some()));
    marks(&body["system"])
        || marks(&body["tools"])
        || body["messages"].as_array().is_some_and(|messages| messages.iter().any(|message| marks(&message["content"])))
}

/// Type, text and failure of each block of a message's content, which may also be a bare text.
fn blocks(content: &Value) -> Vec<(&str, String, bool)> {
    match content {
        Value::String(text) => vec![("text", text.trim_end().to_owned(), false)],
        Value::Array(blocks) => blocks.iter().filter_map(block).collect(),
        _ => Vec::new(),
    }
}

fn block(block: &Value) -> Option<(&str, String, bool)> {
    let kind = block["type"].as_str()?;
    // The CLI ends a text with a newline when it joins it with another.
    let text = match kind {
        "text" => block["text"].as_str()?.trim_end().to_owned(),
        "tool_result" => blocks(&block["content"]).into_iter().map(|(_, text, _)| text).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    };
    Some((kind, text, block["is_error"].as_bool().unwrap_or(false)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: &Value) -> Conversation {
        Conversation::read(&HeaderMap::new(), &json!({"model": "m", "messages": messages})).expect("a request")
    }

    #[test]
    fn the_prompt_is_what_a_person_said_last() {
        let conversation = read(&json!([
            {"role": "user", "content": "say:one"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": [
                {"type": "text", "text": "say:two\n"},
                {"type": "text", "text": "<system-reminder>\nsay:three</system-reminder>"},
            ]},
            {"role": "system", "content": "say:four"},
        ]));

        assert_eq!(conversation.prompt, "say:two");
        assert_eq!(conversation.said, ["say:one", "say:two"]);
        assert_eq!(conversation.answers, 0);
    }

    #[test]
    fn tool_results_belong_to_the_last_answer() {
        let result = |text: &str| {
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}], "is_error": text == "b"},
            ]})
        };
        let answer = json!({"role": "assistant", "content": []});
        let conversation = read(&json!([{"role": "user", "content": "loop:bash:x"}, answer, result("a"), answer, result("b")]));

        assert_eq!(conversation.answers, 2);
        assert_eq!(conversation.results, [ToolResult { text: "b".into(), is_error: true }]);
    }

    #[test]
    fn a_body_without_messages_is_no_request() {
        assert_eq!(Conversation::read(&HeaderMap::new(), &json!({"model": "m"})), None);
        assert_eq!(Conversation::read(&HeaderMap::new(), &json!([])), None);
    }
}
