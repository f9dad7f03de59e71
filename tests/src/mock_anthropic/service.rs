//! The routes of the API and who may use them.

use std::{error::Error, fmt, future::pending, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::model::{ApiError, Script, Usage, fresh_id};

use super::{
    Options, Received,
    answer::{Answer, Ending, decide},
    conversation::{Conversation, prompt_tokens},
    memory::Memory,
    received::{Log, Open},
    speech::{Body, message, streamed, whole},
};

/// The real API's own limit.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;

/// What all connections share.
pub(super) struct Service {
    options: Options,
    memory: Memory,
    tasks: TaskTracker,
    pub(super) log: Log,
    /// What scripts say is let out by: a permit a delta.
    pub(super) gate: Arc<Semaphore>,
}

/// The connection is to break without an answer.
#[derive(Debug)]
pub(super) struct HangUp;

impl fmt::Display for HangUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the script breaks this connection")
    }
}

impl Error for HangUp {}

impl Service {
    pub(super) fn new(options: Options, tasks: TaskTracker) -> Self {
        let log = Log::new(options.keep);
        Self { options, memory: Memory::default(), tasks, log, gate: Arc::new(Semaphore::new(0)) }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, HangUp> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
            return Ok(refusal(&ApiError::of_status(413), None));
        };
        let body = parse(&body.to_bytes());
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let noted = Received { method: head.method.clone(), path, headers: head.headers.clone(), body: body.clone() };
        let open = self.log.note(noted);
        if !self.lets_in(&head.headers) {
            return Ok(refusal(&ApiError::of_status(401), None));
        }
        match (head.method, head.uri.path()) {
            (Method::HEAD, "/") => Ok(Response::new(whole(&json!({})))),
            (Method::GET, "/v1/models") => Ok(ok(&models())),
            (Method::POST, "/v1/messages/count_tokens") => Ok(ok(&json!({"input_tokens": prompt_tokens(&body)}))),
            (Method::POST, "/v1/messages") => self.message(&head.headers, &body, open).await,
            _ => Ok(refusal(&ApiError::of_status(404), None)),
        }
    }

    async fn message(&self, headers: &HeaderMap, body: &Value, open: Open) -> Result<Response<Body>, HangUp> {
        let Some(conversation) = Conversation::read(headers, body) else {
            return Ok(refusal(&ApiError::of_status(400), None));
        };
        if conversation.model.contains("nonexistent") {
            return Ok(refusal(&ApiError::of_status(404), None));
        }
        let script = Script::parse(&conversation.prompt);
        match decide(&conversation, script.as_ref(), &self.memory, self.options.demo) {
            Answer::Reply(reply, ending) => {
                let prompt_tokens = script.and_then(|script| script.settings.prompt_tokens).unwrap_or(conversation.prompt_tokens);
                let prompt = self.memory.prompt_usage(&conversation, prompt_tokens);
                let usage = Usage { output: reply.output_tokens(), ..prompt };
                if conversation.is_streaming {
                    let (chunks, body) = streamed(Arc::clone(&self.gate));
                    self.tasks.spawn(chunks.speak(reply, conversation.model, usage, ending, open));
                    return Ok(response(StatusCode::OK, "text/event-stream; charset=utf-8", body));
                }
                debug_assert_eq!(ending, Ending::Whole, "only a stream can break off");
                Ok(ok(&message(&reply, &conversation.model, usage)))
            }
            Answer::Refusal(error, retry_after) => Ok(refusal(&error, retry_after)),
            Answer::Drop => Err(HangUp),
            Answer::Silence => {
                // hyper drops this future when the client leaves.
                let _under_way = open;
                pending().await
            }
        }
    }

    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.options.require_key else { return true };
        let is_key = |value: &HeaderValue| value.as_bytes() == key.as_bytes();
        let is_bearer = |value: &HeaderValue| value.as_bytes().strip_prefix(b"Bearer ") == Some(key.as_bytes());
        headers.get("x-api-key").is_some_and(is_key) || headers.get(AUTHORIZATION).is_some_and(is_bearer)
    }
}

fn parse(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

fn models() -> Value {
    let model = |id: &str, name: &str| json!({"type": "model", "id": id, "display_name": name, "created_at": "2026-01-01T00:00:00Z"});
    json!({"data": [model("claude-opus-5-5", "Scripted model")], "has_more": false, "first_id": "claude-opus-5-5", "last_id": "claude-opus-5-5"})
}

fn ok(json: &Value) -> Response<Body> {
    response(StatusCode::OK, "application/json", whole(json))
}

fn refusal(error: &ApiError, retry_after: Option<u64>) -> Response<Body> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = response(status, "application/json", whole(&error.body()));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let id = HeaderValue::try_from(fresh_id("req")).expect("an id is letters and digits");
    response.headers_mut().insert("request-id", id);
    response
}
