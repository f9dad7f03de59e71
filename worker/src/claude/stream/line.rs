//! The lines of the CLI's `stream-json` output, as far as we read them. Field order changes, fields and
//! types are added with each release: what is not named here is passed over, and a field that may be
//! absent is also allowed to be of another type.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};

/// What every line has.
#[derive(Deserialize)]
pub(super) struct Head {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, deserialize_with = "lenient")]
    pub subtype: Option<String>,
}

/// `system/init`: a turn begins.
#[derive(Deserialize)]
pub(super) struct Init {
    pub model: String,
    #[serde(default, deserialize_with = "lenient")]
    pub tools: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub claude_code_version: String,
}

/// `system/api_retry`: the CLI waits before it asks the API again.
#[derive(Deserialize)]
pub(super) struct ApiRetry {
    #[serde(default, deserialize_with = "lenient")]
    pub attempt: u32,
    #[serde(default, deserialize_with = "lenient")]
    pub retry_delay_ms: u64,
    /// Absent where there was no HTTP answer.
    #[serde(default, deserialize_with = "lenient")]
    pub error_status: Option<u16>,
}

/// `system/session_state_changed`.
#[derive(Deserialize)]
pub(super) struct SessionState {
    pub state: String,
}

/// `system/task_notification`: a sub-agent or background command ended.
#[derive(Deserialize)]
pub(super) struct TaskEnded {
    #[serde(default, deserialize_with = "lenient")]
    pub tool_use_id: Option<String>,
}

/// `stream_event`: an event of the Messages API.
#[derive(Deserialize)]
pub(super) struct StreamEvent<'a> {
    #[serde(borrow)]
    pub event: ApiEvent<'a>,
    /// Absent before 2.1.3xx: then the last `message_start` tells.
    #[serde(default, deserialize_with = "lenient")]
    pub api_message_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub parent_tool_use_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub abandoned_blocks: Option<AbandonedBlocks>,
}

#[derive(Deserialize)]
pub(super) struct ApiEvent<'a> {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub index: usize,
    #[serde(default)]
    pub message: Option<MessageStart>,
    #[serde(default, borrow)]
    pub delta: Option<Delta<'a>>,
    /// Of a `message_delta`.
    #[serde(default, deserialize_with = "lenient")]
    pub usage: Tokens,
}

#[derive(Deserialize)]
pub(super) struct MessageStart {
    pub id: String,
    #[serde(default, deserialize_with = "lenient")]
    pub model: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub usage: Tokens,
}

/// What one message used so far, in the Messages API's words.
#[derive(Default, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
pub(super) struct Tokens {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cache_read_input_tokens: Option<u64>,
    pub cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Delta<'a> {
    /// Absent in a `message_delta`.
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default, borrow)]
    pub text: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    pub thinking: Option<Cow<'a, str>>,
}

/// Blocks from this one on will never come: the stream broke.
#[derive(Deserialize)]
pub(super) struct AbandonedBlocks {
    pub api_message_id: String,
    pub from_block_index: usize,
}

/// `assistant`: finished blocks of a message, one a line.
#[derive(Deserialize)]
pub(super) struct Assistant<'a> {
    #[serde(borrow)]
    pub message: AssistantMessage<'a>,
    #[serde(default, deserialize_with = "lenient")]
    pub parent_tool_use_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub error: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub is_api_error_message: bool,
}

#[derive(Deserialize)]
pub(super) struct AssistantMessage<'a> {
    pub id: String,
    #[serde(default, deserialize_with = "lenient")]
    pub model: String,
    /// Not final where the message streams.
    #[serde(default, deserialize_with = "lenient")]
    pub usage: Tokens,
    #[serde(borrow)]
    pub content: Vec<&'a RawValue>,
}

/// `user`: tool results, or what the CLI says in the user's name.
#[derive(Deserialize)]
pub(super) struct User<'a> {
    #[serde(borrow)]
    pub message: UserMessage<'a>,
    #[serde(default, deserialize_with = "lenient")]
    pub parent_tool_use_id: Option<String>,
    #[serde(rename = "isReplay", default, deserialize_with = "lenient")]
    pub is_replay: bool,
}

#[derive(Deserialize)]
pub(super) struct UserMessage<'a> {
    #[serde(borrow)]
    pub content: &'a RawValue,
}

impl<'a> UserMessage<'a> {
    /// Its blocks; none where it is plain text.
    pub fn blocks(&self) -> Vec<UserBlock<'a>> {
        serde_json::from_str(self.content.get()).unwrap_or_default()
    }
}

#[derive(Deserialize)]
pub(super) struct UserBlock<'a> {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, deserialize_with = "lenient")]
    pub tool_use_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub is_error: bool,
    #[serde(default, borrow)]
    pub content: Option<&'a RawValue>,
}

/// What a tool answered.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Output {
    Text(String),
    Blocks(Vec<OutputBlock>),
}

#[derive(Deserialize)]
pub(super) struct OutputBlock {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub text: Option<String>,
}

/// `result`: a turn ended.
#[derive(Deserialize)]
pub(super) struct TurnEnd {
    /// Absent counts as an error: only a stated success is one.
    #[serde(default, deserialize_with = "lenient")]
    pub is_error: Option<bool>,
    #[serde(default, deserialize_with = "lenient")]
    pub subtype: String,
    #[serde(default, deserialize_with = "lenient")]
    pub terminal_reason: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub result: String,
    #[serde(default, deserialize_with = "lenient")]
    pub errors: Vec<String>,
    #[serde(default)]
    pub structured_output: Option<Value>,
    #[serde(default, deserialize_with = "lenient")]
    pub stop_reason: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub num_turns: u32,
    #[serde(default, deserialize_with = "lenient")]
    pub permission_denials: Vec<Denial>,
    #[serde(default, deserialize_with = "lenient")]
    pub api_error: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub api_error_status: Option<u16>,
    #[serde(rename = "modelUsage", default, deserialize_with = "lenient")]
    pub model_usage: ModelUsage,
    #[serde(default, deserialize_with = "lenient")]
    pub model_usage_since_last_result: Option<ModelUsage>,
}

impl TurnEnd {
    /// Whether it tells what was used, be it nothing.
    pub fn accounts(&self) -> bool {
        self.model_usage_since_last_result.is_some() || !self.model_usage.is_empty()
    }
}

#[derive(Deserialize)]
pub(super) struct Denial {
    pub tool_name: String,
    pub tool_use_id: String,
}

/// What each model was used for, sub-agents and side calls included.
pub(super) type ModelUsage = BTreeMap<String, Counters>;

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Counters {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub cache_creation_input_tokens: u64,
    #[serde(rename = "costUSD")]
    pub cost_usd: f64,
}

/// The line as text that `serde_json` accepts. The CLI writes half of a surrogate pair as it got it (a
/// tool's output cut in the middle of an emoji does that), which JSON in UTF-8 cannot carry: such a half
/// becomes U+FFFD.
pub(super) fn text_of(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    let Some(first) = lone_surrogate(text.as_bytes(), 0) else { return text };

    let mut bytes = text.into_owned().into_bytes();
    let mut found = Some(first);
    while let Some(at) = found {
        bytes[at..at + ESCAPE_LEN].copy_from_slice(b"\\ufffd");
        found = lone_surrogate(&bytes, at + ESCAPE_LEN);
    }
    Cow::Owned(String::from_utf8(bytes).expect("one escape was put in place of another"))
}

const ESCAPE_LEN: usize = b"\\ud83d".len();

/// Where the next escape of a surrogate without its other half starts.
fn lone_surrogate(json: &[u8], mut from: usize) -> Option<usize> {
    while let Some(offset) = memchr::memchr(b'\\', &json[from..]) {
        let at = from + offset;
        from = match code_unit(json, at) {
            Some(0xD800..=0xDBFF) if matches!(code_unit(json, at + ESCAPE_LEN), Some(0xDC00..=0xDFFF)) => at + 2 * ESCAPE_LEN,
            Some(0xD800..=0xDFFF) => return Some(at),
            Some(_) => at + ESCAPE_LEN,
            // Any other escape, such as `\\`, takes two bytes.
            None => json.len().min(at + 2),
        };
    }
    None
}

/// The UTF-16 code unit escaped as `\uXXXX` at `at`.
fn code_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + ESCAPE_LEN)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A field of a type we did not expect counts as absent.
fn lenient<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        for (json, text) in [
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\uDE00 x""#, "\u{fffd} x"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (r#""a\ud83d\ude00b""#, "a\u{1f600}b"),
            (r#""\ud83d\n\u0041""#, "\u{fffd}\nA"),
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""\u0000""#, "\0"),
        ] {
            assert_eq!(serde_json::from_str::<String>(&text_of(json.as_bytes())).ok().as_deref(), Some(text), "{json}");
        }
    }

    #[test]
    fn a_line_without_surrogates_is_not_copied() {
        assert!(matches!(text_of(br#"{"text":"\u00e9 \\ud83d \n"}"#), Cow::Borrowed(_)));
    }

    #[test]
    fn a_line_cut_anywhere_is_read_without_panic() {
        let line = br#"{"a":"\ud83d\ude00 \\ \ud83d"}"#;
        for end in 0..line.len() {
            assert!(text_of(&line[..end]).len() >= end);
        }
    }

    #[test]
    fn a_field_of_another_type_counts_as_absent() {
        let end: TurnEnd = serde_json::from_str(r#"{"is_error":false,"num_turns":"many","errors":[5],"result":null}"#).expect("a result");

        assert_eq!((end.is_error, end.num_turns, end.errors.len(), end.result.as_str()), (Some(false), 0, 0, ""));
    }
}
