//! Lines on stdout: each is one `write`, so a reader sees whole lines as soon as they are said.

use std::{
    fs::File,
    io::{Write as _, stderr, stdout},
    os::fd::AsFd as _,
};

use serde_json::{Value, json};

use crate::model::{ModelEvent, Reply, Usage};

use super::ledger;

const HEX: &[u8; 16] = b"0123456789abcdef";

pub(super) struct Voice {
    out: File,
    session: String,
    /// The fields that follow the event in each line of a stream.
    after_event: String,
    line: Vec<u8>,
    uuids: Uuids,
    /// How many lines there were in a person's name.
    pub(super) user_lines: u32,
    /// Whether each line carries a field no CLI has.
    pub(super) is_from_the_future: bool,
}

impl Voice {
    pub(super) fn new(session: &str) -> Self {
        let out = stdout().as_fd().try_clone_to_owned().expect("a process has descriptors left at its start");
        Self {
            out: File::from(out),
            session: session.to_owned(),
            after_event: format!(r#","session_id":"{session}","parent_tool_use_id":null,"uuid":""#),
            line: Vec::with_capacity(1024),
            uuids: Uuids::new(),
            user_lines: 0,
            is_from_the_future: false,
        }
    }

    /// An id for a line that is told elsewhere, too.
    pub(super) fn fresh_uuid(&mut self) -> String {
        self.uuids.next().to_owned()
    }

    /// Say `line`, with the session and an id, its own unless it has one.
    pub(super) fn say(&mut self, mut line: Value) {
        line["session_id"] = json!(self.session);
        if line.get("uuid").is_none() {
            line["uuid"] = json!(self.uuids.next());
        }
        if self.is_from_the_future {
            line["from_the_future"] = json!({"nested": [1, null, "x"]});
        }
        self.respond_with(&line);
    }

    /// Say `response` to a control request.
    pub(super) fn respond(&mut self, response: &Value) {
        self.respond_with(&json!({"type": "control_response", "response": response}));
    }

    /// Say one event of `reply`; `extra` are more fields of the line, each with its comma.
    pub(super) fn stream(&mut self, reply: &Reply, event: ModelEvent<'_>, model: &str, usage: Usage, extra: &str) {
        let line = &mut self.line;
        line.clear();
        line.extend_from_slice(b"{\"type\":\"stream_event\",\"event\":");
        event.write_json(reply, model, usage, line);
        line.extend_from_slice(self.after_event.as_bytes());
        line.extend_from_slice(self.uuids.next().as_bytes());
        line.extend_from_slice(b"\",\"api_message_id\":\"");
        line.extend_from_slice(reply.id.as_bytes());
        line.extend_from_slice(b"\"");
        line.extend_from_slice(extra.as_bytes());
        line.extend_from_slice(b"}\n");
        self.write();
    }

    /// Say these bytes, whatever they are.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.line.clear();
        self.line.extend_from_slice(bytes);
        self.write();
    }

    fn respond_with(&mut self, line: &Value) {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line).expect("memory takes every write");
        self.line.push(b'\n');
        self.write();
    }

    fn write(&mut self) {
        // Nobody reads any more: the real CLI ends in peace as well.
        if self.out.write_all(&self.line).is_err() {
            ledger::end(0);
        }
    }
}

/// Print to stdout outside the protocol.
pub(super) fn print(text: &str) {
    let _ = stdout().write_all(text.as_bytes());
}

/// Print a line to stderr.
pub(super) fn complain(text: &str) {
    let _ = stderr().write_all(format!("{text}\n").as_bytes());
}

/// Ids that count up, since thousands are needed in a moment.
struct Uuids {
    text: String,
    next: u64,
}

impl Uuids {
    fn new() -> Self {
        Self { text: uuid::Uuid::new_v4().to_string(), next: 0 }
    }

    fn next(&mut self) -> &str {
        // A group of 12 hexadecimal digits is the last; in most steps only its last two change.
        let digits = if self.next.is_multiple_of(256) { 12 } else { 2 };
        self.text.truncate(self.text.len() - digits);
        for place in (0..digits).rev() {
            self.text.push(char::from(HEX[usize::try_from((self.next >> (4 * place)) & 15).expect("four bits")]));
        }
        self.next += 1;
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_and_differ() {
        let mut uuids = Uuids::new();

        let (first, second) = (uuids.next().to_owned(), uuids.next().to_owned());

        assert_ne!(first, second);
        assert!(uuid::Uuid::parse_str(&second).is_ok(), "{second}");
    }
}
