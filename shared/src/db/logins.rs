//! Refresh tokens' rows, a family for each login. Every function that writes expects the user's row to
//! be held by the caller's transaction.

use std::time::Duration;

use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use super::{Db, execute, ms, row};
use crate::{
    Result,
    id::{FamilyId, UserId},
    user::User,
};

/// A token, as the record has it.
pub struct Token {
    pub id: Uuid,
    pub user: UserId,
    pub family: FamilyId,
    /// Whether it was used or revoked before.
    pub is_spent: bool,
    pub is_expired: bool,
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    user_id: Uuid,
    family_id: Uuid,
    is_spent: bool,
    is_expired: bool,
}

/// The token with this hash.
pub async fn find(db: &impl ConnectionTrait, hash: &[u8]) -> Result<Option<Token>> {
    let sql = "SELECT id, user_id, family_id, used_at IS NOT NULL OR revoked_at IS NOT NULL AS is_spent, expires_at <= {now} AS is_expired
               FROM refresh_tokens WHERE hash = $1";
    let found: Option<Row> = row(db, sql, [hash.to_vec().into()]).await?;
    Ok(found.map(|row| Token {
        id: row.id,
        user: UserId::from_uuid(row.user_id),
        family: FamilyId::from_uuid(row.family_id),
        is_spent: row.is_spent,
        is_expired: row.is_expired,
    }))
}

pub async fn insert(db: &impl ConnectionTrait, user: UserId, family: FamilyId, hash: &[u8], lifetime: Duration) -> Result<()> {
    execute(
        db,
        "INSERT INTO refresh_tokens (id, family_id, user_id, hash, created_at, expires_at) VALUES ($1, $2, $3, $4, {now}, {now} + $5)",
        [Uuid::now_v7().into(), family.uuid().into(), user.uuid().into(), hash.to_vec().into(), ms(lifetime).into()],
    )
    .await?;
    Ok(())
}

pub async fn mark_used(db: &impl ConnectionTrait, token: Uuid) -> Result<()> {
    execute(db, "UPDATE refresh_tokens SET used_at = {now} WHERE id = $1", [token.into()]).await?;
    Ok(())
}

/// Whose login this is.
pub async fn owner(db: &impl ConnectionTrait, family: FamilyId) -> Result<Option<UserId>> {
    #[derive(FromQueryResult)]
    struct Owner {
        user_id: Uuid,
    }
    let owner: Option<Owner> = row(db, "SELECT user_id FROM refresh_tokens WHERE family_id = $1 LIMIT 1", [family.uuid().into()]).await?;
    Ok(owner.map(|owner| UserId::from_uuid(owner.user_id)))
}

/// End a login. False when it had ended before.
pub async fn revoke(db: &impl ConnectionTrait, family: FamilyId) -> Result<bool> {
    let sql = "UPDATE refresh_tokens SET revoked_at = {now} WHERE family_id = $1 AND revoked_at IS NULL";
    Ok(execute(db, sql, [family.uuid().into()]).await? > 0)
}

/// End every login of a user but one.
pub async fn revoke_all(db: &impl ConnectionTrait, user: UserId, but: Option<FamilyId>) -> Result<()> {
    // No family has the nil UUID.
    let but = but.map_or(Uuid::nil(), FamilyId::uuid);
    let sql = "UPDATE refresh_tokens SET revoked_at = {now} WHERE user_id = $1 AND family_id <> $2 AND revoked_at IS NULL";
    execute(db, sql, [user.uuid().into(), but.into()]).await?;
    Ok(())
}

/// Forget tokens that expired longer ago than `age`; how many there were.
pub async fn forget_expired(db: &Db, age: Duration, limit: u32) -> Result<u64> {
    execute(
        db.pool(),
        "DELETE FROM refresh_tokens WHERE id IN (SELECT id FROM refresh_tokens WHERE expires_at < {now} - $1 ORDER BY expires_at LIMIT $2)",
        [ms(age).into(), i64::from(limit).into()],
    )
    .await
}

/// A user, and whether one of its logins still holds.
pub async fn standing(db: &Db, user: UserId, family: FamilyId) -> Result<Option<(User, bool)>> {
    #[derive(FromQueryResult)]
    struct Standing {
        #[sea_orm(nested)]
        user: super::users::Row,
        is_alive: bool,
    }
    let sql = "SELECT users.*, EXISTS (SELECT 1 FROM refresh_tokens
                                       WHERE family_id = $2 AND user_id = $1 AND revoked_at IS NULL) AS is_alive
               FROM users WHERE id = $1 AND deleted_at IS NULL";
    let found: Option<Standing> = row(db.pool(), sql, [user.uuid().into(), family.uuid().into()]).await?;
    found.map(|found| Ok((found.user.try_into()?, found.is_alive))).transpose()
}
