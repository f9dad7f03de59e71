//! What is said over a socket: each message is one text frame with a JSON object whose `type` says what it
//! is. A client's are read as strictly as the body of a request.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use shared::{event::EventId, id::JobId};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::{
    body::{self, Check},
    contract::Secret,
    error::{ApiError, FieldError},
    ring::Framed,
    routes::chat::{self, body::CreateChat},
    watch::Remark,
};

/// The longest `request_id`.
const MAX_REQUEST_ID: usize = 128;

/// What a client says, and its own word for it, which comes back with the answer.
#[derive(Debug)]
pub struct Said {
    /// Absent where it gave none, or none that could be read.
    pub request_id: Option<String>,
    /// What it wants, or what is wrong with that.
    pub wanted: Result<Wanted, ApiError>,
}

/// What a client wants.
#[derive(Debug)]
pub enum Wanted {
    /// To say who it is, once more or for the first time.
    Auth(Secret),
    /// The events of a job, from after one it has.
    Subscribe(JobId, Option<EventId>),
    /// No more events of a job.
    Unsubscribe(JobId),
    /// An answer of the model.
    Chat(Box<CreateChat>, Option<String>),
    /// The end of a job.
    Cancel(JobId),
    /// To see how things stand, as they change.
    Watch(What),
    /// No longer to see that.
    Unwatch(What),
    /// A sign of life.
    Ping,
}

/// What can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The caller's jobs.
    Jobs,
    /// Workers and queue.
    System,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    token: Secret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subscribe {
    job_id: JobId,
    after: Option<EventId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfJob {
    job_id: JobId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfView {
    what: What,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// What has the right shape is right.
macro_rules! unconditional {
    ($($shape:ty),*) => { $(impl Check for $shape {
        fn check(&self) -> Vec<FieldError> {
            Vec::new()
        }
    })* };
}
unconditional!(Auth, Subscribe, OfJob, OfView, Nothing);

impl Said {
    /// Read a frame.
    pub fn read(text: &str) -> Self {
        let mut fields = match body::strict(text.as_bytes()) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Self { request_id: None, wanted: Err(wrong("", "expected an object")) },
            Err(error) => return Self { request_id: None, wanted: Err(error) },
        };
        match request_id(&mut fields) {
            Ok(request_id) => Self { request_id, wanted: wanted(fields) },
            Err(error) => Self { request_id: None, wanted: Err(error) },
        }
    }
}

fn request_id(fields: &mut Map<String, Value>) -> Result<Option<String>, ApiError> {
    match fields.remove("request_id") {
        None => Ok(None),
        Some(Value::String(id)) if id.len() <= MAX_REQUEST_ID => Ok(Some(id)),
        Some(_) => Err(wrong("/request_id", format!("expected a text of at most {MAX_REQUEST_ID} bytes"))),
    }
}

fn wanted(mut fields: Map<String, Value>) -> Result<Wanted, ApiError> {
    let Some(Value::String(kind)) = fields.remove("type") else { return Err(wrong("/type", "expected a text")) };
    Ok(match kind.as_str() {
        "auth" => Wanted::Auth(read::<Auth>(fields)?.token),
        "subscribe" => {
            let Subscribe { job_id, after } = read(fields)?;
            Wanted::Subscribe(job_id, after)
        }
        "unsubscribe" => Wanted::Unsubscribe(read::<OfJob>(fields)?.job_id),
        "chat" => {
            let key = idempotency_key(&mut fields)?;
            Wanted::Chat(Box::new(read(fields)?), key)
        }
        "cancel" => Wanted::Cancel(read::<OfJob>(fields)?.job_id),
        "watch" => Wanted::Watch(read::<OfView>(fields)?.what),
        "unwatch" => Wanted::Unwatch(read::<OfView>(fields)?.what),
        "ping" => read::<Nothing>(fields).map(|Nothing {}| Wanted::Ping)?,
        _ => {
            let detail = "expected `auth`, `subscribe`, `unsubscribe`, `chat`, `cancel`, `watch`, `unwatch` or `ping`";
            return Err(wrong("/type", detail));
        }
    })
}

/// What is a header of a request is a field here.
fn idempotency_key(fields: &mut Map<String, Value>) -> Result<Option<String>, ApiError> {
    match fields.remove("idempotency_key") {
        None => Ok(None),
        Some(Value::String(key)) if chat::is_idempotency_key(&key) => Ok(Some(key)),
        Some(_) => Err(chat::not_an_idempotency_key("/idempotency_key")),
    }
}

fn read<T: DeserializeOwned + Check>(fields: Map<String, Value>) -> Result<T, ApiError> {
    body::checked(Value::Object(fields))
}

fn wrong(pointer: &str, detail: impl Into<String>) -> ApiError {
    ApiError::invalid(vec![FieldError::new(pointer, detail)])
}

/// An event of the log of `job`.
pub fn event(job: JobId, event: &Framed) -> Utf8Bytes {
    // What the worker wrote is JSON, and so UTF-8.
    let json = String::from_utf8_lossy(event.json());
    format!("{{\"type\":\"event\",\"job_id\":\"{job}\",\"event\":{json}}}").into()
}

/// What is said about `job` beside its log.
pub fn remark(job: JobId, remark: &Remark) -> Utf8Bytes {
    json!({"type": "event", "job_id": job, "event": remark.event}).to_string().into()
}

/// What was wanted was done; `answer` says what came of it.
pub fn ack(request_id: Option<String>, answer: Map<String, Value>) -> Utf8Bytes {
    let mut fields = Map::from_iter([("type".to_owned(), "ack".into())]);
    fields.extend(request_id.map(|id| ("request_id".to_owned(), id.into())));
    fields.extend(answer);
    Value::Object(fields).to_string().into()
}

/// What was wanted was not done.
pub fn error(request_id: Option<String>, error: &ApiError) -> Utf8Bytes {
    let mut fields = json!({"type": "error", "code": error.code().as_str(), "detail": error.to_string()});
    if let Some(id) = request_id {
        fields["request_id"] = id.into();
    }
    if !error.errors().is_empty() {
        fields["errors"] = json!(error.errors());
    }
    if let Some(secs) = error.retry_after_secs() {
        fields["retry_after_secs"] = secs.into();
    }
    fields.to_string().into()
}

#[cfg(test)]
mod tests {
    use shared::{
        event::{Event, EventBody},
        time::Timestamp,
    };

    use super::*;

    const JOB: &str = "job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b";

    fn refused(text: &str) -> (String, Vec<String>) {
        let error = Said::read(text).wanted.expect_err(text);
        (error.code().as_str().to_owned(), error.errors().iter().map(|error| error.pointer.clone()).collect())
    }

    #[test]
    fn what_a_client_wants_is_read_with_its_own_word_for_it() {
        let said = Said::read(&format!(r#"{{"type":"subscribe","job_id":"{JOB}","after":"1-7","request_id":"a"}}"#));
        assert_eq!(said.request_id.as_deref(), Some("a"));
        let Ok(Wanted::Subscribe(job, Some(EventId { attempt: 1, n: 7 }))) = said.wanted else { panic!("{said:?}") };
        assert_eq!(job.to_string(), JOB);

        for (text, fits) in [
            (
                format!(r#"{{"type":"subscribe","job_id":"{JOB}"}}"#),
                (|wanted| matches!(wanted, Wanted::Subscribe(_, None))) as fn(&Wanted) -> bool,
            ),
            (format!(r#"{{"type":"unsubscribe","job_id":"{JOB}"}}"#), |wanted| matches!(wanted, Wanted::Unsubscribe(_))),
            (format!(r#"{{"type":"cancel","job_id":"{JOB}"}}"#), |wanted| matches!(wanted, Wanted::Cancel(_))),
            (r#"{"type":"auth","token":"t"}"#.to_owned(), |wanted| matches!(wanted, Wanted::Auth(_))),
            (r#"{"type":"watch","what":"jobs"}"#.to_owned(), |wanted| matches!(wanted, Wanted::Watch(What::Jobs))),
            (r#"{"type":"unwatch","what":"system"}"#.to_owned(), |wanted| matches!(wanted, Wanted::Unwatch(What::System))),
            (r#"{"type":"ping"}"#.to_owned(), |wanted| matches!(wanted, Wanted::Ping)),
            (r#"{"type":"chat","message":"hi","idempotency_key":"k"}"#.to_owned(), |wanted| matches!(wanted, Wanted::Chat(_, Some(_)))),
        ] {
            let said = Said::read(&text);
            assert!(said.wanted.as_ref().is_ok_and(fits), "{text}: {said:?}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_where_it_is_wrong() {
        let at = |code: &str, pointer: &str| (code.to_owned(), vec![pointer.to_owned()]);

        assert_eq!(refused("{").0, "malformed_json");
        assert_eq!(refused(r#"{"type":"ping","type":"ping"}"#).0, "duplicate_key");
        for (text, pointer) in [
            ("[]", ""),
            ("{}", "/type"),
            (r#"{"type":"pong"}"#, "/type"),
            (r#"{"type":"ping","more":1}"#, "/more"),
            (r#"{"type":"ping","request_id":7}"#, "/request_id"),
            (r#"{"type":"subscribe"}"#, "/job_id"),
            (r#"{"type":"cancel","job_id":"7"}"#, "/job_id"),
            (r#"{"type":"watch","what":"all"}"#, "/what"),
            (r#"{"type":"chat"}"#, "/message"),
            (r#"{"type":"chat","message":"a\u0000b"}"#, "/message"),
            (r#"{"type":"chat","message":"a","idempotency_key":""}"#, "/idempotency_key"),
        ] {
            assert_eq!(refused(text), at("invalid_request", pointer), "{text}");
        }
    }

    #[test]
    fn an_event_goes_out_as_it_was_written() {
        let body = EventBody::TextDelta { message_id: "m".into(), text: "\"é\"\n".into(), parent_tool_use_id: None };
        let written = Event::new(EventId { attempt: 1, n: 3 }, &body, Timestamp::from_unix_ms(0));
        let job: JobId = JOB.parse().expect("an id");

        let sent = event(job, &Framed::new(&written));

        let sent: Value = serde_json::from_str(&sent).expect("JSON");
        let written: Value = serde_json::from_slice(&written.json).expect("JSON");
        assert_eq!(sent, json!({"type": "event", "job_id": JOB, "event": written}));
    }

    #[test]
    fn an_answer_says_what_it_answers() {
        let answer = Map::from_iter([("ended".to_owned(), true.into())]);
        let refusal = ApiError::unavailable(crate::error::Code::RateLimited, "too often", 7);

        let sent: Value = serde_json::from_str(&ack(Some("r".into()), answer)).expect("JSON");
        assert_eq!(sent, json!({"type": "ack", "request_id": "r", "ended": true}));
        let sent: Value = serde_json::from_str(&error(None, &refusal)).expect("JSON");
        assert_eq!(sent, json!({"type": "error", "code": "rate_limited", "detail": "too often", "retry_after_secs": 7}));
    }
}
