//! Everybody's conversations.

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use serde_json::json;
use shared::{
    audit::{Action, By},
    id::{JobId, SessionId, UserId},
    session::{self, SessionFigures},
};

use crate::{
    app::App,
    auth::{Admin, Authenticated},
    contract::Wire,
    error::ApiError,
    openapi::Tag,
    page::{Limit, Page},
    routes::sessions::{self, DeleteSessionResponse, MessageList, Session, TurnLimit},
};

/// The operations on everybody's conversations.
pub struct AllSessionsApi;

/// A conversation, and whose it is.
#[derive(Debug, Object)]
struct UserSession {
    #[oai(flatten)]
    session: Session,
    /// Whose it is.
    user_id: Wire<UserId>,
}

/// A page of everybody's conversations, newest first.
#[derive(Debug, Object)]
struct UserSessionList {
    /// The conversations.
    data: Vec<UserSession>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<SessionId>>,
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl AllSessionsApi {
    /// List everybody's conversations, newest first.
    #[oai(path = "/sessions", method = "get", operation_id = "list_all_sessions")]
    async fn list_all_sessions(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// Only conversations of this account.
        user_id: Query<Option<Wire<UserId>>>,
        /// The most conversations to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<SessionId>>>,
    ) -> Result<Json<UserSessionList>, ApiError> {
        let page = Page::of(limit.0);
        let (user, before) = (user_id.0.map(|Wire(id)| id), cursor.0.map(|Wire(id)| id));
        let mut found = app.sessions.list_all(user, before, page.rows()).await?;
        let next_cursor = page.cut(&mut found).map(|(session, _)| Wire(session.id));
        Ok(Json(UserSessionList { data: found.into_iter().map(UserSession::from).collect(), next_cursor }))
    }

    /// Get anybody's conversation.
    #[oai(path = "/sessions/:id", method = "get", operation_id = "get_any_session")]
    async fn get_any_session(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
    ) -> Result<Json<UserSession>, ApiError> {
        Ok(Json(find(&app, id.0.0).await?.into()))
    }

    /// Delete anybody's conversation.
    ///
    /// What was used stays in the accounts, and its jobs stay in the lists of jobs.
    #[oai(path = "/sessions/:id", method = "delete", operation_id = "delete_any_session")]
    async fn delete_any_session(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
    ) -> Result<DeleteSessionResponse, ApiError> {
        let (session, _) = find(&app, id.0.0).await?;
        // Noted first: an entry too many is better than a loss that nobody is seen to have asked for.
        note(&app, auth.by(), Action::SessionDelete, &session).await?;
        let was_there = app.sessions.delete(session.user_id, session.id).await?;
        if was_there { Ok(DeleteSessionResponse::Deleted) } else { Err(ApiError::not_found()) }
    }

    /// Read anybody's conversation, newest first.
    ///
    /// That another user's was read is noted in the audit log, each page of it.
    #[oai(path = "/sessions/:id/messages", method = "get", operation_id = "list_any_session_messages")]
    async fn list_any_session_messages(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        /// The most turns to answer; 20 if absent.
        limit: Query<TurnLimit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<JobId>>>,
    ) -> Result<Json<MessageList>, ApiError> {
        let (session, _) = find(&app, id.0.0).await?;
        if session.user_id != auth.user_id() {
            note(&app, auth.by(), Action::SessionRead, &session).await?;
        }
        Ok(Json(sessions::messages(&app, id.0.0, limit.0, cursor.0).await?))
    }
}

async fn find(app: &App, id: SessionId) -> Result<(session::Session, SessionFigures), ApiError> {
    app.sessions.peek(id).await?.ok_or_else(ApiError::not_found)
}

async fn note(app: &App, by: By, action: Action, session: &session::Session) -> Result<(), ApiError> {
    let detail = json!({ "user_id": session.user_id });
    Ok(app.audit.note(by, action, Some(session.id.to_string()), Some(detail)).await?)
}

impl From<(session::Session, SessionFigures)> for UserSession {
    fn from(found: (session::Session, SessionFigures)) -> Self {
        Self { user_id: Wire(found.0.user_id), session: found.into() }
    }
}
