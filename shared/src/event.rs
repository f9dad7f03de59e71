//! One job's numbered log, as clients see it. An event's number is also its id in Redis and its
//! `Last-Event-ID`, so resuming needs no look-up; the JSON is made once, by whoever emits it, and is
//! passed on untouched.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    id::{SessionId, WorkerId},
    job::{JobState, JobView},
    time::Timestamp,
};

/// The largest JSON of one event, in bytes; a larger one is cut and says `truncated`.
pub const MAX_EVENT_BYTES: usize = 256 * 1024;

/// `<attempt>-<n>`: the `n`th event (from 0, without holes) of a job's `attempt`th run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Which run of the job, from 1.
    pub attempt: u32,
    /// The place within that run, from 0.
    pub n: u32,
}

impl EventId {
    /// The first event of an attempt.
    pub const fn first(attempt: u32) -> Self {
        Self { attempt, n: 0 }
    }

    /// Whether an event with this id may directly follow one with the id `last` (`None`: nothing yet):
    /// the next number of the same attempt, or the start of a newer one.
    pub fn follows(self, last: Option<Self>) -> bool {
        match last {
            None => self.n == 0,
            Some(last) if self.attempt == last.attempt => last.n.checked_add(1) == Some(self.n),
            Some(last) => self.attempt > last.attempt && self.n == 0,
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.attempt, self.n)
    }
}

/// A text that is not `<attempt>-<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an event id of the form `<attempt>-<n>`")]
pub struct InvalidEventId;

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
            if plain { digits.parse().map_err(|_| InvalidEventId) } else { Err(InvalidEventId) }
        };
        let (attempt, n) = text.split_once('-').ok_or(InvalidEventId)?;
        Ok(Self { attempt: number(attempt)?, n: number(n)? })
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Why an attempt began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReason {
    /// Nobody ran this job before.
    First,
    /// The worker that ran it died, froze or was cut off.
    WorkerLost,
    /// The former attempt failed in a way that may pass.
    Retry,
    /// The worker that ran it was told to stop and gave it back.
    Drained,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum EventBody {
    /// An attempt begins; what an earlier one streamed is void.
    #[serde(rename = "job.started")]
    JobStarted {
        /// Which run of the job, from 1.
        attempt: u32,
        /// Who runs it.
        worker_id: WorkerId,
        /// Why it began.
        reason: StartReason,
    },
    /// The conversation is loaded. Only for jobs of a session.
    #[serde(rename = "session.ready")]
    SessionReady {
        /// The session.
        session_id: SessionId,
    },
    /// A piece of the answer's text.
    #[serde(rename = "text.delta")]
    TextDelta {
        /// The message it belongs to.
        message_id: String,
        /// The piece, at most 32 KiB.
        text: String,
        /// The tool call whose sub-agent says it; absent for the main conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
    },
    /// A piece of the model's thinking.
    #[serde(rename = "thinking.delta")]
    ThinkingDelta {
        /// The message it belongs to.
        message_id: String,
        /// The piece, at most 32 KiB.
        text: String,
    },
    /// The CLI took back what it streamed of this message: drop its deltas.
    #[serde(rename = "message.withdrawn")]
    MessageWithdrawn {
        /// The message.
        message_id: String,
    },
    /// A tool was called.
    #[serde(rename = "tool.started")]
    ToolStarted {
        /// The call.
        tool_use_id: String,
        /// The tool, by the name the CLI announces it with.
        name: String,
        /// Its arguments.
        input: serde_json::Value,
        /// The tool call whose sub-agent made this one; absent for the main conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
        /// Set when `input` was too large to show; it is then null.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    /// A tool call ended.
    #[serde(rename = "tool.finished")]
    ToolFinished {
        /// The call.
        tool_use_id: String,
        /// Whether it failed or was refused.
        is_error: bool,
        /// What it answered, at most 16 KiB.
        output: String,
        /// The tool call whose sub-agent made this one; absent for the main conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
        /// Set when `output` was cut.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    /// A whole message; it wins over the deltas.
    #[serde(rename = "message")]
    Message {
        /// The message.
        message_id: String,
        /// `assistant`.
        role: String,
        /// Its content blocks, as the Messages API has them.
        content: serde_json::Value,
        /// The tool call whose sub-agent says it; absent for the main conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_tool_use_id: Option<String>,
        /// Set when `content` was too large to show; it is then an empty list.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    /// The job ended well.
    #[serde(rename = "job.completed")]
    JobCompleted {
        /// The job as it will stay.
        job: Box<JobView>,
    },
    /// The job was tried and given up.
    #[serde(rename = "job.failed")]
    JobFailed {
        /// The job as it will stay.
        job: Box<JobView>,
    },
    /// Somebody asked for the end of the job.
    #[serde(rename = "job.cancelled")]
    JobCancelled {
        /// The job as it will stay.
        job: Box<JobView>,
    },
}

impl EventBody {
    /// The last event of a job that ended as `job` says. `None` while it has not ended.
    pub fn terminal(job: JobView) -> Option<Self> {
        let state = job.status;
        let job = Box::new(job);
        match state {
            JobState::Completed => Some(Self::JobCompleted { job }),
            JobState::Failed => Some(Self::JobFailed { job }),
            JobState::Cancelled => Some(Self::JobCancelled { job }),
            JobState::Queued | JobState::Running => None,
        }
    }
}

/// One event of a job's log: its id and its JSON as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub id: EventId,
    /// `{"id":…,"type":…,"at":…,…}`, one line.
    pub json: Bytes,
}

#[derive(Serialize)]
struct Wire<'a> {
    id: EventId,
    #[serde(flatten)]
    body: &'a EventBody,
    at: Timestamp,
}

#[derive(Deserialize)]
struct Head<'a> {
    id: EventId,
    #[serde(rename = "type", borrow)]
    kind: &'a str,
}

impl Event {
    /// Number `body` and put it in its wire form. A body whose JSON would be larger than
    /// [`MAX_EVENT_BYTES`] loses its large part and says so.
    pub fn new(id: EventId, body: &EventBody, at: Timestamp) -> Self {
        let json = wire_json(id, body, at);
        if json.len() <= MAX_EVENT_BYTES {
            return Self { id, json };
        }
        Self { id, json: wire_json(id, &truncated(body), at) }
    }

    /// Read an event back from its JSON. `None` when that is not an event.
    pub fn from_json(json: Bytes) -> Option<Self> {
        let id = head(&json)?.id;
        Some(Self { id, json })
    }

    /// Its type, such as `text.delta`.
    pub fn kind(&self) -> &str {
        // Every event came out of `new` or went through `from_json`.
        head(&self.json).map_or("message", |head| head.kind)
    }

    /// Whether it is the last event of its job.
    pub fn is_terminal(&self) -> bool {
        is_terminal(self.kind())
    }
}

/// Whether an event of type `kind` is the last one of its job.
pub fn is_terminal(kind: &str) -> bool {
    matches!(kind, "job.completed" | "job.failed" | "job.cancelled")
}

/// What an event says of itself. All of ours begin with it, so most of the JSON need not be looked at.
fn head(json: &[u8]) -> Option<Head<'_>> {
    let by_place = || {
        let (id, rest) = quoted(json.strip_prefix(br#"{"id":"#)?)?;
        let (kind, _) = quoted(rest.strip_prefix(br#","type":"#)?)?;
        Some(Head { id: id.parse().ok()?, kind })
    };
    by_place().or_else(|| serde_json::from_slice(json).ok())
}

/// The text in quotes at the beginning of `json`, where it has no escapes, and what comes after it.
fn quoted(json: &[u8]) -> Option<(&str, &[u8])> {
    let inside = json.strip_prefix(b"\"")?;
    let end = inside.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    let rest = inside[end..].strip_prefix(b"\"")?;
    Some((str::from_utf8(&inside[..end]).ok()?, rest))
}

fn wire_json(id: EventId, body: &EventBody, at: Timestamp) -> Bytes {
    let json = serde_json::to_vec(&Wire { id, body, at }).expect("an event has only string keys");
    Bytes::from(json)
}

/// `body` without its unbounded part. Deltas and tool outputs are cut where they are made, and a job's
/// answer is bounded by the job; what is left are inputs, whole messages and terminal events.
fn truncated(body: &EventBody) -> EventBody {
    let mut body = body.clone();
    match &mut body {
        EventBody::ToolStarted { input, truncated, .. } => {
            *input = serde_json::Value::Null;
            *truncated = true;
        }
        EventBody::Message { content, truncated, .. } => {
            *content = serde_json::Value::Array(Vec::new());
            *truncated = true;
        }
        EventBody::JobCompleted { job } | EventBody::JobFailed { job } | EventBody::JobCancelled { job } => job.truncate(),
        EventBody::JobStarted { .. }
        | EventBody::SessionReady { .. }
        | EventBody::TextDelta { .. }
        | EventBody::ThinkingDelta { .. }
        | EventBody::MessageWithdrawn { .. }
        | EventBody::ToolFinished { .. } => {}
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_has_one_spelling() {
        assert_eq!("2-17".parse(), Ok(EventId { attempt: 2, n: 17 }));
        for wrong in ["", "2", "2-", "-1", "+1-0", "01-0", "1-00", "1-4294967296", "1-2-3", " 1-2"] {
            assert_eq!(wrong.parse::<EventId>(), Err(InvalidEventId), "{wrong:?}");
        }
    }

    #[test]
    fn an_event_follows_its_number_or_starts_a_newer_attempt() {
        let last = Some(EventId { attempt: 2, n: 4 });

        assert!(EventId { attempt: 2, n: 5 }.follows(last));
        assert!(EventId { attempt: 3, n: 0 }.follows(last));
        assert!(EventId { attempt: 1, n: 0 }.follows(None));
        for hole in [EventId { attempt: 2, n: 6 }, EventId { attempt: 2, n: 4 }, EventId { attempt: 3, n: 1 }, EventId { attempt: 1, n: 0 }]
        {
            assert!(!hole.follows(last), "{hole}");
        }
        assert!(!EventId { attempt: 1, n: 3 }.follows(None));
        let largest = Some(EventId { attempt: 1, n: u32::MAX });
        assert!(EventId { attempt: 2, n: 0 }.follows(largest));
        assert!(!EventId { attempt: 1, n: 0 }.follows(largest));
    }

    #[test]
    fn an_event_survives_its_wire_form() {
        let body = EventBody::TextDelta { message_id: "msg_1".into(), text: "hi \u{1f600}\n".into(), parent_tool_use_id: None };

        let event = Event::new(EventId { attempt: 1, n: 3 }, &body, Timestamp::from_unix_ms(0));
        let back = Event::from_json(event.json.clone()).expect("an event");

        assert_eq!(back, event);
        assert_eq!(back.kind(), "text.delta");
        assert!(!back.is_terminal());
        let json: serde_json::Value = serde_json::from_slice(&event.json).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({"id": "1-3", "type": "text.delta", "at": "1970-01-01T00:00:00.000Z", "message_id": "msg_1", "text": "hi \u{1f600}\n"})
        );
    }

    #[test]
    fn an_event_is_known_in_whatever_order_it_is_written() {
        let read = |json: &'static str| Event::from_json(json.into()).map(|event| (event.id.to_string(), event.kind().to_owned()));
        let known = Some(("1-3".to_owned(), "message".to_owned()));

        assert_eq!(read(r#"{"id":"1-3","type":"message","at":"x"}"#), known);
        assert_eq!(read(r#"{"type": "message", "at": "x", "id": "1-3"}"#), known);
        for wrong in ["", "{}", r#"{"id":"1-3"}"#, r#"{"id":"1","type":"message"}"#, r#"{"id":"1-3","type":7}"#, r#"{"id":"1-3"#] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_event_too_large_is_cut_and_says_so() {
        let body = EventBody::ToolStarted {
            tool_use_id: "toolu_1".into(),
            name: "Write".into(),
            input: serde_json::json!({"content": "x".repeat(MAX_EVENT_BYTES)}),
            parent_tool_use_id: None,
            truncated: false,
        };

        let event = Event::new(EventId::first(1), &body, Timestamp::from_unix_ms(0));

        assert!(event.json.len() < 1024);
        let json: serde_json::Value = serde_json::from_slice(&event.json).expect("JSON");
        assert_eq!(json["truncated"], true);
        assert_eq!(json["input"], serde_json::Value::Null);
    }
}
