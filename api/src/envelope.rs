//! What every answer has, whatever path it took: a request id, the security headers, and for a failure the
//! problem body. A panic, an unknown path and a refused preflight leave through the same door.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use poem::{
    Endpoint, IntoResponse, Request, Response, Result,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
};
use poem_openapi::payload::Payload as _;
use shared::{trace::Span, trace_context::TraceContext};
use tracing::{Instrument as _, error, info_span, warn};
use uuid::Uuid;

use crate::{
    client_address::{self, ClientAddress, TrustedProxies},
    cors::{self, Caller, Origin},
    error::{ApiError, Code, ProblemJson},
    metrics::{self, Traffic},
    openapi::AllowedMethods,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the envelope needs to know.
pub struct Envelope {
    origins: Vec<Origin>,
    allowed: AllowedMethods,
    proxies: TrustedProxies,
    traffic: Arc<Traffic>,
}

impl Envelope {
    /// Answers for pages of `origins`, over the paths of `allowed`, to who comes through `proxies` or without,
    /// counted in `traffic`.
    pub fn new(origins: Vec<Origin>, allowed: AllowedMethods, proxies: TrustedProxies, traffic: Arc<Traffic>) -> Self {
        Self { origins, allowed, proxies, traffic }
    }

    /// Answer `request` by `next`, which finds the [`ClientAddress`] on it, and put the answer in its envelope.
    pub async fn wrap<E: Endpoint>(&self, next: Arc<E>, mut request: Request) -> Result<Response> {
        let request_id = request_id(request.headers());
        let caller = Caller::of(&request, &self.origins);
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let counted = self.traffic.begin(&method, &path);
        let behind_tls = client_address::is_behind_tls(&request, &self.proxies);
        request.set_data(ClientAddress::of(&request, &self.proxies));
        let parent = parent_of(request.headers());
        let told = told_of(&counted, &request_id, parent.as_ref());
        // Whatever this causes belongs to the trace, whether or not somebody collects it.
        let trace = told.context().or(parent);
        let span = info_span!("request", request.id = request_id, %method, path, trace_id = trace.as_ref().map(TraceContext::trace_id));
        if let Some(trace) = trace {
            request.set_data(trace);
        }

        let answer = async {
            if cors::is_preflight(&request) {
                return preflight(&caller);
            }
            match AssertUnwindSafe(next.call(request)).catch_unwind().await {
                Ok(answer) => answer.map(IntoResponse::into_response).map_err(ApiError::from),
                Err(panic) => Err(ApiError::internal(format!("panicked: {}", words_of(&*panic)))),
            }
        };
        let mut response = async { answer.await.unwrap_or_else(|error| self.problem(&error, &request_id, &path)) }.instrument(span).await;

        let status = response.status();
        counted.answered(status);
        told.note("http.response.status_code", || i64::from(status.as_u16()));
        if status.is_server_error() {
            told.fail(status.as_str());
        }
        let headers = response.headers_mut();
        caller.mark(headers);
        secure(headers, behind_tls);
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            headers.insert(REQUEST_ID, id);
        }
        Ok(response)
    }

    fn problem(&self, error: &ApiError, request_id: &str, path: &str) -> Response {
        match (error.code(), error.cause()) {
            (Code::InternalError, cause) => error!(cause = cause.map(chain), "Answered a request with an internal error"),
            (_, Some(cause)) => warn!(cause = chain(cause), "Could not answer a request: {error}"),
            (_, None) => {}
        }
        let problem = error.problem(request_id);
        let body = serde_json::to_vec(&problem).expect("a problem has only string keys");
        let status = error.code().status();
        let mut response = Response::builder().status(status).content_type(ProblemJson::CONTENT_TYPE).body(body);
        let headers = response.headers_mut();
        headers.extend(error.headers().cloned().unwrap_or_default());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = error.challenge().and_then(|challenge| HeaderValue::from_str(&challenge).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(secs) = error.retry_after_secs() {
            headers.insert(header::RETRY_AFTER, secs.into());
        }
        if status == StatusCode::METHOD_NOT_ALLOWED
            && let Ok(allowed) = HeaderValue::from_str(self.allowed.at(path))
        {
            headers.insert(header::ALLOW, allowed);
        }
        response
    }
}

/// The client's id for this request where it is one that a log can hold, else one of ours.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let sane = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    given.filter(sane).map_or_else(|| Uuid::now_v7().simple().to_string(), str::to_owned)
}

/// The place in a trace that a request comes from.
fn parent_of(headers: &HeaderMap) -> Option<TraceContext> {
    let all = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    TraceContext::of_headers(all("traceparent"), all("tracestate"))
}

/// What a collector of traces is told of a request; nothing of those who ask after our health every few seconds.
fn told_of(counted: &metrics::Request, request_id: &str, parent: Option<&TraceContext>) -> Span {
    let (method, route) = (counted.method(), counted.route());
    if route.starts_with("/health") {
        return Span::default();
    }
    let span = Span::server(|| format!("{method} {route}"), parent);
    span.note("http.request.method", || method);
    span.note("http.route", || route.to_owned());
    span.note("request.id", || request_id.to_owned());
    span
}

fn preflight(caller: &Caller) -> Result<Response, ApiError> {
    if *caller == Caller::Stranger {
        return Err(ApiError::new(Code::OriginNotAllowed, "this origin is not in `FRONTEND_URL`"));
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    caller.mark_preflight(response.headers_mut());
    Ok(response)
}

/// The headers that keep a browser from making more of an answer than it is. A page of ours brings a
/// policy of its own.
fn secure(headers: &mut HeaderMap, behind_tls: bool) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(policy);
    // Answers are somebody's own, and old the moment they are made.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    if behind_tls {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

/// An error and its causes on one line.
fn chain(error: &shared::error::Cause) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line = format!("{line}: {cause}");
        next = cause.source();
    }
    line
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_problem_without_its_words() {
        let panics = poem::endpoint::make(|request: Request| async move {
            assert!(request.uri().path().is_empty(), "hunter2");
        });
        let envelope =
            Envelope::new(Vec::new(), AllowedMethods::of_contract(), TrustedProxies::default(), Arc::new(Traffic::of_contract()));

        let response = envelope.wrap(Arc::new(panics), Request::default()).await.expect("an answer");

        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.content_type(), Some(ProblemJson::CONTENT_TYPE));
        let body = response.into_body().into_string().await.expect("UTF-8");
        assert!(body.contains("internal_error") && !body.contains("hunter2"), "{body}");
    }

    #[test]
    fn a_sane_request_id_is_kept_and_another_is_replaced() {
        let with = |id: &'static str| request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_static(id))]));

        assert_eq!(with("trace-1_a.b:c"), "trace-1_a.b:c");
        for odd in ["", "a b", "a\"b", "<script>"] {
            assert_eq!(with(odd).len(), 32, "{odd}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
