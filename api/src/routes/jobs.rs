//! Jobs: what became of a message, and how to end one early.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use poem::web::Data;
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
    types::{Any, ToJSON as _},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shared::{
    id::{JobId, SessionId, UserId, WorkerId},
    job::{self, JobState, JobView},
    jobs::JobFilter,
    principal::Principal,
    time::Timestamp,
};

use crate::{
    app::App,
    auth::{Admin, Authenticated, Chat, Read, Right as _},
    contract::{Bounded, Wire},
    error::ApiError,
    openapi::Tag,
};

/// The operations on jobs.
pub struct JobsApi;

/// A job: a message to the model, and what became of it.
#[derive(Clone, Debug, Object)]
pub struct Job {
    /// Its id.
    id: Wire<JobId>,
    /// How far it is. `running` may become `queued` again; the other three are final.
    status: Wire<JobState>,
    /// The conversation it belongs to.
    #[oai(nullable)]
    session_id: Option<Wire<SessionId>>,
    /// The model that answered, or was asked for.
    #[oai(nullable)]
    model: Option<String>,
    /// When it was accepted.
    created_at: Wire<Timestamp>,
    /// When it was last started.
    #[oai(nullable)]
    started_at: Option<Wire<Timestamp>>,
    /// When it ended.
    #[oai(nullable)]
    finished_at: Option<Wire<Timestamp>>,
    /// When somebody asked for its end.
    #[oai(nullable)]
    cancel_requested_at: Option<Wire<Timestamp>>,
    /// How often it was started.
    attempt: u32,
    /// What the model answered, once it completed.
    #[oai(nullable)]
    result: Option<JobResult>,
    /// Tokens of all its attempts.
    #[oai(nullable)]
    usage: Option<Usage>,
    /// What it cost so far.
    cost_usd: f64,
    /// Why it failed.
    #[oai(nullable)]
    error: Option<JobError>,
    /// How long each stage took.
    timings: Timings,
    /// Who runs it, or ran it last.
    #[oai(nullable)]
    worker_id: Option<Wire<WorkerId>>,
    /// The client's own words about it.
    metadata: BTreeMap<String, String>,
    /// The job that it tries again.
    #[oai(skip_serializing_if_is_none)]
    retry_of: Option<Wire<JobId>>,
    /// The job that tries it again.
    #[oai(skip_serializing_if_is_none)]
    retried_as: Option<Wire<JobId>>,
    /// Its place in the queue, while it waits and is looked at alone.
    #[oai(skip_serializing_if_is_none)]
    queue: Option<Queue>,
}

/// A place in the queue.
#[derive(Clone, Debug, Object)]
pub struct Queue {
    /// About how many jobs get a worker before it.
    pub position: u64,
    /// How long it will wait, where that can be guessed.
    #[oai(nullable)]
    pub estimated_wait_ms: Option<u64>,
}

/// What the model answered.
#[derive(Clone, Debug, Object)]
struct JobResult {
    /// Its last words.
    text: String,
    /// The answer in the form of the job's `output_schema`.
    #[oai(skip_serializing_if_is_none)]
    structured_output: Option<Any<Value>>,
    /// Why it stopped, in the Messages API's words.
    #[oai(nullable)]
    stop_reason: Option<String>,
    /// How many model calls it took.
    num_turns: u32,
    /// Tool calls that were refused.
    permission_denials: Vec<PermissionDenial>,
    /// Set where an event could not hold the whole text; the job has it.
    #[oai(default, skip_serializing_if = "is_false")]
    truncated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the derive calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// A tool call that was refused.
#[derive(Clone, Debug, Object)]
struct PermissionDenial {
    /// The tool.
    tool_name: String,
    /// The call.
    tool_use_id: String,
}

/// Tokens by kind, over all model calls of a job.
#[derive(Clone, Debug, Object)]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
pub struct Usage {
    /// Read by the model and not cached.
    input_tokens: u64,
    /// Written by the model.
    output_tokens: u64,
    /// Read from the provider's prompt cache.
    cache_read_tokens: u64,
    /// Written to the provider's prompt cache.
    cache_write_tokens: u64,
}

/// Why a job failed.
#[derive(Clone, Debug, Object)]
struct JobError {
    /// A stable word to switch on.
    code: String,
    /// A sentence for a person.
    detail: String,
    /// Whether the same job may pass when sent again.
    retryable: bool,
}

/// How long each stage took, in milliseconds. A stage that did not happen is null.
#[derive(Clone, Debug, Object)]
#[oai(nullable_all)]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
struct Timings {
    /// From acceptance to the last start.
    queued_ms: Option<u64>,
    /// From the start to a CLI that has taken the message.
    start_ms: Option<u64>,
    /// From the start to the first text.
    first_token_ms: Option<u64>,
    /// From the start to the end.
    run_ms: Option<u64>,
}

/// A page of jobs, newest first.
#[derive(Debug, Object)]
struct JobList {
    /// The jobs.
    data: Vec<Job>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
#[expect(clippy::large_enum_variant, reason = "made once for each answer and taken apart at once")]
enum GetJobResponse {
    /// The job as it is now.
    #[oai(status = 200)]
    Found(
        Json<Job>,
        /// Changes with the job.
        #[oai(header = "ETag")]
        String,
    ),
    /// The job is still as `If-None-Match` knows it.
    #[oai(status = 304)]
    NotModified(
        /// Changes with the job.
        #[oai(header = "ETag")]
        String,
    ),
}

#[derive(ApiResponse)]
enum CancelJobResponse {
    /// The job: ended, or about to.
    #[oai(status = 202)]
    Accepted(Json<Job>),
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Jobs")]
impl JobsApi {
    /// List your jobs, newest first.
    #[oai(path = "/jobs", method = "get", operation_id = "list_jobs")]
    async fn list_jobs(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// Only jobs with this status.
        status: Query<Option<Wire<JobState>>>,
        /// Only jobs of this conversation.
        session_id: Query<Option<Wire<SessionId>>>,
        /// The most jobs to answer; 20 if absent.
        limit: Query<Option<Wire<Bounded<1, 100>>>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<JobId>>>,
    ) -> Result<Json<JobList>, ApiError> {
        let limit = limit.0.map_or(20, |Wire(Bounded(limit))| limit);
        let (state, before) = (status.0.map(|Wire(state)| state), cursor.0.map(|Wire(id)| id));
        let session_id = session_id.0.map(|Wire(id)| id);
        let filter = JobFilter { state, session_id, dead_letters: false, before, limit };
        let page = app.jobs.list(auth.user_id(), filter).await?;
        let next_cursor = page.cursor().map(|id| id.to_string());
        Ok(Json(JobList { data: page.jobs.iter().map(|job| job.view().into()).collect(), next_cursor }))
    }

    /// Get a job.
    ///
    /// With `wait`, the answer comes when it has ended, or after so many seconds as it is then.
    #[oai(path = "/jobs/:id", method = "get", operation_id = "get_job")]
    async fn get_job(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// The job.
        id: Path<Wire<JobId>>,
        /// How many seconds to wait for the job's end.
        wait: Query<Option<Wire<Bounded<1, 60>>>>,
        /// The `ETag` of an earlier answer: the same job is then answered with 304 and no body.
        #[oai(name = "If-None-Match")]
        known: Header<Option<String>>,
    ) -> Result<GetJobResponse, ApiError> {
        let mut job = find(&app, auth.user_id(), id.0.0).await?;
        if let Some(Wire(Bounded(secs))) = wait.0
            && !job.state.is_terminal()
        {
            app.feeds.wait_for_end(&job, Duration::from_secs(secs.into())).await;
            job = find(&app, auth.user_id(), job.id).await?;
        }
        let body = Job::shown(&app, &job).await;
        let tag = body.tag();
        let same = known
            .0
            .is_some_and(|known| known.split(',').any(|one| matches!(one.trim(), "*") || one.trim().trim_start_matches("W/") == tag));
        Ok(if same { GetJobResponse::NotModified(tag) } else { GetJobResponse::Found(Json(body), tag) })
    }

    /// End a job early.
    ///
    /// A queued one is cancelled at once; a running one is about to be, and says so in
    /// `cancel_requested_at`; one that has ended stays as it is.
    #[oai(path = "/jobs/:id/cancel", method = "post", operation_id = "cancel_job")]
    async fn cancel_job(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        /// The job.
        id: Path<Wire<JobId>>,
    ) -> Result<CancelJobResponse, ApiError> {
        let job = app.jobs.cancel(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        Ok(CancelJobResponse::Accepted(Json(Job::shown(&app, &job).await)))
    }
}

/// Whether `principal` may see a job of `owner`: their own, and admins everybody's.
pub fn judge(principal: &Principal, owner: UserId) -> Result<(), ApiError> {
    if principal.user_id() == owner { Ok(()) } else { Admin::judge(principal) }
}

/// A job of `user`.
pub async fn find(app: &App, user: UserId, id: JobId) -> Result<job::Job, ApiError> {
    app.jobs.find(user, id).await?.ok_or_else(ApiError::not_found)
}

impl Job {
    /// `job` as it is shown alone: with its place while it waits.
    pub async fn shown(app: &App, job: &job::Job) -> Self {
        let waits = job.state == JobState::Queued;
        // The job is what was asked for; without its place it is still that.
        let place = if waits { app.jobs.place(job).await.ok() } else { None };
        let queue = place.map(|place| Queue { position: place.position, estimated_wait_ms: place.estimated_wait_ms() });
        Self { queue, ..job.view().into() }
    }

    /// A word that changes with everything in the answer.
    fn tag(&self) -> String {
        let hash = Sha256::digest(self.to_json_string());
        format!("\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(&hash[..16]))
    }
}

impl From<JobView> for Job {
    fn from(view: JobView) -> Self {
        Self {
            id: Wire(view.id),
            status: Wire(view.status),
            session_id: view.session_id.map(Wire),
            model: view.model,
            created_at: Wire(view.created_at),
            started_at: view.started_at.map(Wire),
            finished_at: view.finished_at.map(Wire),
            cancel_requested_at: view.cancel_requested_at.map(Wire),
            attempt: view.attempt,
            result: view.result.map(JobResult::from),
            usage: view.usage.map(Usage::from),
            cost_usd: view.cost_usd,
            error: view.error.map(|job::JobError { code, detail, retryable }| JobError { code, detail, retryable }),
            timings: view.timings.into(),
            worker_id: view.worker_id.map(Wire),
            metadata: view.metadata,
            retry_of: view.retry_of.map(Wire),
            retried_as: view.retried_as.map(Wire),
            queue: None,
        }
    }
}

impl From<job::JobResult> for JobResult {
    fn from(result: job::JobResult) -> Self {
        let job::JobResult { text, structured_output, stop_reason, num_turns, permission_denials, truncated } = result;
        let denial = |job::PermissionDenial { tool_name, tool_use_id }| PermissionDenial { tool_name, tool_use_id };
        let structured_output = structured_output.map(Any);
        Self {
            text,
            structured_output,
            stop_reason,
            num_turns,
            permission_denials: permission_denials.into_iter().map(denial).collect(),
            truncated,
        }
    }
}

impl From<job::Usage> for Usage {
    fn from(usage: job::Usage) -> Self {
        let job::Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens } = usage;
        Self { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens }
    }
}

impl From<job::Timings> for Timings {
    fn from(timings: job::Timings) -> Self {
        let job::Timings { queued_ms, start_ms, first_token_ms, run_ms } = timings;
        Self { queued_ms, start_ms, first_token_ms, run_ms }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn views() -> [JobView; 2] {
        let bare = json!({
            "id": "job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b", "status": "queued", "session_id": null, "model": null,
            "created_at": "2026-11-22T18:04:05.007Z", "started_at": null, "finished_at": null, "cancel_requested_at": null,
            "attempt": 0, "result": null, "usage": null, "cost_usd": 0.0, "error": null,
            "timings": {"queued_ms": null, "start_ms": null, "first_token_ms": null, "run_ms": null},
            "worker_id": null, "metadata": {},
        });
        let mut full = bare.clone();
        for (field, value) in [
            ("status", json!("failed")),
            ("session_id", json!("sess_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b")),
            ("model", json!("sonnet")),
            ("started_at", json!("2026-11-22T18:04:06.000Z")),
            ("finished_at", json!("2026-11-22T18:04:07.000Z")),
            ("cancel_requested_at", json!("2026-11-22T18:04:06.500Z")),
            ("attempt", json!(3)),
            (
                "result",
                json!({"text": "a", "stop_reason": "end_turn", "num_turns": 2, "truncated": true,
                       "permission_denials": [{"tool_name": "Bash", "tool_use_id": "toolu_1"}]}),
            ),
            ("usage", json!({"input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4})),
            ("cost_usd", json!(0.25)),
            ("error", json!({"code": "interrupted", "detail": "lost", "retryable": true})),
            ("timings", json!({"queued_ms": 1, "start_ms": 2, "first_token_ms": 3, "run_ms": 4})),
            ("worker_id", json!("worker_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b")),
            ("metadata", json!({"k": "v"})),
            ("retry_of", json!("job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5c")),
            ("retried_as", json!("job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5d")),
        ] {
            full[field] = value;
        }
        [bare, full].map(|value| serde_json::from_value(value).expect("a job as shared reads it"))
    }

    #[test]
    fn a_job_in_an_answer_is_the_job_of_its_last_event() {
        for view in views() {
            let shared: Value = serde_json::to_value(&view).expect("serialise");

            assert_eq!(Job::from(view).to_json(), Some(shared));
        }
    }

    #[test]
    fn a_tag_changes_with_the_job_alone() {
        let [bare, full] = views().map(Job::from);

        assert_eq!(bare.tag(), bare.clone().tag());
        assert_ne!(bare.tag(), full.tag());
        assert!(bare.tag().starts_with('"') && bare.tag().ends_with('"'));
    }
}
