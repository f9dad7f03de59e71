//! Ask the model. A message becomes a job, which outlives the connection it came on; the same call can
//! answer at once, wait a while, or stream.

use std::time::Duration;

use poem::{Request, http::HeaderMap, web::Data};
use poem_openapi::{ApiResponse, OpenApi, ResponseContent, param::Header, payload::Json};
use shared::{
    job::{ChatSpec, NanoUsd},
    jobs::{NewJob, Submitted},
    trace_context::TraceContext,
    user::UserLimits,
};
use tracing::info;

use crate::{
    app::App,
    auth::{Authenticated, Chat},
    body::Checked,
    config::WithoutRedis,
    contract::{LastEventId, Wire},
    error::{ApiError, Code, FieldError},
    limit::Charge,
    models::Models,
    openapi::Tag,
    routes::{events, jobs::Job, tools},
    sse::EventStream,
    watch::Watch,
};

use self::body::CreateChat;

pub mod body;

const MAX_IDEMPOTENCY_KEY: usize = 255;
const MAX_WAIT_SECS: u64 = 60;

/// The operations that ask the model.
pub struct ChatApi;

#[derive(ApiResponse)]
enum CreateChatResponse {
    /// The job, which has ended within the time of `Prefer: wait`; or its events.
    #[oai(status = 200)]
    Answered(
        Answer,
        /// Where the job is.
        #[oai(header = "Location")]
        String,
        /// The preference that was followed.
        #[oai(header = "Preference-Applied")]
        Option<String>,
    ),
    /// The job was accepted: whatever happens to this server, it will end.
    #[oai(status = 202)]
    Accepted(
        Json<Job>,
        /// Where the job is.
        #[oai(header = "Location")]
        String,
        /// The preference that was followed.
        #[oai(header = "Preference-Applied")]
        Option<String>,
    ),
    /// Everything up to the job's last event was delivered before: do not connect again.
    #[oai(status = 204)]
    NothingLeft,
}

#[derive(ResponseContent)]
#[expect(clippy::large_enum_variant, reason = "made once for each answer and taken apart at once")]
enum Answer {
    Job(Json<Job>),
    Events(EventStream),
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Chat")]
impl ChatApi {
    /// Ask the model.
    ///
    /// Answers with the job at once; with `Prefer: wait=N` after its end, if that comes
    /// within N seconds; with `stream` or `Accept: text/event-stream`, with its events as they come (see
    /// `GET /api/jobs/{id}/events`). The job goes on when the connection breaks.
    #[oai(path = "/chat", method = "post", operation_id = "create_chat")]
    #[expect(clippy::too_many_arguments, reason = "each is a part of the request that the contract shows")]
    async fn create_chat(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        request: &Request,
        body: Checked<CreateChat>,
        /// Your word for this request: sent again within 24 hours, with the same body, it answers with the
        /// first job instead of making another.
        #[oai(name = "Idempotency-Key", validator(min_length = 1, max_length = 255, pattern = "^[ -~]*$"))]
        idempotency_key: Header<Option<String>>,
        /// `wait=N`: wait up to N seconds (at most 60) for the job's end.
        #[oai(name = "Prefer")]
        prefer: Header<Option<String>>,
        /// When a streaming request is sent again: the last event that was received.
        #[oai(name = "Last-Event-ID")]
        last_event_id: Header<Option<Wire<LastEventId>>>,
    ) -> Result<CreateChatResponse, ApiError> {
        let headers = request.headers();
        let body = body.0;
        let streams = body.stream || events::asks_for_events(headers);
        let position = events::position(headers, last_event_id.0)?;
        let key = checked_key(headers, idempotency_key.0)?;
        let submitted = submit(&app, &auth, body, key, request.data().cloned()).await?;
        if let Some(charge) = request.data::<Charge>().filter(|_| submitted.replayed) {
            charge.waive();
        }
        let mut job = submitted.job;
        let location = format!("/api/jobs/{}", job.id);

        if streams {
            // Only a repeated request can have seen anything of the job.
            let after = position.filter(|_| submitted.replayed);
            let Some(watch) = Watch::open(&app.feeds, &job, after).await? else { return Ok(CreateChatResponse::NothingLeft) };
            let events = EventStream::new(&app, auth.principal(), watch);
            return Ok(CreateChatResponse::Answered(Answer::Events(events), location, None));
        }
        let wait_secs = prefer.0.as_deref().and_then(wait_of);
        if let Some(secs) = wait_secs {
            app.feeds.wait_for_end(&job, Duration::from_secs(secs)).await;
            // The job is accepted: a record that is away for the moment changes nothing in that.
            job = app.jobs.find(auth.user_id(), job.id).await.ok().flatten().unwrap_or(job);
        }
        let applied = wait_secs.map(|secs| format!("wait={secs}"));
        let shown = Json(Job::shown(&app, &job).await);
        Ok(if wait_secs.is_some() && job.state.is_terminal() {
            CreateChatResponse::Answered(Answer::Job(shown), location, applied)
        } else {
            CreateChatResponse::Accepted(shown, location, applied)
        })
    }
}

/// Accept a job, or answer with the one that the same request made before.
pub async fn submit(
    app: &App,
    auth: &Authenticated<Chat>,
    body: CreateChat,
    idempotency_key: Option<String>,
    trace: Option<TraceContext>,
) -> Result<Submitted, ApiError> {
    let session_id = body.session_id;
    let spec = body.into_spec(tools::allowed_by_key(auth).map(<[String]>::to_vec));
    let new = NewJob {
        user_id: auth.user_id(),
        api_key_id: auth.api_key_id(),
        session_id,
        reservation: reservation(&auth.user.limits, &spec, app.config.default_job_budget),
        spec,
        idempotency_key,
        trace,
    };
    let submitted = match check(app, auth, &new).await {
        Ok(()) => app.jobs.submit(new).await?,
        // What was accepted stays accepted, though it would not be today.
        Err(fault) => app.jobs.made_before(&new).await?.ok_or(fault)?,
    };
    if !submitted.replayed {
        app.metrics.submitted.inc();
        info!(job.id = %submitted.job.id, "Accepted job `{}`", submitted.job.id);
    }
    Ok(submitted)
}

/// Refuse what no job may ask of this service as it is now.
async fn check(app: &App, auth: &Authenticated<Chat>, new: &NewJob) -> Result<(), ApiError> {
    if app.config.without_redis == WithoutRedis::Refuse && !app.store.is_redis_connected() {
        return Err(ApiError::unavailable(Code::Unavailable, "no jobs are taken while Redis is away", 2));
    }
    let spec = &new.spec;
    check_models(&app.config.models, [("/model", spec.model.as_deref()), ("/fallback_model", spec.fallback_model.as_deref())])?;
    let (tools, servers) = (spec.tools.as_deref().unwrap_or_default(), spec.mcp_servers.as_deref().unwrap_or_default());
    if tools.is_empty() && servers.is_empty() {
        return Ok(());
    }
    // One that is not there, or takes no more, is refused by the submit itself.
    let session = match new.session_id {
        Some(id) => app.sessions.find(auth.user_id(), id).await?,
        None => None,
    };
    tools::check(app, auth, session.as_ref(), tools).await?;
    tools::check_mcp_servers(app, auth, session.as_ref(), servers).await
}

/// Refuse a model that no job may name. Not a [`Check`](crate::body::Check): what may be named is a setting.
pub fn check_models<'a>(models: &Models, named: impl IntoIterator<Item = (&'static str, Option<&'a str>)>) -> Result<(), ApiError> {
    let unknown = named.into_iter().filter(|(_, model)| model.is_some_and(|model| !models.include(model)));
    let errors: Vec<_> = unknown.map(|(pointer, _)| FieldError::new(pointer, "is not a model that this service knows")).collect();
    ApiError::refuse(errors)
}

/// What a job keeps of its owner's budget: what it may cost if it says so, else what the operator thinks a
/// job costs where there is a budget to keep it of.
pub fn reservation(limits: &UserLimits, spec: &ChatSpec, default: NanoUsd) -> NanoUsd {
    match spec.max_budget_usd {
        // Too small to be counted is not the same as none.
        Some(usd) => NanoUsd::from_usd(usd).max(NanoUsd(1)),
        None if limits.daily_budget.is_some() => default,
        None => NanoUsd(0),
    }
}

/// The key, if it is one that any two readers would take for the same.
fn checked_key(headers: &HeaderMap, key: Option<String>) -> Result<Option<String>, ApiError> {
    let given = headers.get_all("idempotency-key").iter().count();
    match (given, key) {
        (0, _) => Ok(None),
        (1, Some(key)) if is_idempotency_key(&key) => Ok(Some(key)),
        _ => Err(not_an_idempotency_key("Idempotency-Key")),
    }
}

/// Whether any two readers would take it for the same.
pub fn is_idempotency_key(key: &str) -> bool {
    (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) && key.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// What stands at `pointer` is no idempotency key.
pub fn not_an_idempotency_key(pointer: &str) -> ApiError {
    let detail = format!("must be one value of 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters");
    ApiError::invalid(vec![FieldError::new(pointer, detail)])
}

/// N of `wait=N` in a `Prefer` header (RFC 7240). What is not understood is ignored, as the RFC wants it.
fn wait_of(prefer: &str) -> Option<u64> {
    let preferences = prefer.split([',', ';']).filter_map(|one| one.split_once('='));
    let wait = preferences.filter(|(name, _)| name.trim().eq_ignore_ascii_case("wait")).map(|(_, value)| value).next()?;
    let secs: u64 = wait.trim().trim_matches('"').parse().ok()?;
    (secs > 0).then_some(secs.min(MAX_WAIT_SECS))
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    #[test]
    fn a_preference_to_wait_is_found_and_bounded() {
        for (prefer, secs) in [
            ("wait=5", Some(5)),
            ("respond-async, Wait = \"10\"", Some(10)),
            ("wait=600", Some(60)),
            ("wait=0", None),
            ("wait", None),
            ("wait=soon", None),
            ("handling=lenient", None),
        ] {
            assert_eq!(wait_of(prefer), secs, "{prefer}");
        }
    }

    #[test]
    fn a_job_keeps_what_it_may_cost() {
        let limited = UserLimits { daily_budget: Some(NanoUsd(5)), ..UserLimits::default() };
        let kept =
            |limits: &UserLimits, max_budget_usd| reservation(limits, &ChatSpec { max_budget_usd, ..ChatSpec::text("hi") }, NanoUsd(7));

        for limits in [&limited, &UserLimits::default()] {
            assert_eq!(kept(limits, Some(0.25)), NanoUsd(250_000_000));
            assert_eq!(kept(limits, Some(1e-12)), NanoUsd(1));
        }
        assert_eq!(kept(&limited, None), NanoUsd(7));
        assert_eq!(kept(&UserLimits::default(), None), NanoUsd(0));
    }

    #[test]
    fn an_idempotency_key_is_one_printable_value() {
        let key = |values: &[&'static [u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", HeaderValue::from_bytes(value).expect("a header value"));
            }
            let text = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
            checked_key(&headers, text).map_err(|error| error.code())
        };

        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&[b"order 7"]), Ok(Some("order 7".to_owned())));
        for wrong in [&[b"" as &[u8]] as &[&[u8]], &[b"a", b"b"], &["é".as_bytes()], &[&[b'k'; 256]]] {
            assert_eq!(key(wrong), Err(Code::InvalidRequest), "{wrong:?}");
        }
    }
}
