//! The rows of conversations. One that was deleted keeps an empty row: its id is never used again, and who
//! sends a job to it is told what became of it.

use std::fmt::Write as _;

use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Db, execute, plain, row, rows};
use crate::{
    Error, Result,
    id::{SessionId, UserId},
    job::{NanoUsd, Usage},
    session::{NewSession, Session, SessionFigures},
    time::Timestamp,
};

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    user_id: Uuid,
    title: Option<String>,
    model: Option<String>,
    system_prompt: Option<String>,
    tools: Option<String>,
    mcp_servers: Option<String>,
    metadata: String,
    archived: bool,
    created_at: i64,
    updated_at: i64,
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T> {
    let unreadable =
        |source: serde_json::Error| Error::Internal { what: "a session's row holds what this version cannot read", source: source.into() };
    serde_json::from_str(text).map_err(unreadable)
}

fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("lists and maps of strings have only string keys")
}

impl TryFrom<Row> for Session {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: SessionId::from_uuid(row.id),
            user_id: UserId::from_uuid(row.user_id),
            title: row.title,
            model: row.model,
            system_prompt: row.system_prompt,
            tools: row.tools.as_deref().map(json).transpose()?,
            mcp_servers: row.mcp_servers.as_deref().map(json).transpose()?,
            metadata: json(&row.metadata)?,
            archived: row.archived,
            created_at: Timestamp::from_unix_ms(row.created_at),
            updated_at: Timestamp::from_unix_ms(row.updated_at),
        })
    }
}

async fn session(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Option<Session>> {
    row::<Row>(db, sql, values).await?.map(Session::try_from).transpose()
}

/// Make a conversation of `user`.
pub async fn insert(db: &Db, id: SessionId, user: UserId, new: &NewSession) -> Result<Option<Session>> {
    let sql = "INSERT INTO sessions (id, user_id, title, model, system_prompt, tools, mcp_servers, metadata, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, {now}, {now}) RETURNING *";
    let values = [
        id.uuid().into(),
        user.uuid().into(),
        new.title.as_deref().map(plain).into(),
        new.model.as_deref().map(plain).into(),
        new.system_prompt.as_deref().map(plain).into(),
        new.tools.as_ref().map(text).into(),
        new.mcp_servers.as_ref().map(text).into(),
        text(&new.metadata).into(),
    ];
    session(db.pool(), sql, values).await
}

const FIND: &str = "SELECT * FROM sessions WHERE id = $1 AND user_id = $2 AND deleted_at IS NULL";

/// A conversation of `user` that was not deleted.
pub async fn find(db: &impl ConnectionTrait, user: UserId, id: SessionId) -> Result<Option<Session>> {
    session(db, FIND, [id.uuid().into(), user.uuid().into()]).await
}

/// The same, held against everyone else until the transaction ends.
pub async fn hold(db: &impl ConnectionTrait, user: UserId, id: SessionId) -> Result<Option<Session>> {
    session(db, &format!("{FIND} {{for_update}}"), [id.uuid().into(), user.uuid().into()]).await
}

/// Any conversation, deleted or not, once nobody holds it.
pub async fn settled(db: &impl ConnectionTrait, id: SessionId) -> Result<Option<Session>> {
    session(db, "SELECT * FROM sessions WHERE id = $1 {for_share}", [id.uuid().into()]).await
}

/// Write what may change of a conversation that is held.
pub async fn update(db: &impl ConnectionTrait, changed: &Session) -> Result<Option<Session>> {
    let sql = "UPDATE sessions SET title = $2, model = $3, tools = $4, mcp_servers = $5, metadata = $6, archived = $7, updated_at = {now}
               WHERE id = $1 RETURNING *";
    let values = [
        changed.id.uuid().into(),
        changed.title.as_deref().map(plain).into(),
        changed.model.as_deref().map(plain).into(),
        changed.tools.as_ref().map(text).into(),
        changed.mcp_servers.as_ref().map(text).into(),
        text(&changed.metadata).into(),
        changed.archived.into(),
    ];
    session(db, sql, values).await
}

/// Take the next place in a conversation of `user`. Places are taken and jobs inserted in one transaction,
/// and the conversation's row is held until it ends: who sees a place sees all before it.
pub async fn take_place(db: &impl ConnectionTrait, user: UserId, id: SessionId) -> Result<(Session, i64)> {
    #[derive(FromQueryResult)]
    struct Place {
        #[sea_orm(nested)]
        session: Row,
        next_seq: i64,
    }
    #[derive(FromQueryResult)]
    struct Grave {
        deleted_at: Option<i64>,
    }
    let of_user = || [Value::from(id.uuid()), user.uuid().into()];
    let sql = "UPDATE sessions SET next_seq = next_seq + 1 WHERE id = $1 AND user_id = $2 AND deleted_at IS NULL AND NOT archived
               RETURNING *";
    if let Some(Place { session, next_seq }) = row::<Place>(db, sql, of_user()).await? {
        return Ok((session.try_into()?, next_seq - 1));
    }
    let sql = "SELECT deleted_at FROM sessions WHERE id = $1 AND user_id = $2";
    Err(match row::<Grave>(db, sql, of_user()).await? {
        None => Error::NoSuchSession,
        Some(Grave { deleted_at: Some(_) }) => Error::SessionDeleted,
        Some(Grave { deleted_at: None }) => Error::SessionArchived,
    })
}

#[derive(FromQueryResult)]
struct Figures {
    jobs: Option<i64>,
    active_jobs: Option<i64>,
    turns: Option<i64>,
    last_activity_at: Option<i64>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cache_read_tokens: Option<i64>,
    cache_write_tokens: Option<i64>,
    cost_nano_usd: Option<i64>,
    transcript_bytes: Option<i64>,
    files: Option<i32>,
    workspace_bytes: Option<i64>,
}

#[derive(FromQueryResult)]
struct Shown {
    #[sea_orm(nested)]
    session: Row,
    #[sea_orm(nested)]
    figures: Figures,
}

impl From<Figures> for SessionFigures {
    fn from(row: Figures) -> Self {
        let count = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        Self {
            jobs: count(row.jobs),
            active_jobs: count(row.active_jobs),
            turns: count(row.turns),
            usage: Usage {
                input_tokens: count(row.input_tokens),
                output_tokens: count(row.output_tokens),
                cache_read_tokens: count(row.cache_read_tokens),
                cache_write_tokens: count(row.cache_write_tokens),
            },
            cost: NanoUsd(row.cost_nano_usd.unwrap_or(0)),
            transcript_bytes: count(row.transcript_bytes),
            files: count(row.files.map(i64::from)),
            workspace_bytes: count(row.workspace_bytes),
            last_activity_at: row.last_activity_at.map(Timestamp::from_unix_ms),
        }
    }
}

/// Conversations of `user`, or of all, with what became of them, newest first: one, or those older than `before`.
pub async fn list(
    db: &Db,
    user: Option<UserId>,
    one: Option<SessionId>,
    before: Option<SessionId>,
    limit: u32,
) -> Result<Vec<(Session, SessionFigures)>> {
    let mut values = vec![Value::from(i64::from(limit))];
    let mut narrowed = String::new();
    let (user, one, before) = (user.map(UserId::uuid), one.map(SessionId::uuid), before.map(SessionId::uuid));
    for (comparison, id) in [("user_id =", user), ("id =", one), ("id <", before)] {
        if let Some(id) = id {
            values.push(id.into());
            write!(narrowed, " AND {comparison} ${}", values.len()).expect("a string takes all that is written to it");
        }
    }
    let sql = format!(
        "WITH shown AS (SELECT * FROM sessions WHERE deleted_at IS NULL{narrowed} ORDER BY id DESC LIMIT $1),
         work AS (SELECT session_id, count(*) AS jobs, count(CASE WHEN state IN ('queued', 'running') THEN 1 END) AS active_jobs,
                         count(CASE WHEN state = 'completed' THEN 1 END) AS turns,
                         max(COALESCE(finished_at, started_at, created_at)) AS last_activity_at
                  FROM jobs WHERE session_id IN (SELECT id FROM shown) GROUP BY session_id),
         used AS (SELECT session_id, {} FROM usage_logs WHERE session_id IN (SELECT id FROM shown) GROUP BY session_id)
         SELECT shown.*, work.jobs, work.active_jobs, work.turns, work.last_activity_at, used.input_tokens, used.output_tokens,
                used.cache_read_tokens, used.cache_write_tokens, used.cost_nano_usd, transcripts.bytes AS transcript_bytes,
                workspaces.files, workspaces.bytes AS workspace_bytes
         FROM shown LEFT JOIN work ON work.session_id = shown.id LEFT JOIN used ON used.session_id = shown.id
              LEFT JOIN transcripts ON transcripts.session_id = shown.id LEFT JOIN workspaces ON workspaces.session_id = shown.id
         ORDER BY shown.id DESC",
        ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_nano_usd"]
            .map(|column| format!("CAST(sum({column}) AS BIGINT) AS {column}"))
            .join(", ")
    );
    let shown: Vec<Shown> = rows(db.pool(), &sql, values).await?;
    shown.into_iter().map(|row| Ok((row.session.try_into()?, row.figures.into()))).collect()
}

/// Takes from the conversations of a user what was said in them; their rows stay.
const MARK_DELETED: &str = "UPDATE sessions SET deleted_at = {now}, updated_at = {now}, title = NULL, system_prompt = NULL, metadata = '{}'
                            WHERE user_id = $1 AND deleted_at IS NULL";

/// Delete a conversation of `user`; its row stays. False when it was not there.
pub async fn mark_deleted(db: &impl ConnectionTrait, user: UserId, id: SessionId) -> Result<bool> {
    Ok(execute(db, &format!("{MARK_DELETED} AND id = $2"), [user.uuid().into(), id.uuid().into()]).await? == 1)
}

/// The same for all conversations of `user`.
pub async fn mark_all_deleted(db: &impl ConnectionTrait, user: UserId) -> Result<()> {
    execute(db, MARK_DELETED, [user.uuid().into()]).await?;
    Ok(())
}

/// Of these conversations, those that were deleted and hold nothing any more.
pub async fn purged(db: &Db, ids: &[SessionId]) -> Result<Vec<SessionId>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let places: Vec<String> = (1..=ids.len()).map(|place| format!("${place}")).collect();
    let sql = format!("SELECT id, user_id FROM sessions WHERE purged_at IS NOT NULL AND id IN ({})", places.join(", "));
    let gone: Vec<Gone> = rows(db.pool(), &sql, ids.iter().map(|id| id.uuid().into())).await?;
    Ok(gone.into_iter().map(|row| SessionId::from_uuid(row.id)).collect())
}

#[derive(FromQueryResult)]
struct Gone {
    id: Uuid,
    user_id: Uuid,
}

/// Deleted conversations that still hold something, oldest first, each with its owner.
pub async fn to_purge(db: &Db, limit: u32) -> Result<Vec<(SessionId, UserId)>> {
    let sql = "SELECT id, user_id FROM sessions WHERE deleted_at IS NOT NULL AND purged_at IS NULL ORDER BY deleted_at LIMIT $1";
    let gone: Vec<Gone> = rows(db.pool(), sql, [i64::from(limit).into()]).await?;
    Ok(gone.into_iter().map(|row| (SessionId::from_uuid(row.id), UserId::from_uuid(row.user_id))).collect())
}

/// Drop what a deleted conversation would go on from.
pub async fn purge(db: &impl ConnectionTrait, id: SessionId) -> Result<()> {
    for sql in [
        "DELETE FROM transcripts WHERE session_id = $1",
        "DELETE FROM workspaces WHERE session_id = $1",
        "UPDATE sessions SET purged_at = {now} WHERE id = $1",
    ] {
        execute(db, sql, [id.uuid().into()]).await?;
    }
    Ok(())
}
