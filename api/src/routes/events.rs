//! A job's events: as a stream that can be resumed anywhere, or as a list.

use std::{borrow::Cow, sync::Arc};

use poem::{
    Request,
    http::{HeaderMap, header},
    web::Data,
};
use poem_openapi::{
    ApiResponse, Object, OpenApi, ResponseContent,
    param::{Header, Path, Query},
    payload::{Json, Payload},
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde_json::Value;
use shared::{
    event::{EventId, InvalidEventId},
    id::JobId,
    job::Job,
    principal::Principal,
    time::Timestamp,
};

use crate::{
    app::App,
    auth::{Authenticated, Read},
    contract::{LastEventId, Schema as _, Wire},
    error::{ApiError, Code, FieldError},
    openapi::Tag,
    routes::jobs,
    sse::EventStream,
    watch::{self, Watch},
};

/// The most events of one list.
const MAX_LISTED: usize = 1000;

/// The operations on events.
pub struct EventsApi;

/// The answer to who asks for a job's events.
#[derive(ApiResponse)]
pub enum GetEventsResponse {
    /// The events: as a stream, or with `Accept: application/json` those there are, as a list.
    #[oai(status = 200)]
    Found(Answer),
    /// The client has the last event: there is nothing to connect for.
    #[oai(status = 204)]
    NothingLeft,
}

/// Events, in the form they were asked for.
#[derive(ResponseContent)]
pub enum Answer {
    /// As they come.
    Stream(EventStream),
    /// Those there are.
    List(Json<EventList>),
}

/// Events of a job, in order.
#[derive(Debug, Object)]
pub struct EventList {
    /// The events.
    data: Vec<Event>,
    /// The `after` of the next page; null where there is none.
    #[oai(nullable)]
    next_cursor: Option<Wire<EventId>>,
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Jobs")]
impl EventsApi {
    /// Follow a job's events.
    ///
    /// Server-sent events that end after the job's last one; a client that was cut off
    /// goes on with `Last-Event-ID` (or `after`), without a hole and without a repeat, during the job or after
    /// it. A new attempt begins with `job.started`: what was streamed before it is void. A position that is no
    /// longer kept is answered by `resync` with the job, and what follows starts anew. Events without an `id`
    /// (`job.queued`, `retrying`, `resync`) are not kept.
    ///
    /// With `Accept: application/json`: the events there are, as a list; `410` for a position no longer kept.
    #[oai(path = "/jobs/:id/events", method = "get", operation_id = "get_job_events")]
    async fn get_job_events(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        request: &Request,
        /// The job.
        id: Path<Wire<JobId>>,
        /// The last event you have; what comes after it is sent.
        after: Query<Option<Wire<EventId>>>,
        /// The same, as browsers say it when they connect again. It wins over `after`.
        #[oai(name = "Last-Event-ID")]
        last_event_id: Header<Option<Wire<LastEventId>>>,
    ) -> Result<GetEventsResponse, ApiError> {
        let after = resumed(request.headers(), last_event_id.0, after.0)?;
        let job = jobs::find(&app, auth.user_id(), id.0.0).await?;
        answer(&app, auth.principal(), request.headers(), &job, after).await
    }
}

/// The events of `job` from after one of them, in the form that `headers` ask for.
pub async fn answer(
    app: &App,
    reader: &Arc<Principal>,
    headers: &HeaderMap,
    job: &Job,
    after: Option<EventId>,
) -> Result<GetEventsResponse, ApiError> {
    if asks_for_json(headers) {
        return Ok(GetEventsResponse::Found(Answer::List(Json(list(app, job, after).await?))));
    }
    Ok(match Watch::open(&app.feeds, job, after).await? {
        Some(watch) => GetEventsResponse::Found(Answer::Stream(EventStream::new(app, reader, watch))),
        None => GetEventsResponse::NothingLeft,
    })
}

/// The position that `Last-Event-ID` says. Of the header, `given` is only what is text; one that is there and
/// is none must not be taken for a client without an event.
pub fn position(headers: &HeaderMap, given: Option<Wire<LastEventId>>) -> Result<Option<EventId>, ApiError> {
    match given {
        Some(Wire(LastEventId(id))) => Ok(id),
        None if headers.contains_key("last-event-id") => {
            Err(ApiError::invalid(vec![FieldError::new("Last-Event-ID", InvalidEventId.to_string())]))
        }
        None => Ok(None),
    }
}

/// The event that a client goes on from: the one of `Last-Event-ID`, or else `after`.
pub fn resumed(
    headers: &HeaderMap,
    last_event_id: Option<Wire<LastEventId>>,
    after: Option<Wire<EventId>>,
) -> Result<Option<EventId>, ApiError> {
    Ok(position(headers, last_event_id)?.or(after.map(|Wire(id)| id)))
}

async fn list(app: &App, job: &Job, after: Option<EventId>) -> Result<EventList, ApiError> {
    // One more than asked for tells whether there is another page.
    let gone = || ApiError::new(Code::PositionGone, "this position of the log is no longer kept: list without `after`");
    let mut events = watch::stored(&app.feeds, job, after, MAX_LISTED + 1).await?.ok_or_else(gone)?;
    let more = events.len() > MAX_LISTED;
    events.truncate(MAX_LISTED);
    let next_cursor = events.last().filter(|_| more).map(|event| Wire(event.id));
    Ok(EventList { data: events.iter().filter_map(Event::of).collect(), next_cursor })
}

/// Whether the client wants the events themselves. A client that takes anything is not asking for them.
pub fn asks_for_events(headers: &HeaderMap) -> bool {
    accepts(headers, EventStream::CONTENT_TYPE)
}

fn asks_for_json(headers: &HeaderMap) -> bool {
    accepts(headers, "application/json") && !asks_for_events(headers)
}

fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges = values.flat_map(|value| value.split(','));
    ranges.map(|range| range.split(';').next().unwrap_or_default().trim()).any(|range| range.eq_ignore_ascii_case(media_type))
}

/// An event as its writer wrote it.
#[derive(Clone, Debug)]
pub struct Event(Value);

impl Event {
    fn of(event: &shared::event::Event) -> Option<Self> {
        serde_json::from_slice(&event.json).ok().map(Self)
    }
}

/// The events, by type, with what they carry beside `id`, `type` and `at`.
const DESCRIPTION: &str = "\
What happened. Beside `id`, `type` and `at`, by type:

* `job.queued` (no id) `{position, estimated_wait_ms}`: the job waits; again when its place changes.
* `job.started` `{attempt, worker_id, reason}`: an attempt begins; drop what an earlier one streamed.
* `session.ready` `{session_id}`: the conversation is loaded.
* `text.delta` `{message_id, text}`, `thinking.delta` `{message_id, text}`: a piece of the answer, of the thinking.
* `message.withdrawn` `{message_id}`: drop the deltas of that message.
* `tool.started` `{tool_use_id, name, input}`, `tool.finished` `{tool_use_id, is_error, output}`: a tool call.
* `message` `{message_id, role, content}`: a whole message; it wins over its deltas.
* `retrying` (no id) `{attempt, reason, delay_ms}`: the job went back to the queue; `attempt` is the one to come.
* `resync` (an empty id) `{job}`: your position is no longer kept; what follows starts anew.
* `job.completed`, `job.failed`, `job.cancelled` `{job}`: the job as it ended; exactly one, and the last.

`text.delta`, `tool.*` and `message` of a sub-agent carry its `parent_tool_use_id`. What was cut carries \
`truncated: true`.";

const TYPES: [&str; 14] = [
    "job.queued",
    "job.started",
    "session.ready",
    "text.delta",
    "thinking.delta",
    "message.withdrawn",
    "tool.started",
    "tool.finished",
    "message",
    "retrying",
    "resync",
    "job.completed",
    "job.failed",
    "job.cancelled",
];

impl Type for Event {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "Event".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference("Event".to_owned())
    }

    fn register(registry: &mut Registry) {
        let described = |description, schema| MetaSchemaRef::Inline(Box::new(MetaSchema { description: Some(description), ..schema }));
        let types = MetaSchema { enum_items: TYPES.map(Value::from).into(), ..MetaSchema::new("string") };
        registry.create_schema::<Self, _>("Event".to_owned(), |_| MetaSchema {
            description: Some(DESCRIPTION),
            required: vec!["type", "at"],
            properties: vec![
                ("id", described("Its number; absent for what is not kept. Opaque: compare it with nothing.", EventId::schema())),
                ("type", described("What happened.", types)),
                ("at", described("When.", Timestamp::schema())),
            ],
            additional_properties: Some(Box::new(MetaSchemaRef::Inline(Box::new(MetaSchema::ANY)))),
            ..MetaSchema::new("object")
        });
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ToJSON for Event {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.clone())
    }
}

impl ParseFromJSON for Event {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        value.map(Self).ok_or_else(ParseError::expected_input)
    }
}

#[cfg(test)]
mod tests {
    use poem::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_stream_is_what_a_client_gets_unless_it_asks_for_json_alone() {
        let asks = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            (asks_for_events(&headers), asks_for_json(&headers))
        };

        assert_eq!(asks("*/*"), (false, false));
        assert_eq!(asks("text/event-stream"), (true, false));
        assert_eq!(asks("application/json; q=0.9, text/event-stream"), (true, false));
        assert_eq!(asks("text/html, application/json;q=0.9"), (false, true));
        assert_eq!((asks_for_events(&HeaderMap::new()), asks_for_json(&HeaderMap::new())), (false, false));
    }

    #[test]
    fn a_position_that_is_no_text_is_refused_like_any_other_wrong_one() {
        let at = |bytes: &[u8]| {
            HeaderMap::from_iter([(HeaderName::from_static("last-event-id"), HeaderValue::from_bytes(bytes).expect("a value"))])
        };

        let refused = position(&at(&[0xc2, 0x84]), None).expect_err("refused");
        assert_eq!(refused.problem("r").errors[0].pointer, "Last-Event-ID");
        assert_eq!(position(&at(b""), Some(Wire(LastEventId(None)))).ok(), Some(None));
        assert_eq!(position(&HeaderMap::new(), None).ok(), Some(None));
    }
}
