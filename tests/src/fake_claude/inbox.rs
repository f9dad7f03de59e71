//! What is written to the CLI, read by a thread of its own so that a running turn can be interrupted.

use std::{
    io::{BufRead as _, BufReader, Read as _, stdin},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use serde_json::Value;

const MAX_LINE_BYTES: u64 = 64 * 1024 * 1024;

/// One line of the host, understood.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    Message(Message),
    Control {
        id: String,
        request: Value,
    },
    /// The host closed its end.
    End,
    /// What the real CLI gives up at.
    Broken,
}

/// A user message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// All of it, as it came.
    pub(super) content: Value,
    /// The last text in it.
    pub(super) text: String,
    pub(super) uuid: Option<String>,
    /// Whether the model is to answer.
    pub(super) asks: bool,
}

/// The lines in the order they came. After the last one it says [`Input::End`] again and again.
pub(super) struct Inbox(Receiver<Input>);

impl Inbox {
    pub(super) fn of_stdin() -> Self {
        let (sender, receiver) = sync_channel(64);
        // It ends with the input or with the process, whichever is first.
        thread::spawn(move || read_lines(&sender));
        Self(receiver)
    }

    pub(super) fn next(&self) -> Input {
        self.0.recv().unwrap_or(Input::End)
    }

    /// The next input if it comes within `time`, or whenever it comes. The end of the input is not news.
    pub(super) fn next_within(&self, time: Option<Duration>) -> Option<Input> {
        match time {
            Some(time) if time.is_zero() => self.0.try_recv().ok(),
            Some(time) => match self.0.recv_timeout(time) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(time);
                    None
                }
            },
            None => Some(self.0.recv().unwrap_or_else(|_| super::sleep_forever())),
        }
    }
}

fn read_lines(inputs: &SyncSender<Input>) {
    let mut stdin = BufReader::with_capacity(64 * 1024, stdin());
    loop {
        let mut line = Vec::new();
        match stdin.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Some(input) = understand(&line) else { continue };
        if inputs.send(input).is_err() {
            return;
        }
    }
}

/// What `line` says. `None` for what the CLI passes over.
fn understand(line: &[u8]) -> Option<Input> {
    if line.trim_ascii().is_empty() {
        return None;
    }
    let Ok(mut line) = serde_json::from_slice::<Value>(line) else { return Some(Input::Broken) };
    match line["type"].as_str()? {
        "user" if line["message"]["role"] != "user" => Some(Input::Broken),
        "user" => Some(Input::Message(Message {
            text: text_of(&line["message"]["content"]),
            content: line["message"]["content"].take(),
            uuid: line["uuid"].as_str().map(str::to_owned),
            asks: line["shouldQuery"] != false,
        })),
        "control_request" => Some(Input::Control { id: line["request_id"].as_str()?.to_owned(), request: line["request"].take() }),
        _ => None,
    }
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).next_back().unwrap_or_default().to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_text_or_blocks() {
        let message = |content: Value, text: &str, uuid: Option<&str>, asks| {
            Some(Input::Message(Message { content, text: text.into(), uuid: uuid.map(str::to_owned), asks }))
        };

        let line = br#"{"type":"user","message":{"role":"user","content":"say:a"},"uuid":"u"}"#;
        assert_eq!(understand(line), message(json!("say:a"), "say:a", Some("u"), true));
        let line = br#"{"type":"user","message":{"role":"user","content":[{"type":"text","text":"x"},{"type":"text","text":"say:b"}]},"shouldQuery":false}"#;
        let blocks = json!([{"type": "text", "text": "x"}, {"type": "text", "text": "say:b"}]);
        assert_eq!(understand(line), message(blocks, "say:b", None, false));
    }

    #[test]
    fn what_is_no_message_breaks_the_cli_or_is_passed_over() {
        assert_eq!(understand(b"nonsense\n"), Some(Input::Broken));
        assert_eq!(understand(br#"{"type":"user","message":{"content":"x"}}"#), Some(Input::Broken));
        assert_eq!(understand(b" \n"), None);
        assert_eq!(understand(br#"{"type":"keep_alive"}"#), None);
        let request = Input::Control { id: "1".into(), request: json!({"subtype": "interrupt"}) };
        assert_eq!(understand(br#"{"type":"control_request","request_id":"1","request":{"subtype":"interrupt"}}"#), Some(request));
    }
}
