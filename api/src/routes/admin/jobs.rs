//! Everybody's jobs, and those of them that were given up after all their tries.

use poem::{Request, web::Data};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
};
use serde_json::json;
use shared::{
    audit::Action,
    event::EventId,
    id::{ApiKeyId, JobId, SessionId, UserId},
    job::{self, JobState},
    jobs::JobFilter,
};

use super::users;
use crate::{
    app::App,
    auth::{Admin, Authenticated},
    contract::{Bounded, LastEventId, Wire},
    error::ApiError,
    openapi::Tag,
    page::Limit,
    routes::{
        chat::reservation,
        events::{self, GetEventsResponse},
        jobs::Job,
    },
};

/// The operations on everybody's jobs.
pub struct AllJobsApi;

/// A job, and whose it is.
#[derive(Debug, Object)]
struct UserJob {
    #[oai(flatten)]
    job: Job,
    /// Whose it is.
    user_id: Wire<UserId>,
    /// The key it was sent with.
    #[oai(nullable)]
    api_key_id: Option<Wire<ApiKeyId>>,
    /// Whether it was given up after all its tries.
    dead_letter: bool,
}

/// A page of everybody's jobs, newest first.
#[derive(Debug, Object)]
struct UserJobList {
    /// The jobs.
    data: Vec<UserJob>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<JobId>>,
}

#[derive(ApiResponse)]
enum CancelAnyJobResponse {
    /// The job: ended, or about to.
    #[oai(status = 202)]
    Accepted(Json<UserJob>),
}

#[derive(ApiResponse)]
enum RetryDeadLetterResponse {
    /// The job that tries it again.
    #[oai(status = 202)]
    Accepted(
        Json<UserJob>,
        /// Where it is.
        #[oai(header = "Location")]
        String,
    ),
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl AllJobsApi {
    /// List everybody's jobs, newest first.
    #[oai(path = "/jobs", method = "get", operation_id = "list_all_jobs")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter of the contract")]
    async fn list_all_jobs(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// Only jobs with this status.
        status: Query<Option<Wire<JobState>>>,
        /// Only jobs of this account.
        user_id: Query<Option<Wire<UserId>>>,
        /// Only jobs of this conversation.
        session_id: Query<Option<Wire<SessionId>>>,
        /// The most jobs to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<JobId>>>,
    ) -> Result<Json<UserJobList>, ApiError> {
        let state = status.0.map(|Wire(state)| state);
        let filter = Filter { user: user_id.0, session: session_id.0, state, dead_letters: false };
        Ok(Json(list(&app, filter, limit.0, cursor.0).await?))
    }

    /// Get anybody's job.
    #[oai(path = "/jobs/:id", method = "get", operation_id = "get_any_job")]
    async fn get_any_job(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The job.
        id: Path<Wire<JobId>>,
    ) -> Result<Json<UserJob>, ApiError> {
        let job = find(&app, id.0.0).await?;
        Ok(Json(UserJob::shown(&app, &job).await))
    }

    /// Follow anybody's job's events.
    ///
    /// As its owner can: a stream that can be resumed, or with `Accept: application/json` a list.
    #[oai(path = "/jobs/:id/events", method = "get", operation_id = "get_any_job_events")]
    async fn get_any_job_events(
        &self,
        auth: Authenticated<Admin>,
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
        let after = events::resumed(request.headers(), last_event_id.0, after.0)?;
        let job = find(&app, id.0.0).await?;
        events::answer(&app, auth.principal(), request.headers(), &job, after).await
    }

    /// End anybody's job early.
    ///
    /// As its owner can: a queued one at once, a running one soon, and one that has ended stays as it is.
    #[oai(path = "/jobs/:id/cancel", method = "post", operation_id = "cancel_any_job")]
    async fn cancel_any_job(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The job.
        id: Path<Wire<JobId>>,
    ) -> Result<CancelAnyJobResponse, ApiError> {
        let job = find(&app, id.0.0).await?;
        if !job.state.is_terminal() && job.cancel_requested_at.is_none() {
            // Noted first: an entry too many is better than an end that nobody is seen to have asked for.
            let detail = json!({ "user_id": job.user_id });
            app.audit.note(auth.by(), Action::JobCancel, Some(job.id.to_string()), Some(detail)).await?;
        }
        let job = app.jobs.cancel(job.user_id, job.id).await?.ok_or_else(ApiError::not_found)?;
        Ok(CancelAnyJobResponse::Accepted(Json(UserJob::shown(&app, &job).await)))
    }

    /// List the jobs that were given up after all their tries, newest first.
    #[oai(path = "/dead-letters", method = "get", operation_id = "list_dead_letters")]
    async fn list_dead_letters(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The most jobs to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<JobId>>>,
    ) -> Result<Json<UserJobList>, ApiError> {
        let filter = Filter { user: None, session: None, state: None, dead_letters: true };
        Ok(Json(list(&app, filter, limit.0, cursor.0).await?))
    }

    /// Try a dead letter again.
    ///
    /// The answer is a new job of the same user, within their budget. It is made once: asked again, the answer is
    /// the same job. Any other job is refused with `not_a_dead_letter`.
    #[oai(path = "/dead-letters/:id/retry", method = "post", operation_id = "retry_dead_letter")]
    async fn retry_dead_letter(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The dead letter.
        id: Path<Wire<JobId>>,
    ) -> Result<RetryDeadLetterResponse, ApiError> {
        let dead_letter = find(&app, id.0.0).await?;
        let owner = users::find(&app, dead_letter.user_id).await?;
        let reservation = reservation(&owner.limits, &dead_letter.spec, app.config.default_job_budget);
        let retry = app.jobs.retry(dead_letter.id, reservation, &auth.by()).await?.ok_or_else(ApiError::not_found)?.job;
        let location = format!("/api/admin/jobs/{}", retry.id);
        Ok(RetryDeadLetterResponse::Accepted(Json(UserJob::shown(&app, &retry).await), location))
    }
}

struct Filter {
    user: Option<Wire<UserId>>,
    session: Option<Wire<SessionId>>,
    state: Option<JobState>,
    dead_letters: bool,
}

async fn list(app: &App, filter: Filter, limit: Limit, cursor: Option<Wire<JobId>>) -> Result<UserJobList, ApiError> {
    let limit = limit.map_or(20, |Wire(Bounded(limit))| limit);
    let Filter { user, session, state, dead_letters } = filter;
    let (session_id, before) = (session.map(|Wire(id)| id), cursor.map(|Wire(id)| id));
    let filter = JobFilter { state, session_id, dead_letters, before, limit };
    let page = app.jobs.list_all(user.map(|Wire(id)| id), filter).await?;
    let next_cursor = page.cursor().map(Wire);
    Ok(UserJobList { data: page.jobs.iter().map(|job| UserJob::of(job.view().into(), job)).collect(), next_cursor })
}

async fn find(app: &App, id: JobId) -> Result<job::Job, ApiError> {
    app.jobs.peek(id).await?.ok_or_else(ApiError::not_found)
}

impl UserJob {
    fn of(shown: Job, job: &job::Job) -> Self {
        Self { job: shown, user_id: Wire(job.user_id), api_key_id: job.api_key_id.map(Wire), dead_letter: job.dead_letter }
    }

    /// `job` as it is shown alone: with its place while it waits.
    async fn shown(app: &App, job: &job::Job) -> Self {
        Self::of(Job::shown(app, job).await, job)
    }
}
