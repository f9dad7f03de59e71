//! The rows of worker processes. A beat and a death sentence are compare-and-set on the same row, so one
//! of them always sees the other.

use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use super::{Db, execute, rows};
use crate::{
    Result,
    id::{JobId, WorkerId},
};

/// What a worker says of itself when it starts.
pub struct NewRow<'a> {
    pub id: WorkerId,
    pub name: &'a str,
    pub host: &'a str,
    pub version: &'a str,
    pub slots: u32,
}

pub async fn insert(db: &Db, worker: NewRow<'_>) -> Result<()> {
    let slots = i32::try_from(worker.slots).unwrap_or(i32::MAX);
    execute(
        db.pool(),
        "INSERT INTO workers (id, name, host, version, slots, started_at, last_beat_at) VALUES ($1, $2, $3, $4, $5, {now}, {now})",
        [worker.id.uuid().into(), worker.name.into(), worker.host.into(), worker.version.into(), slots.into()],
    )
    .await?;
    Ok(())
}

/// Say that a worker lives. False when it was declared dead.
pub async fn beat(db: &Db, worker: WorkerId) -> Result<bool> {
    let touched =
        execute(db.pool(), "UPDATE workers SET beat = beat + 1, last_beat_at = {now} WHERE id = $1 AND NOT dead", [worker.uuid().into()])
            .await?;
    Ok(touched == 1)
}

#[derive(FromQueryResult)]
struct Id {
    id: Uuid,
}

/// The jobs this worker runs that somebody asked to end.
pub async fn cancel_requests(db: &Db, worker: WorkerId) -> Result<Vec<JobId>> {
    let ids: Vec<Id> = rows(
        db.pool(),
        "SELECT id FROM jobs WHERE worker_id = $1 AND state = 'running' AND cancel_requested_at IS NOT NULL",
        [worker.uuid().into()],
    )
    .await?;
    Ok(ids.into_iter().map(|row| JobId::from_uuid(row.id)).collect())
}

/// Say that this worker takes no more jobs.
pub async fn start_draining(db: &Db, worker: WorkerId) -> Result<()> {
    execute(db.pool(), "UPDATE workers SET draining = TRUE WHERE id = $1", [worker.uuid().into()]).await?;
    Ok(())
}

/// A living worker's beat, as the leader watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Pulse {
    pub id: Uuid,
    pub beat: i64,
}

pub async fn pulses(db: &Db) -> Result<Vec<Pulse>> {
    rows(db.pool(), "SELECT id, beat FROM workers WHERE NOT dead", []).await
}

/// Declare a worker dead if it did not beat since `beat` was seen. False when it did, or was dead.
pub async fn bury(db: &impl ConnectionTrait, worker: Uuid, beat: i64) -> Result<bool> {
    let touched =
        execute(db, "UPDATE workers SET dead = TRUE WHERE id = $1 AND beat = $2 AND NOT dead", [worker.into(), beat.into()]).await?;
    Ok(touched == 1)
}

/// Leave: dead by its own word, unless it still holds jobs, which only the reaper may give away.
pub async fn leave(db: &Db, worker: WorkerId) -> Result<bool> {
    let touched = execute(
        db.pool(),
        "UPDATE workers SET dead = TRUE WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE worker_id = $1 AND state = 'running')",
        [worker.uuid().into()],
    )
    .await?;
    Ok(touched == 1)
}
