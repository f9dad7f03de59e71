//! The rows of transcripts: what a conversation's next turn goes on from, written by the turn before.

use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use super::{Db, execute, row};
use crate::{
    Result,
    id::{JobId, SessionId},
    transcript::{Transcript, TurnId},
};

#[derive(FromQueryResult)]
struct Head {
    job_id: Uuid,
    attempt: i32,
    bytes: i64,
}

fn turn(job: Uuid, attempt: i32) -> TurnId {
    TurnId { job: JobId::from_uuid(job), attempt: u32::try_from(attempt).unwrap_or(0) }
}

/// Which turn wrote a conversation's transcript, and how large it is.
pub async fn head(db: &Db, session: SessionId) -> Result<Option<(TurnId, u64)>> {
    let sql = "SELECT job_id, attempt, bytes FROM transcripts WHERE session_id = $1";
    let head: Option<Head> = row(db.pool(), sql, [session.uuid().into()]).await?;
    Ok(head.map(|head| (turn(head.job_id, head.attempt), u64::try_from(head.bytes).unwrap_or(0))))
}

/// The transcript that `turn` wrote, if it still is the conversation's.
pub async fn body(db: &Db, session: SessionId, turn: TurnId) -> Result<Option<Vec<u8>>> {
    #[derive(FromQueryResult)]
    struct Body {
        body: Vec<u8>,
    }
    let attempt = i32::try_from(turn.attempt).unwrap_or(i32::MAX);
    let sql = "SELECT body FROM transcripts WHERE session_id = $1 AND job_id = $2 AND attempt = $3";
    let found: Option<Body> = row(db.pool(), sql, [session.uuid().into(), turn.job.uuid().into(), attempt.into()]).await?;
    Ok(found.map(|found| found.body))
}

/// Let a conversation go on from what `turn` left.
pub async fn put(db: &impl ConnectionTrait, session: SessionId, turn: TurnId, transcript: &Transcript) -> Result<()> {
    execute(
        db,
        "INSERT INTO transcripts (session_id, job_id, attempt, body, bytes, cli_version, updated_at) VALUES ($1, $2, $3, $4, $5, $6, {now})
         ON CONFLICT (session_id) DO UPDATE
         SET job_id = excluded.job_id, attempt = excluded.attempt, body = excluded.body, bytes = excluded.bytes,
             cli_version = excluded.cli_version, updated_at = excluded.updated_at",
        [
            session.uuid().into(),
            turn.job.uuid().into(),
            i32::try_from(turn.attempt).unwrap_or(i32::MAX).into(),
            transcript.body.to_vec().into(),
            i64::try_from(transcript.bytes).unwrap_or(i64::MAX).into(),
            transcript.cli_version.clone().into(),
        ],
    )
    .await?;
    Ok(())
}
