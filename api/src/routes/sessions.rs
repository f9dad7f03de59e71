//! Conversations: what several jobs say one after the other, whichever worker runs them.

use std::collections::BTreeMap;

use poem::web::Data;
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::{Any, MaybeUndefined},
};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    id::{JobId, SessionId},
    image::ImageSource,
    job::{self, ContentBlock, Message},
    principal::Principal,
    session::{self, NewSession, SessionChange, SessionFigures},
    time::Timestamp,
};

use crate::{
    app::App,
    auth::{Authenticated, Chat, Read},
    body::{Check, Checked, Faults, present},
    contract::{Bounded, McpServerName, Metadata, ToolName, Wire},
    error::{ApiError, FieldError},
    openapi::Tag,
    page::{Limit, Page},
    routes::{
        chat::{
            body::{check_mcp_servers, check_metadata, check_model, check_tools},
            check_models,
        },
        jobs::Usage,
        tools,
    },
};

const MAX_TITLE_CHARS: usize = 200;
/// A list shows a hundred of them.
const MAX_PROMPT_CHARS: usize = 100_000;

/// The most turns of a page: each may be large.
pub type TurnLimit = Option<Wire<Bounded<1, 20>>>;

/// The operations on conversations.
pub struct SessionsApi;

/// A conversation to be. What it says holds for all its jobs that do not say otherwise.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct CreateSession {
    /// What you call it.
    #[oai(nullable, validator(min_length = 1, max_length = 200, pattern = r"^[^\x00]*$"))]
    title: Option<String>,
    /// The model, by name or alias; the CLI's default if absent.
    #[oai(nullable, validator(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$"))]
    model: Option<String>,
    /// The system prompt. It stays.
    #[oai(nullable, validator(max_length = 100_000, pattern = r"^[^\x00]*$"))]
    system_prompt: Option<String>,
    /// The tools its jobs may use, and use when they name none. No bound if absent, none if empty.
    #[oai(nullable, validator(max_items = 64))]
    tools: Option<Vec<Wire<ToolName>>>,
    /// The MCP servers its jobs may use, and use when they name none. No bound if absent, none if empty.
    #[oai(nullable, validator(max_items = 16))]
    mcp_servers: Option<Vec<Wire<McpServerName>>>,
    /// Your own words about it: at most 16 pairs. Its jobs get them too.
    #[serde(default, deserialize_with = "present")]
    metadata: Option<Wire<Metadata>>,
}

/// What to change of a conversation; what is absent stays.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct UpdateSession {
    /// What you call it; null for nothing.
    #[serde(default)]
    #[oai(nullable, validator(min_length = 1, max_length = 200, pattern = r"^[^\x00]*$"))]
    title: MaybeUndefined<String>,
    /// The model of its next jobs; null for the CLI's default.
    #[serde(default)]
    #[oai(nullable, validator(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$"))]
    model: MaybeUndefined<String>,
    /// The tools its jobs may use, and use when they name none, also those that wait; null for no bound.
    #[serde(default)]
    #[oai(nullable, validator(max_items = 64))]
    tools: MaybeUndefined<Vec<Wire<ToolName>>>,
    /// The MCP servers its jobs may use, and use when they name none; null for no bound.
    #[serde(default)]
    #[oai(nullable, validator(max_items = 16))]
    mcp_servers: MaybeUndefined<Vec<Wire<McpServerName>>>,
    /// Your own words about it, in the place of those before.
    #[serde(default, deserialize_with = "present")]
    metadata: Option<Wire<Metadata>>,
    /// Whether it takes no more jobs and no files.
    #[serde(default, deserialize_with = "present")]
    archived: Option<bool>,
}

/// A conversation.
#[derive(Debug, Object)]
pub struct Session {
    /// Its id.
    id: Wire<SessionId>,
    /// What its owner calls it.
    #[oai(nullable)]
    title: Option<String>,
    /// The model of jobs that name none.
    #[oai(nullable)]
    model: Option<String>,
    /// The system prompt of jobs that have none.
    #[oai(nullable)]
    system_prompt: Option<String>,
    /// The tools its jobs may use; null: no bound.
    #[oai(nullable)]
    tools: Option<Vec<String>>,
    /// The MCP servers its jobs may use; null: no bound.
    #[oai(nullable)]
    mcp_servers: Option<Vec<String>>,
    /// Its owner's own words about it.
    metadata: BTreeMap<String, String>,
    /// Whether it takes no more jobs and no files.
    archived: bool,
    /// How many jobs it had, however they ended.
    jobs: u64,
    /// How many of them have not ended.
    active_jobs: u64,
    /// How many of them completed: the turns that the conversation consists of.
    turns: u64,
    /// Tokens of all its jobs.
    usage: Usage,
    /// What they cost.
    cost_usd: f64,
    /// How large the transcript is that the next turn goes on from.
    transcript_bytes: u64,
    /// How many files its workspace has.
    files: u64,
    /// How large they are together.
    workspace_bytes: u64,
    /// When it was made.
    created_at: Wire<Timestamp>,
    /// When it was last changed by its owner.
    updated_at: Wire<Timestamp>,
    /// When something last happened to a job of it.
    #[oai(nullable)]
    last_activity_at: Option<Wire<Timestamp>>,
}

/// A page of conversations, newest first.
#[derive(Debug, Object)]
struct SessionList {
    /// The conversations.
    data: Vec<Session>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<SessionId>>,
}

/// One side of a turn.
#[derive(Debug, Object)]
struct SessionMessage {
    /// Who speaks: `user` or `assistant`.
    role: String,
    /// What is said: text, or content blocks. Of a picture only the type and the size are told.
    content: Any<Value>,
    /// The answer in the form of the job's `output_schema`.
    #[oai(skip_serializing_if_is_none)]
    structured_output: Option<Any<Value>>,
    /// The job that this is of. Its events tell what the model did in between.
    job_id: Wire<JobId>,
    /// The model that answered.
    #[oai(skip_serializing_if_is_none)]
    model: Option<String>,
    /// When it was said.
    at: Wire<Timestamp>,
}

/// A page of a conversation, newest first: of each turn the answer, then the question.
#[derive(Debug, Object)]
pub struct MessageList {
    /// What was said.
    data: Vec<SessionMessage>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<JobId>>,
}

#[derive(ApiResponse)]
enum CreateSessionResponse {
    /// The conversation.
    #[oai(status = 201)]
    Created(
        Json<Session>,
        /// Where it is.
        #[oai(header = "Location")]
        String,
    ),
}

/// The answer to who deletes a conversation.
#[derive(ApiResponse)]
pub enum DeleteSessionResponse {
    /// It takes no more jobs, those it had are cancelled, and its transcript and files are removed.
    #[oai(status = 204)]
    Deleted,
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Sessions")]
impl SessionsApi {
    /// Begin a conversation.
    ///
    /// Its id goes into `session_id` of a job. Jobs of one conversation run one at a time, in the order of
    /// their arrival, on any worker, and each goes on from the last one that completed.
    #[oai(path = "/sessions", method = "post", operation_id = "create_session")]
    async fn create_session(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        body: Checked<CreateSession>,
    ) -> Result<CreateSessionResponse, ApiError> {
        let new = body.0.into_new();
        check_offered(&app, &auth, new.model.as_deref(), new.tools.as_deref(), new.mcp_servers.as_deref()).await?;
        let made = app.sessions.create(auth.user_id(), &new).await?;
        let location = format!("/api/sessions/{}", made.id);
        Ok(CreateSessionResponse::Created(Json((made, SessionFigures::default()).into()), location))
    }

    /// List your conversations, newest first.
    #[oai(path = "/sessions", method = "get", operation_id = "list_sessions")]
    async fn list_sessions(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// The most conversations to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<SessionId>>>,
    ) -> Result<Json<SessionList>, ApiError> {
        let page = Page::of(limit.0);
        let mut found = app.sessions.list(auth.user_id(), cursor.0.map(|Wire(id)| id), page.rows()).await?;
        let next_cursor = page.cut(&mut found).map(|(session, _)| Wire(session.id));
        Ok(Json(SessionList { data: found.into_iter().map(Session::from).collect(), next_cursor }))
    }

    /// Get a conversation.
    #[oai(path = "/sessions/:id", method = "get", operation_id = "get_session")]
    async fn get_session(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
    ) -> Result<Json<Session>, ApiError> {
        let found = app.sessions.look(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(found.into()))
    }

    /// Change a conversation.
    ///
    /// Jobs that were accepted keep their model; tools are asked for when a job starts.
    #[oai(path = "/sessions/:id", method = "put", operation_id = "update_session")]
    async fn update_session(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        body: Checked<UpdateSession>,
    ) -> Result<Json<Session>, ApiError> {
        let change = body.0.into_change();
        let (model, tools) = (change.model.as_ref().and_then(Option::as_deref), change.tools.as_ref().and_then(Option::as_deref));
        check_offered(&app, &auth, model, tools, change.mcp_servers.as_ref().and_then(Option::as_deref)).await?;
        app.sessions.update(auth.user_id(), id.0.0, change).await?.ok_or_else(ApiError::not_found)?;
        let found = app.sessions.look(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(found.into()))
    }

    /// Delete a conversation.
    ///
    /// What was used stays in the accounts, and its jobs stay in the list of your jobs.
    #[oai(path = "/sessions/:id", method = "delete", operation_id = "delete_session")]
    async fn delete_session(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
    ) -> Result<DeleteSessionResponse, ApiError> {
        let was_there = app.sessions.delete(auth.user_id(), id.0.0).await?;
        if was_there { Ok(DeleteSessionResponse::Deleted) } else { Err(ApiError::not_found()) }
    }

    /// Read a conversation, newest first.
    ///
    /// It consists of the jobs that completed: a page holds both sides of as many turns as `limit` says.
    #[oai(path = "/sessions/:id/messages", method = "get", operation_id = "list_session_messages")]
    async fn list_session_messages(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        /// The most turns to answer; 20 if absent.
        limit: Query<TurnLimit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<JobId>>>,
    ) -> Result<Json<MessageList>, ApiError> {
        app.sessions.find(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(messages(&app, id.0.0, limit.0, cursor.0).await?))
    }
}

/// A page of the conversation `id`.
pub async fn messages(app: &App, id: SessionId, limit: TurnLimit, cursor: Option<Wire<JobId>>) -> Result<MessageList, ApiError> {
    let page = Page::of(limit);
    let mut turns = app.sessions.turns(id, cursor.map(|Wire(id)| id), page.rows()).await?;
    let next_cursor = page.cut(&mut turns).map(|job| Wire(job.id));
    Ok(MessageList { data: turns.into_iter().flat_map(SessionMessage::of_turn).collect(), next_cursor })
}

fn names(tools: Vec<Wire<ToolName>>) -> Vec<String> {
    tools.into_iter().map(|Wire(ToolName(name))| name).collect()
}

impl CreateSession {
    fn into_new(self) -> NewSession {
        NewSession {
            title: self.title,
            model: self.model,
            system_prompt: self.system_prompt,
            tools: self.tools.map(names),
            mcp_servers: self.mcp_servers.map(server_names),
            metadata: self.metadata.map(|Wire(Metadata(metadata))| metadata).unwrap_or_default(),
        }
    }
}

impl UpdateSession {
    fn into_change(self) -> SessionChange {
        let tools: Option<Option<Vec<Wire<ToolName>>>> = self.tools.into();
        let servers: Option<Option<Vec<Wire<McpServerName>>>> = self.mcp_servers.into();
        SessionChange {
            title: self.title.into(),
            model: self.model.into(),
            tools: tools.map(|tools| tools.map(names)),
            mcp_servers: servers.map(|servers| servers.map(server_names)),
            metadata: self.metadata.map(|Wire(Metadata(metadata))| metadata),
            archived: self.archived,
        }
    }
}

fn server_names(servers: Vec<Wire<McpServerName>>) -> Vec<String> {
    servers.into_iter().map(|Wire(McpServerName(name))| name).collect()
}

/// What is wrong with the settings that a conversation begins with, or is to have.
fn faults_of<'a>(
    title: Option<&str>,
    system_prompt: Option<&str>,
    model: Option<&str>,
    tools: Option<&'a Vec<Wire<ToolName>>>,
    mcp_servers: Option<&'a Vec<Wire<McpServerName>>>,
    metadata: Option<&Wire<Metadata>>,
) -> Faults {
    let mut faults = Faults::default();
    let is_right = title.is_none_or(|title| (1..=MAX_TITLE_CHARS).contains(&title.chars().count()));
    faults.unless(is_right, "/title", format!("must be 1 to {MAX_TITLE_CHARS} characters"));
    let is_short = system_prompt.is_none_or(|prompt| prompt.chars().nth(MAX_PROMPT_CHARS).is_none());
    faults.unless(is_short, "/system_prompt", format!("must be at most {MAX_PROMPT_CHARS} characters"));
    check_model(&mut faults, "/model", model);
    check_tools(&mut faults, tools.into_iter().flatten().map(|Wire(ToolName(name))| name.as_str()));
    check_mcp_servers(&mut faults, mcp_servers.into_iter().flatten().map(|Wire(McpServerName(name))| name.as_str()));
    if let Some(Wire(Metadata(metadata))) = metadata {
        check_metadata(&mut faults, metadata);
    }
    faults
}

impl Check for CreateSession {
    fn check(&self) -> Vec<FieldError> {
        let Self { title, model, system_prompt, tools, mcp_servers, metadata } = self;
        let (title, system_prompt, model) = (title.as_deref(), system_prompt.as_deref(), model.as_deref());
        faults_of(title, system_prompt, model, tools.as_ref(), mcp_servers.as_ref(), metadata.as_ref()).into()
    }
}

impl Check for UpdateSession {
    fn check(&self) -> Vec<FieldError> {
        let (title, model) = (self.title.value().map(String::as_str), self.model.value().map(String::as_str));
        faults_of(title, None, model, self.tools.value(), self.mcp_servers.value(), self.metadata.as_ref()).into()
    }
}

/// Refuse settings of which this service, or the key, has nothing.
async fn check_offered(
    app: &App,
    principal: &Principal,
    model: Option<&str>,
    tools: Option<&[String]>,
    mcp_servers: Option<&[String]>,
) -> Result<(), ApiError> {
    check_models(&app.config.models, [("/model", model)])?;
    tools::check(app, principal, None, tools.unwrap_or_default()).await?;
    tools::check_mcp_servers(app, principal, None, mcp_servers.unwrap_or_default()).await
}

impl From<(session::Session, SessionFigures)> for Session {
    fn from((session, figures): (session::Session, SessionFigures)) -> Self {
        Self {
            id: Wire(session.id),
            title: session.title,
            model: session.model,
            system_prompt: session.system_prompt,
            tools: session.tools,
            mcp_servers: session.mcp_servers,
            metadata: session.metadata,
            archived: session.archived,
            jobs: figures.jobs,
            active_jobs: figures.active_jobs,
            turns: figures.turns,
            usage: figures.usage.into(),
            cost_usd: figures.cost.usd(),
            transcript_bytes: figures.transcript_bytes,
            files: figures.files,
            workspace_bytes: figures.workspace_bytes,
            created_at: Wire(session.created_at),
            updated_at: Wire(session.updated_at),
            last_activity_at: figures.last_activity_at.map(Wire),
        }
    }
}

impl SessionMessage {
    /// Both sides of a completed job, the later first.
    fn of_turn(job: job::Job) -> [Self; 2] {
        let result = job.result.unwrap_or_default();
        let answer = Self {
            role: "assistant".to_owned(),
            content: Any(result.text.into()),
            structured_output: result.structured_output.map(Any),
            job_id: Wire(job.id),
            model: job.model,
            at: Wire(job.finished_at.unwrap_or(job.created_at)),
        };
        let question = Self {
            role: "user".to_owned(),
            content: Any(shown(job.spec.message)),
            structured_output: None,
            job_id: Wire(job.id),
            model: None,
            at: Wire(job.created_at),
        };
        [answer, question]
    }
}

/// A message without its pictures: a page of them could be a hundred megabytes.
fn shown(message: Message) -> Value {
    let block = |block: ContentBlock| match block {
        ContentBlock::Text { text } => json!({"type": "text", "text": text}),
        ContentBlock::Image { source } => {
            let ImageSource::Base64 { media_type, data } = source;
            json!({"type": "image", "media_type": media_type, "bytes": data.len() / 4 * 3})
        }
    };
    match message {
        Message::Text(text) => text.into(),
        Message::Blocks(blocks) => blocks.into_iter().map(block).collect(),
    }
}
