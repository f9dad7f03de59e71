//! Lines of stream-json compared by shape: what kinds of lines come in which order, and which fields of
//! which types they have. Two runs never agree in more than that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Fields whose content is anybody's: a tool's arguments and what it did.
const OPAQUE: [&str; 4] = ["input", "tool_use_result", "structured_output", "response"];

/// Maps from a name that is data, a model's, to values of one form.
const KEYED_BY_DATA: [&str; 2] = ["modelUsage", "model_usage_since_last_result"];

/// The fields of each kind of line, with the types they were seen with.
#[derive(Debug, Default)]
pub struct Vocabulary(BTreeMap<String, BTreeMap<String, BTreeSet<&'static str>>>);

impl Vocabulary {
    /// What all recordings in `folder` say.
    pub fn of_folder(folder: &Path) -> io::Result<Self> {
        let mut vocabulary = Self::default();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                for line in lines(&fs::read_to_string(path)?) {
                    vocabulary.learn(&line);
                }
            }
        }
        Ok(vocabulary)
    }

    /// Take up the fields of `line`.
    pub fn learn(&mut self, line: &Value) {
        let known = self.0.entry(kind(line)).or_default();
        for (path, form) in fields(line) {
            known.entry(path).or_default().insert(form);
        }
    }

    /// The fields of `line` that no learned line of its kind has with this type. Null goes with any type.
    pub fn unknown(&self, line: &Value) -> Vec<String> {
        let nothing = BTreeMap::new();
        let known = self.0.get(&kind(line)).unwrap_or(&nothing);
        let is_known = |path: &str, form: &str| {
            known.get(path).is_some_and(|forms| form == "null" || forms.contains(form) || forms.iter().all(|form| *form == "null"))
        };
        let unknown = fields(line).into_iter().filter(|(path, form)| !is_known(path, form));
        unknown.map(|(path, form)| format!("{}: {path} ({form})", kind(line))).collect()
    }
}

/// Where the recordings are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

/// The lines of the recording `name`.
pub fn recording(name: &str) -> io::Result<Vec<Value>> {
    Ok(lines(&fs::read_to_string(folder().join(name).with_extension("jsonl"))?))
}

/// The lines of `text`.
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a recording holds JSON")).collect()
}

/// The kinds of `lines` in order. A run of deltas counts as one, and how often the CLI estimates thinking
/// tokens is left out: both depend on how the network cut the answer.
pub fn shape(lines: &[Value]) -> Vec<String> {
    let mut shape: Vec<String> = lines.iter().map(kind).filter(|kind| kind != "system/thinking_tokens").collect();
    shape.dedup_by(|next, former| next == former && next.starts_with("stream_event/content_block_delta"));
    shape
}

/// `shape` without the messages that were taken back: whether a broken stream's first deltas arrive is up
/// to the network.
pub fn without_withdrawn(shape: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for kind in shape {
        if kind == "stream_event/message_stop/abandoned" {
            let start = kept.iter().rposition(|kind| kind == "stream_event/message_start").unwrap_or(kept.len());
            kept.truncate(start);
        } else {
            kept.push(kind.clone());
        }
    }
    kept
}

/// What a line is, such as `stream_event/content_block_delta/text_delta`.
pub fn kind(line: &Value) -> String {
    let event = &line["event"];
    let mark = |field: &str, name: &'static str| line.get(field).is_some().then_some(name);
    let parts = [
        line["type"].as_str(),
        line["subtype"].as_str(),
        line["response"]["subtype"].as_str(),
        event["type"].as_str(),
        event["content_block"]["type"].as_str(),
        event["delta"]["type"].as_str(),
        line["message"]["content"][0]["type"].as_str(),
        mark("abandoned_blocks", "abandoned"),
        mark("aborted", "aborted"),
        mark("is_api_error_message", "api_error"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("/")
}

/// The fields of `line` that hold a value, as paths such as `message.content[].text`, with their types.
pub fn fields(line: &Value) -> Vec<(String, &'static str)> {
    let mut fields = Vec::new();
    collect(line, "", &mut fields);
    fields
}

fn collect(value: &Value, path: &str, fields: &mut Vec<(String, &'static str)>) {
    let name = path.rsplit('.').next().unwrap_or(path);
    match value {
        Value::Object(map) if !OPAQUE.contains(&name) => {
            for (key, value) in map {
                let key = if KEYED_BY_DATA.contains(&name) { "*" } else { key };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                collect(value, &path, fields);
            }
        }
        Value::Array(items) if !items.is_empty() => items.iter().for_each(|item| collect(item, &format!("{path}[]"), fields)),
        // What an empty list would hold is not known.
        Value::Array(_) => {}
        _ if OPAQUE.contains(&name) => {}
        value => fields.push((path.to_owned(), form(value))),
    }
}

const fn form(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn delta(text: &str) -> Value {
        json!({"type": "stream_event", "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}})
    }

    #[test]
    fn a_run_of_deltas_counts_as_one() {
        let stop = json!({"type": "stream_event", "event": {"type": "message_stop"}});

        let shape = shape(&[delta("a"), delta("b"), stop.clone(), delta("c")]);

        let text = "stream_event/content_block_delta/text_delta";
        assert_eq!(shape, [text, "stream_event/message_stop", text]);
    }

    #[test]
    fn a_field_nobody_recorded_is_unknown() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.learn(&json!({"type": "result", "n": 1, "input": {"a": 1}, "modelUsage": {"m": {"tokens": 1}}, "maybe": null}));

        let known = json!({"type": "result", "n": 2, "input": {"b": ""}, "modelUsage": {"o": {"tokens": 2}}, "maybe": "x"});
        assert_eq!(vocabulary.unknown(&known), Vec::<String>::new());
        let unknown = json!({"type": "result", "n": "2", "more": null});
        assert_eq!(vocabulary.unknown(&unknown), ["result: more (null)", "result: n (string)"]);
    }

    #[test]
    fn a_withdrawn_message_can_be_left_out() {
        let shape = ["a", "stream_event/message_start", "x", "stream_event/message_stop/abandoned", "b"].map(str::to_owned);

        assert_eq!(without_withdrawn(&shape), ["a", "b"]);
    }
}
