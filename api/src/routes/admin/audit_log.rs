//! Who did what, to whom, when, and from where.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query, payload::Json, types::Any};
use serde_json::Value;
use shared::{
    audit::{self, AuditFilter, By},
    id::{ApiKeyId, AuditId, UserId},
    time::Timestamp,
};

use crate::{
    app::App,
    auth::{Admin, Authenticated},
    contract::Wire,
    error::ApiError,
    openapi::Tag,
    page::{Limit, Page},
};

/// The operations on the audit log.
pub struct AuditLogApi;

/// One thing that was done.
#[derive(Debug, Object)]
struct AuditEntry {
    /// Its id.
    id: Wire<AuditId>,
    /// When.
    at: Wire<Timestamp>,
    /// What, such as `user.update`.
    action: String,
    /// By whom; null: by the service, or by nobody known.
    #[oai(nullable)]
    actor_id: Option<Wire<UserId>>,
    /// By which key.
    #[oai(nullable)]
    api_key_id: Option<Wire<ApiKeyId>>,
    /// From where.
    #[oai(nullable)]
    address: Option<String>,
    /// To whom or what: an id.
    #[oai(nullable)]
    target: Option<String>,
    /// More about it, such as the names of what changed.
    #[oai(nullable)]
    detail: Option<Any<Value>>,
}

/// A page of what was done, newest first.
#[derive(Debug, Object)]
struct AuditLogPage {
    /// What was done.
    data: Vec<AuditEntry>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<AuditId>>,
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl AuditLogApi {
    /// List what was done, newest first.
    #[oai(path = "/audit-log", method = "get", operation_id = "list_audit_log")]
    async fn list_audit_log(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// Only what this account did.
        actor: Query<Option<Wire<UserId>>>,
        /// Only this action, such as `user.update`.
        #[oai(validator(max_length = 64))]
        action: Query<Option<String>>,
        /// The most entries to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<AuditId>>>,
    ) -> Result<Json<AuditLogPage>, ApiError> {
        let page = Page::of(limit.0);
        let actor = actor.0.map(|Wire(id)| id);
        let filter = AuditFilter { actor, action: action.0, before: cursor.0.map(|Wire(id)| id), limit: page.rows() };
        let mut entries = app.audit.list(filter).await?;
        let next_cursor = page.cut(&mut entries).map(|entry| Wire(entry.id));
        Ok(Json(AuditLogPage { data: entries.into_iter().map(AuditEntry::from).collect(), next_cursor }))
    }
}

impl From<audit::AuditEntry> for AuditEntry {
    fn from(entry: audit::AuditEntry) -> Self {
        let audit::AuditEntry { id, at, by: By { actor, api_key, address }, action, target, detail } = entry;
        Self {
            id: Wire(id),
            at: Wire(at),
            action,
            actor_id: actor.map(Wire),
            api_key_id: api_key.map(Wire),
            address: address.map(|address| address.to_string()),
            target,
            detail: detail.map(Any),
        }
    }
}
