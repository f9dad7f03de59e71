//! API keys' rows. A key is found by its public part; the rest of it is nowhere.

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, QueryResult, Value};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{Db, execute, plain, row, rows, users};
use crate::{
    Error, Result,
    api_key::{ApiKey, KeyHash, KeyText},
    api_keys::NewApiKey,
    id::{ApiKeyId, UserId},
    time::Timestamp,
    user::User,
};

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    user_id: Uuid,
    name: String,
    prefix: String,
    scopes: String,
    allowed_tools: Option<String>,
    allowed_ips: Option<String>,
    rate_limit_per_hour: Option<i32>,
    max_concurrent_jobs: Option<i32>,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
    created_at: i64,
}

fn unreadable(source: impl Into<crate::error::Cause>) -> Error {
    Error::Internal { what: "an API key's row holds what this version cannot read", source: source.into() }
}

fn list_of<T: DeserializeOwned>(json: &str) -> Result<Vec<T>> {
    serde_json::from_str(json).map_err(unreadable)
}

fn json(list: &impl Serialize) -> String {
    serde_json::to_string(list).expect("these types have only string keys")
}

impl TryFrom<Row> for ApiKey {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let at = |ms: Option<i64>| ms.map(Timestamp::from_unix_ms);
        let count = |number: Option<i32>| number.map(|number| u32::try_from(number).unwrap_or(0));
        Ok(Self {
            id: ApiKeyId::from_uuid(row.id),
            user_id: UserId::from_uuid(row.user_id),
            name: row.name,
            prefix: row.prefix,
            scopes: list_of(&row.scopes)?,
            allowed_tools: row.allowed_tools.as_deref().map(list_of).transpose()?,
            allowed_ips: row.allowed_ips.as_deref().map(list_of).transpose()?,
            rate_limit_per_hour: count(row.rate_limit_per_hour),
            max_concurrent_jobs: count(row.max_concurrent_jobs),
            expires_at: at(row.expires_at),
            revoked_at: at(row.revoked_at),
            last_used_at: at(row.last_used_at),
            created_at: Timestamp::from_unix_ms(row.created_at),
        })
    }
}

async fn key(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Option<ApiKey>> {
    row::<Row>(db, sql, values).await?.map(ApiKey::try_from).transpose()
}

/// Insert a key for a user whose row is held. `None` when another key has its public part.
pub async fn insert(db: &impl ConnectionTrait, new: &NewApiKey, text: &KeyText) -> Result<Option<ApiKey>> {
    key(
        db,
        "INSERT INTO api_keys (id, user_id, name, prefix, hash, scopes, allowed_tools, allowed_ips, rate_limit_per_hour,
                               max_concurrent_jobs, expires_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, {now})
         ON CONFLICT (prefix) DO NOTHING
         RETURNING *",
        [
            ApiKeyId::new().uuid().into(),
            new.user_id.uuid().into(),
            plain(&new.name).into(),
            text.prefix().into(),
            text.hash().as_bytes().to_vec().into(),
            json(&new.scopes).into(),
            new.allowed_tools.as_ref().map(json).into(),
            new.allowed_ips.as_ref().map(json).into(),
            users::limit(new.rate_limit_per_hour),
            users::limit(new.max_concurrent_jobs),
            new.expires_at.map(Timestamp::unix_ms).into(),
        ],
    )
    .await
}

pub async fn find(db: &impl ConnectionTrait, id: ApiKeyId) -> Result<Option<ApiKey>> {
    key(db, "SELECT * FROM api_keys WHERE id = $1", [id.uuid().into()]).await
}

/// A user's keys, newest first, the revoked ones too.
pub async fn list(db: &Db, user: UserId, before: Option<ApiKeyId>, limit: u32) -> Result<Vec<ApiKey>> {
    // No id is greater than this one.
    let before = before.map_or(Uuid::max(), ApiKeyId::uuid);
    let sql = "SELECT * FROM api_keys WHERE user_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
    let found: Vec<Row> = rows(db.pool(), sql, [user.uuid().into(), before.into(), i64::from(limit).into()]).await?;
    found.into_iter().map(ApiKey::try_from).collect()
}

/// Revoke a key. False when it was revoked before.
pub async fn revoke(db: &impl ConnectionTrait, id: ApiKeyId) -> Result<bool> {
    let sql = "UPDATE api_keys SET revoked_at = {now} WHERE id = $1 AND revoked_at IS NULL";
    Ok(execute(db, sql, [id.uuid().into()]).await? == 1)
}

/// Revoke every key of a user.
pub async fn revoke_all(db: &impl ConnectionTrait, user: UserId) -> Result<()> {
    let sql = "UPDATE api_keys SET revoked_at = {now} WHERE user_id = $1 AND revoked_at IS NULL";
    execute(db, sql, [user.uuid().into()]).await?;
    Ok(())
}

/// Note that a key is in use, unless that was noted within the last minute.
pub async fn note_use(db: &Db, id: ApiKeyId) -> Result<()> {
    let sql = "UPDATE api_keys SET last_used_at = {now} WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < {now} - 60000)";
    execute(db.pool(), sql, [id.uuid().into()]).await?;
    Ok(())
}

/// A key, what proves it, and whose it is.
pub struct Standing {
    pub key: ApiKey,
    pub hash: KeyHash,
    pub user: User,
    /// How long it works from the moment of the look, by the database's clock; never when absent.
    pub expires_in_ms: Option<i64>,
    /// Whether its use was not noted within the last minute.
    pub is_use_due: bool,
}

struct Joined {
    key: Row,
    owner: users::Row,
    hash: Vec<u8>,
    expires_in_ms: Option<i64>,
    is_use_due: bool,
}

impl FromQueryResult for Joined {
    fn from_query_result(row: &QueryResult, _: &str) -> Result<Self, DbErr> {
        Ok(Self {
            key: Row::from_query_result(row, "")?,
            owner: users::Row::from_query_result(row, "owner_")?,
            hash: row.try_get("", "hash")?,
            expires_in_ms: row.try_get("", "expires_in_ms")?,
            is_use_due: row.try_get("", "is_use_due")?,
        })
    }
}

/// What a key's public part finds.
pub async fn standing(db: &Db, prefix: &str) -> Result<Option<Standing>> {
    let sql = "SELECT api_keys.*, expires_at - {now} AS expires_in_ms,
                      last_used_at IS NULL OR last_used_at < {now} - 60000 AS is_use_due,
                      users.id AS owner_id, users.email AS owner_email, users.name AS owner_name, users.role AS owner_role,
                      users.disabled AS owner_disabled, users.rate_limit_per_hour AS owner_rate_limit_per_hour,
                      users.max_concurrent_jobs AS owner_max_concurrent_jobs,
                      users.daily_budget_nano_usd AS owner_daily_budget_nano_usd, users.created_at AS owner_created_at,
                      users.last_login_at AS owner_last_login_at
               FROM api_keys JOIN users ON users.id = api_keys.user_id WHERE prefix = $1";
    let Some(found) = row::<Joined>(db.pool(), sql, [prefix.into()]).await? else { return Ok(None) };
    let hash = KeyHash::from_bytes(&found.hash).ok_or_else(|| unreadable("its hash is none"))?;
    let (key, user) = (found.key.try_into()?, found.owner.try_into()?);
    Ok(Some(Standing { key, hash, user, expires_in_ms: found.expires_in_ms, is_use_due: found.is_use_due }))
}
