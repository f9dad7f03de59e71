//! Accounts' rows. A user's row is also the lock under which all its credentials change: whoever makes or
//! revokes one holds the row first, so that nothing new can slip past a revocation. A row in `settings`
//! is the lock for who may be an admin; it is taken before any user's.

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, SqlErr, Value};
use uuid::Uuid;

use super::{Db, error, execute, plain, row, rows, statement};
use crate::{
    Error, Result,
    id::UserId,
    job::NanoUsd,
    time::Timestamp,
    user::{Email, PasswordHash, Role, User, UserLimits},
    users::{NewUser, UserFilter},
};

#[derive(FromQueryResult)]
pub struct Row {
    id: Uuid,
    email: String,
    name: Option<String>,
    role: String,
    disabled: bool,
    rate_limit_per_hour: Option<i32>,
    max_concurrent_jobs: Option<i32>,
    queue_weight: Option<i32>,
    daily_budget_nano_usd: Option<i64>,
    created_at: i64,
    last_login_at: Option<i64>,
}

impl TryFrom<Row> for User {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let unreadable = |source| Error::Internal { what: "a user's row holds what this version cannot read", source };
        let count = |number: Option<i32>| number.map(|number| u32::try_from(number).unwrap_or(0));
        Ok(Self {
            id: UserId::from_uuid(row.id),
            email: row.email,
            name: row.name,
            role: row.role.parse::<Role>().map_err(|source| unreadable(source.into()))?,
            disabled: row.disabled,
            limits: UserLimits {
                rate_limit_per_hour: count(row.rate_limit_per_hour),
                max_concurrent_jobs: count(row.max_concurrent_jobs),
                daily_budget: row.daily_budget_nano_usd.map(NanoUsd),
                queue_weight: count(row.queue_weight),
            },
            created_at: Timestamp::from_unix_ms(row.created_at),
            last_login_at: row.last_login_at.map(Timestamp::from_unix_ms),
        })
    }
}

#[derive(FromQueryResult)]
struct Id {
    id: Uuid,
}

async fn user(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Option<User>> {
    row::<Row>(db, sql, values).await?.map(User::try_from).transpose()
}

/// A limit, as its column has it.
pub fn limit(number: Option<u32>) -> Value {
    number.map(|number| i32::try_from(number).unwrap_or(i32::MAX)).into()
}

/// Hold the right to decide who is an admin until the transaction ends.
pub async fn hold_admins(db: &impl ConnectionTrait) -> Result<()> {
    #[derive(FromQueryResult)]
    struct Key {
        #[expect(dead_code, reason = "the row is a lock: nobody reads it")]
        key: String,
    }
    let lock: Option<Key> = row(db, "SELECT key FROM settings WHERE key = 'admins' {for_update}", []).await?;
    let lost = || Error::Internal { what: "nobody may decide who is an admin", source: "the row `admins` of `settings` is gone".into() };
    lock.map(|_| ()).ok_or_else(lost)
}

/// Hold a user's row until the transaction ends.
pub async fn hold(db: &impl ConnectionTrait, id: UserId) -> Result<Option<User>> {
    user(db, "SELECT * FROM users WHERE id = $1 AND deleted_at IS NULL {for_update}", [id.uuid().into()]).await
}

/// Let who does this for the same user go one after the other, until their transactions end. It holds nobody up who
/// only refers to the user, as a new job does.
pub async fn take_turn(db: &impl ConnectionTrait, id: UserId) -> Result<()> {
    let _: Option<Id> = row(db, "SELECT id FROM users WHERE id = $1 {for_turn}", [id.uuid().into()]).await?;
    Ok(())
}

/// Insert an account. `None` when its address is taken.
pub async fn insert(db: &impl ConnectionTrait, new: &NewUser) -> Result<Option<User>> {
    user(
        db,
        "INSERT INTO users (id, email, email_folded, name, password_hash, role, rate_limit_per_hour, max_concurrent_jobs,
                            daily_budget_nano_usd, queue_weight, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, {now}, {now})
         ON CONFLICT (email_folded) DO NOTHING
         RETURNING *",
        [
            UserId::new().uuid().into(),
            new.email.as_str().into(),
            new.email.folded().into(),
            new.name.as_deref().map(plain).into(),
            new.password.expose().into(),
            new.role.as_str().into(),
            limit(new.limits.rate_limit_per_hour),
            limit(new.limits.max_concurrent_jobs),
            new.limits.daily_budget.map(|budget| budget.0).into(),
            limit(new.limits.queue_weight),
        ],
    )
    .await
}

/// Whether there is an admin, active or not.
pub async fn has_admin(db: &impl ConnectionTrait) -> Result<bool> {
    let admin: Option<Id> = row(db, "SELECT id FROM users WHERE role = 'admin' AND deleted_at IS NULL LIMIT 1", []).await?;
    Ok(admin.is_some())
}

/// Whether an active admin is left without this one.
pub async fn has_admin_beside(db: &impl ConnectionTrait, id: UserId) -> Result<bool> {
    let sql = "SELECT id FROM users WHERE role = 'admin' AND NOT disabled AND deleted_at IS NULL AND id <> $1 LIMIT 1";
    Ok(row::<Id>(db, sql, [id.uuid().into()]).await?.is_some())
}

pub async fn find(db: &Db, id: UserId) -> Result<Option<User>> {
    user(db.pool(), "SELECT * FROM users WHERE id = $1 AND deleted_at IS NULL", [id.uuid().into()]).await
}

pub async fn find_by_email(db: &Db, email: &Email) -> Result<Option<User>> {
    user(db.pool(), "SELECT * FROM users WHERE email_folded = $1 AND deleted_at IS NULL", [email.folded().into()]).await
}

/// An account with what proves its password, if it has one.
pub async fn password_of(db: &Db, email: &Email) -> Result<Option<(User, PasswordHash)>> {
    #[derive(FromQueryResult)]
    struct Proof {
        #[sea_orm(nested)]
        user: Row,
        password_hash: String,
    }
    let sql = "SELECT * FROM users WHERE email_folded = $1 AND password_hash IS NOT NULL AND deleted_at IS NULL";
    let Some(proof) = row::<Proof>(db.pool(), sql, [email.folded().into()]).await? else { return Ok(None) };
    Ok(Some((proof.user.try_into()?, PasswordHash::new(proof.password_hash))))
}

/// The accounts that `filter` lets through, newest first.
pub async fn list(db: &Db, filter: UserFilter) -> Result<Vec<User>> {
    let mut conditions = vec!["deleted_at IS NULL".to_owned()];
    let mut values: Vec<Value> = Vec::new();
    if let Some(query) = filter.query.filter(|query| !query.is_empty()) {
        values.push(pattern(&query).into());
        // Each database folds both sides its own way.
        conditions.push(r"(email_folded LIKE LOWER($1) ESCAPE '\' OR LOWER(name) LIKE LOWER($1) ESCAPE '\')".to_owned());
    }
    if let Some(before) = filter.before {
        values.push(before.uuid().into());
        conditions.push(format!("id < ${}", values.len()));
    }
    values.push(i64::from(filter.limit).into());
    let sql = format!("SELECT * FROM users WHERE {} ORDER BY id DESC LIMIT ${}", conditions.join(" AND "), values.len());
    rows::<Row>(db.pool(), &sql, values).await?.into_iter().map(User::try_from).collect()
}

/// A pattern for `LIKE` that finds `query` anywhere, and nothing else.
fn pattern(query: &str) -> String {
    let escaped = plain(query).replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
    format!("%{escaped}%")
}

/// Write what may change of a user whose row is held. Fails with [`Error::EmailTaken`].
pub async fn update(db: &impl ConnectionTrait, user: &User) -> Result<()> {
    let sql = "UPDATE users SET email = $2, email_folded = $3, name = $4, role = $5, disabled = $6, rate_limit_per_hour = $7,
                      max_concurrent_jobs = $8, daily_budget_nano_usd = $9, queue_weight = $10, updated_at = {now} WHERE id = $1";
    let values = [
        user.id.uuid().into(),
        user.email.as_str().into(),
        user.email.to_ascii_lowercase().into(),
        user.name.as_deref().map(plain).into(),
        user.role.as_str().into(),
        user.disabled.into(),
        limit(user.limits.rate_limit_per_hour),
        limit(user.limits.max_concurrent_jobs),
        user.limits.daily_budget.map(|budget| budget.0).into(),
        limit(user.limits.queue_weight),
    ];
    let taken = |refusal: DbErr| match refusal.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Error::EmailTaken,
        _ => error(refusal),
    };
    db.execute_raw(statement(db, sql, values)).await.map_err(taken)?;
    Ok(())
}

/// Whether `hash` is what proves an account's owner.
pub async fn is_password(db: &impl ConnectionTrait, id: UserId, hash: &PasswordHash) -> Result<bool> {
    let sql = "SELECT id FROM users WHERE id = $1 AND password_hash = $2";
    Ok(row::<Id>(db, sql, [id.uuid().into(), hash.expose().into()]).await?.is_some())
}

pub async fn set_password(db: &impl ConnectionTrait, id: UserId, password: &PasswordHash) -> Result<()> {
    let sql = "UPDATE users SET password_hash = $2, updated_at = {now} WHERE id = $1";
    execute(db, sql, [id.uuid().into(), password.expose().into()]).await?;
    Ok(())
}

pub async fn rehash(db: &Db, id: UserId, old: &PasswordHash, new: &PasswordHash) -> Result<()> {
    let sql = "UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2";
    execute(db.pool(), sql, [id.uuid().into(), old.expose().into(), new.expose().into()]).await?;
    Ok(())
}

/// Note that a user logged in, which holds its row until the transaction ends. False when it may not, or
/// has another password than the one that was proved.
pub async fn note_login(db: &impl ConnectionTrait, id: UserId, proof: Option<&PasswordHash>) -> Result<bool> {
    let sql = "UPDATE users SET last_login_at = {now} WHERE id = $1 AND deleted_at IS NULL AND NOT disabled
               AND password_hash = COALESCE(CAST($2 AS TEXT), password_hash)";
    Ok(execute(db, sql, [id.uuid().into(), proof.map(PasswordHash::expose).into()]).await? == 1)
}

/// Take from an account what makes it somebody's; its row stays until nothing refers to it.
pub async fn mark_deleted(db: &impl ConnectionTrait, id: UserId) -> Result<()> {
    // No address looks like an id: nobody can log in with it, and the old one is free.
    let grave = id.to_string();
    execute(
        db,
        "UPDATE users SET deleted_at = {now}, updated_at = {now}, email = $2, email_folded = $2, name = NULL, password_hash = NULL,
                          disabled = TRUE WHERE id = $1",
        [id.uuid().into(), grave.into()],
    )
    .await?;
    Ok(())
}

/// Deleted accounts whose rows are still there, oldest first.
pub async fn deleted(db: &Db, limit: u32) -> Result<Vec<UserId>> {
    let sql = "SELECT id FROM users WHERE deleted_at IS NOT NULL ORDER BY deleted_at LIMIT $1";
    let ids: Vec<Id> = rows(db.pool(), sql, [i64::from(limit).into()]).await?;
    Ok(ids.into_iter().map(|row| UserId::from_uuid(row.id)).collect())
}

/// Forget a deleted account, its keys, logins and conversations, once it has no job left
/// and its conversations hold nothing. False before.
pub async fn forget(db: &Db, id: UserId) -> Result<bool> {
    let gone = "(SELECT id FROM users WHERE id = $1 AND deleted_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM jobs WHERE user_id = $1)
                 AND NOT EXISTS (SELECT 1 FROM sessions WHERE user_id = $1 AND purged_at IS NULL))";
    execute(db.pool(), &format!("DELETE FROM sessions WHERE user_id IN {gone}"), [id.uuid().into()]).await?;
    Ok(execute(db.pool(), &format!("DELETE FROM users WHERE id IN {gone}"), [id.uuid().into()]).await? == 1)
}
