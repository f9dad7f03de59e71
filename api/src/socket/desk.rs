//! What a socket does for its client, as operations do it for requests: with the same rights, and counted the
//! same.

use std::sync::Arc;

use poem_openapi::types::ToJSON as _;
use serde_json::{Map, Value, json};
use shared::{event::EventId, id::JobId, principal::Principal, trace::Span, trace_context::TraceContext};
use tracing::{Instrument as _, info_span};

use crate::{
    app::App,
    auth::{Authenticated, Chat, Read, Right as _},
    client_address::ClientAddress,
    error::{ApiError, Code},
    limit,
    routes::{
        chat::{self, body::CreateChat},
        jobs::{self, Job},
    },
    watch::Watch,
};

/// Does what a client wants.
pub struct Desk {
    /// With this.
    pub app: App,
    /// Where the client is.
    pub from: ClientAddress,
}

/// What came of something a client wanted.
#[derive(Default)]
pub struct Done {
    /// What is said about it.
    pub answer: Map<String, Value>,
    /// What is followed from now on.
    pub watch: Option<Watch>,
}

impl Done {
    /// No more than `answer`, an object.
    pub fn saying(answer: Value) -> Self {
        Self { answer: fields(answer), watch: None }
    }

    fn is_replayed(&self) -> bool {
        self.answer.get("replayed") == Some(&Value::Bool(true))
    }
}

fn fields(answer: Value) -> Map<String, Value> {
    match answer {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

impl Desk {
    /// Follow a job from after one of its events: one's own, or as an admin anybody's. The caller sees to it that
    /// there is room.
    pub async fn subscribe(&self, principal: &Arc<Principal>, job: JobId, after: Option<EventId>) -> Result<Done, ApiError> {
        Read::judge(principal)?;
        self.counted(
            principal,
            Box::pin(async {
                let job = self.app.jobs.peek(job).await?.filter(|job| jobs::judge(principal, job.user_id).is_ok());
                let job = job.ok_or_else(ApiError::not_found)?;
                let watch = Watch::open(&self.app.feeds, &job, after).await?;
                // Whoever has everything need not wait for more.
                Ok(Done { answer: fields(json!({"job_id": job.id, "ended": watch.is_none()})), watch })
            }),
        )
        .await
    }

    /// Ask the model, and follow the job if `body` says so.
    pub async fn chat(&self, principal: &Arc<Principal>, body: CreateChat, key: Option<String>) -> Result<Done, ApiError> {
        let auth = Authenticated::<Chat>::of(principal, self.from)?;
        self.counted(
            principal,
            Box::pin(async {
                let streams = body.stream;
                // A socket lives for hours: each job is a trace of its own.
                let told = Span::server(|| "chat /api/ws".to_owned(), None);
                let trace = told.context();
                let span = info_span!("message", trace_id = trace.as_ref().map(TraceContext::trace_id));
                let submitted = chat::submit(&self.app, &auth, body, key, trace).instrument(span).await?;
                drop(told);
                let watch = if streams { Watch::open(&self.app.feeds, &submitted.job, None).await? } else { None };
                let job = Job::shown(&self.app, &submitted.job).await.to_json();
                Ok(Done { answer: fields(json!({"job": job, "replayed": submitted.replayed})), watch })
            }),
        )
        .await
    }

    /// Ask for the end of a job.
    pub async fn cancel(&self, principal: &Arc<Principal>, job: JobId) -> Result<Done, ApiError> {
        let auth = Authenticated::<Chat>::of(principal, self.from)?;
        self.counted(
            principal,
            Box::pin(async {
                let job = self.app.jobs.cancel(auth.user_id(), job).await?.ok_or_else(ApiError::not_found)?;
                Ok(Done::saying(json!({"job": Job::shown(&self.app, &job).await.to_json()})))
            }),
        )
        .await
    }

    /// Do what counts as a request does.
    async fn counted(&self, principal: &Principal, act: impl Future<Output = Result<Done, ApiError>>) -> Result<Done, ApiError> {
        let (limits, default) = (&self.app.limits, self.app.config.default_rate_limit_per_hour);
        let granted = limit::admit(limits, default, principal).await?;
        let done = act.await;
        let is_free = done.as_ref().map_or_else(|error| limit::is_free(error.code().status()), Done::is_replayed);
        granted.settle(limits, is_free).await;
        done
    }
}

/// Nothing more can be followed here.
pub fn too_many_subscriptions() -> ApiError {
    ApiError::new(Code::TooManySubscriptions, "this socket follows as many jobs as one may: unsubscribe from one, or open another socket")
}
