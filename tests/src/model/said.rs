//! What a person said, told apart from what the CLI put into the conversation for the model to read. Both
//! doubles recall from it, one from a request and one from its transcript.

use serde_json::Value;

use super::{Script, Step};

/// The texts of a user message's content that a person wrote, in order.
pub fn said_in(content: &Value) -> Vec<String> {
    let texts = match content {
        Value::String(text) => vec![text.as_str()],
        Value::Array(blocks) => blocks.iter().filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str()).collect(),
        _ => Vec::new(),
    };
    // The CLI ends a text with a newline when it joins it with another.
    texts.into_iter().filter(|text| !is_from_the_cli(text)).map(|text| text.trim_end().to_owned()).collect()
}

/// Whether the CLI itself put this text into the conversation.
pub fn is_from_the_cli(text: &str) -> bool {
    const OPENINGS: [&str; 8] = [
        "<system-reminder>",
        "<task-notification>",
        "<local-command",
        "<command-",
        "[Request interrupted by user",
        "[Your previous response had no visible output",
        "Output token limit hit.",
        "Your response above was stopped by a safety classifier",
    ];
    OPENINGS.iter().any(|opening| text.trim_start().starts_with(opening))
}

/// What `recall:` answers to somebody who `said` all this.
pub(super) fn recalled(said: &[String]) -> String {
    said.iter().map(|prompt| gist(prompt)).collect::<Vec<_>>().join(" | ")
}

/// The text of a prompt's first `say:` or `recall:`; another prompt as it is.
fn gist(prompt: &str) -> String {
    let steps = Script::parse(prompt).map(|script| script.steps).unwrap_or_default();
    let text = steps.into_iter().find_map(|step| match step {
        Step::Say(text) | Step::Recall(text) => Some(text),
        Step::Think(_)
        | Step::Grow(_)
        | Step::Tools(_)
        | Step::Loop(_)
        | Step::Slow(..)
        | Step::Clock(..)
        | Step::Flood(_)
        | Step::MaxTokens(_)
        | Step::Structured(_)
        | Step::Refuse
        | Step::Empty
        | Step::Fail(..)
        | Step::StreamError(..)
        | Step::Drop(_)
        | Step::Gated(_)
        | Step::Hang
        | Step::HangMid
        | Step::Cli(_) => None,
    });
    text.unwrap_or_else(|| prompt.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_said_is_recalled_without_the_words_that_direct_the_model() {
        let said = ["recall:s1-t1", "hello", "@chunk=2 say:a: b", "seq:recall:s1-t4 || cli:unknown", "slow:2:0"].map(str::to_owned);

        assert_eq!(recalled(&said), "s1-t1 | hello | a: b | s1-t4 | slow:2:0");
    }

    #[test]
    fn what_the_cli_put_in_was_said_by_nobody() {
        let content = json!([
            {"type": "text", "text": "<system-reminder>\nToday is Monday.</system-reminder>\n"},
            {"type": "text", "text": "recall:a\n"},
            {"type": "tool_result", "content": [{"type": "text", "text": "b"}]},
            {"type": "text", "text": "[Request interrupted by user]"},
        ]);

        assert_eq!(said_in(&content), ["recall:a"]);
        assert_eq!(said_in(&json!("recall:c")), ["recall:c"]);
    }
}
