//! The audit log's rows: written once, never changed.

use std::net::IpAddr;

use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use super::{Db, execute, plain, rows};
use crate::{
    Error, Result,
    audit::{Action, AuditEntry, AuditFilter, By},
    id::{ApiKeyId, AuditId, UserId},
    time::Timestamp,
};

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    at: i64,
    actor_id: Option<Uuid>,
    api_key_id: Option<Uuid>,
    ip: Option<String>,
    action: String,
    target: Option<String>,
    detail: Option<String>,
}

impl TryFrom<Row> for AuditEntry {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let unreadable =
            |source: crate::error::Cause| Error::Internal { what: "an audit entry holds what this version cannot read", source };
        let address = row.ip.map(|ip| ip.parse::<IpAddr>()).transpose().map_err(|source| unreadable(source.into()))?;
        let detail = row.detail.map(|json| serde_json::from_str(&json)).transpose().map_err(|source| unreadable(source.into()))?;
        Ok(Self {
            id: AuditId::from_uuid(row.id),
            at: Timestamp::from_unix_ms(row.at),
            by: By { actor: row.actor_id.map(UserId::from_uuid), api_key: row.api_key_id.map(ApiKeyId::from_uuid), address },
            action: row.action,
            target: row.target,
            detail,
        })
    }
}

pub async fn insert(
    db: &impl ConnectionTrait,
    by: &By,
    action: Action,
    target: Option<String>,
    detail: Option<serde_json::Value>,
) -> Result<()> {
    execute(
        db,
        "INSERT INTO audit_log (id, at, actor_id, api_key_id, ip, action, target, detail) VALUES ($1, {now}, $2, $3, $4, $5, $6, $7)",
        [
            AuditId::new().uuid().into(),
            by.actor.map(UserId::uuid).into(),
            by.api_key.map(ApiKeyId::uuid).into(),
            by.address.map(|address| address.to_canonical().to_string()).into(),
            action.as_str().into(),
            target.map(|target| plain(&target)).into(),
            // A NUL is legal in JSON only as an escape, which both databases store as plain text.
            detail.map(|detail| detail.to_string()).into(),
        ],
    )
    .await?;
    Ok(())
}

/// What `filter` lets through, newest first.
pub async fn list(db: &Db, filter: AuditFilter) -> Result<Vec<AuditEntry>> {
    let mut conditions = vec!["TRUE".to_owned()];
    let mut values: Vec<Value> = Vec::new();
    let mut narrow = |comparison: &str, value: Value| {
        values.push(value);
        conditions.push(format!("{comparison} ${}", values.len()));
    };
    if let Some(actor) = filter.actor {
        narrow("actor_id =", actor.uuid().into());
    }
    if let Some(action) = filter.action {
        narrow("action =", plain(&action).into());
    }
    if let Some(before) = filter.before {
        narrow("id <", before.uuid().into());
    }
    values.push(i64::from(filter.limit).into());
    let sql = format!("SELECT * FROM audit_log WHERE {} ORDER BY id DESC LIMIT ${}", conditions.join(" AND "), values.len());
    rows::<Row>(db.pool(), &sql, values).await?.into_iter().map(AuditEntry::try_from).collect()
}
