//! The rows of worker processes. A beat and a death sentence are compare-and-set on the same row, so one
//! of them always sees the other.

use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use super::{Db, execute, row, rows};
use crate::{
    Result,
    id::{JobId, WorkerId},
    time::Timestamp,
    workers::{Worker, WorkerState},
};

/// What a worker says of itself when it starts.
pub struct NewRow<'a> {
    pub id: WorkerId,
    pub name: &'a str,
    pub host: &'a str,
    pub version: &'a str,
    pub slots: u32,
    pub mcp_servers: &'a [String],
    pub lock_file: Option<&'a str>,
}

pub async fn insert(db: &Db, worker: NewRow<'_>) -> Result<()> {
    let slots = i32::try_from(worker.slots).unwrap_or(i32::MAX);
    execute(
        db.pool(),
        "INSERT INTO workers (id, name, host, version, slots, mcp_servers, lock_file, started_at, last_beat_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, {now}, {now})",
        [
            worker.id.uuid().into(),
            worker.name.into(),
            worker.host.into(),
            worker.version.into(),
            slots.into(),
            serde_json::to_string(worker.mcp_servers).expect("names are text").into(),
            worker.lock_file.into(),
        ],
    )
    .await?;
    Ok(())
}

/// The MCP servers that living workers know, as each says it.
pub async fn mcp_servers(db: &Db) -> Result<Vec<String>> {
    #[derive(FromQueryResult)]
    struct Known {
        mcp_servers: Option<String>,
    }
    let sql = "SELECT DISTINCT mcp_servers FROM workers WHERE NOT dead";
    let known: Vec<Known> = rows(db.pool(), sql, []).await?;
    Ok(known.into_iter().map(|row| row.mcp_servers.unwrap_or_else(|| "[]".to_owned())).collect())
}

/// Say that a worker lives; answers whether somebody asked it to drain. `None` when it was declared dead.
pub async fn beat(db: &Db, worker: WorkerId) -> Result<Option<bool>> {
    #[derive(FromQueryResult)]
    struct Heard {
        drain_requested: bool,
    }
    let sql = "UPDATE workers SET beat = beat + 1, last_beat_at = {now} WHERE id = $1 AND NOT dead RETURNING drain_requested";
    Ok(row::<Heard>(db.pool(), sql, [worker.uuid().into()]).await?.map(|heard| heard.drain_requested))
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

/// Ask a living worker to drain. False when it was asked before, is dead, or not there.
pub async fn request_drain(db: &impl ConnectionTrait, worker: WorkerId) -> Result<bool> {
    let sql = "UPDATE workers SET drain_requested = TRUE WHERE id = $1 AND NOT dead AND NOT drain_requested";
    Ok(execute(db, sql, [worker.uuid().into()]).await? == 1)
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    name: String,
    host: String,
    version: String,
    slots: i32,
    running: i64,
    draining: bool,
    dead: bool,
    started_at: i64,
    last_beat_at: i64,
}

impl From<Row> for Worker {
    fn from(row: Row) -> Self {
        let state = match (row.dead, row.draining) {
            (true, _) => WorkerState::Dead,
            (false, true) => WorkerState::Draining,
            (false, false) => WorkerState::Active,
        };
        Self {
            id: WorkerId::from_uuid(row.id),
            name: row.name,
            host: row.host,
            version: row.version,
            slots: u32::try_from(row.slots).unwrap_or(0),
            running: u32::try_from(row.running).unwrap_or(0),
            cli_processes: None,
            state,
            started_at: Timestamp::from_unix_ms(row.started_at),
            last_beat_at: Timestamp::from_unix_ms(row.last_beat_at),
        }
    }
}

const SHOWN: &str = "SELECT id, name, host, version, slots, draining OR drain_requested AS draining, dead, started_at, last_beat_at,
                            (SELECT count(*) FROM jobs WHERE worker_id = workers.id AND state = 'running') AS running
                     FROM workers";

/// Living workers, and those that died within `dead_for_ms`, newest first.
pub async fn list(db: &Db, dead_for_ms: i64, before: Option<WorkerId>, limit: u32) -> Result<Vec<Worker>> {
    let mut values: Vec<Value> = vec![dead_for_ms.into(), i64::from(limit).into()];
    let older = before.map_or("", |before| {
        values.push(before.uuid().into());
        "AND id < $3"
    });
    let sql = format!("{SHOWN} WHERE (NOT dead OR last_beat_at > {{now}} - $1) {older} ORDER BY id DESC LIMIT $2");
    Ok(rows::<Row>(db.pool(), &sql, values).await?.into_iter().map(Worker::from).collect())
}

pub async fn find(db: &impl ConnectionTrait, worker: WorkerId) -> Result<Option<Worker>> {
    Ok(row::<Row>(db, &format!("{SHOWN} WHERE id = $1"), [worker.uuid().into()]).await?.map(Worker::from))
}

/// What the leader watches of a living worker.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Pulse {
    pub id: Uuid,
    pub beat: i64,
    pub slots: i32,
    /// Whether it takes jobs.
    pub takes: bool,
    pub host: String,
    pub lock_file: Option<String>,
}

pub async fn pulses(db: &Db) -> Result<Vec<Pulse>> {
    let sql = "SELECT id, beat, slots, NOT (draining OR drain_requested) AS takes, host, lock_file FROM workers WHERE NOT dead";
    rows(db.pool(), sql, []).await
}

/// How many jobs the living workers can run at once, those that take no more left out.
pub async fn slots(db: &Db) -> Result<u64> {
    #[derive(FromQueryResult)]
    struct Sum {
        slots: i64,
    }
    let sql = "SELECT CAST(COALESCE(sum(slots), 0) AS BIGINT) AS slots FROM workers WHERE NOT (dead OR draining OR drain_requested)";
    let sum: Option<Sum> = row(db.pool(), sql, []).await?;
    Ok(sum.and_then(|sum| u64::try_from(sum.slots).ok()).unwrap_or(0))
}

/// Hold a worker's row until the transaction ends: what it claims meanwhile waits, and what it claimed is seen.
async fn hold(db: &impl ConnectionTrait, worker: Uuid) -> Result<()> {
    let _: Option<Id> = row(db, "SELECT id FROM workers WHERE id = $1 {for_update}", [worker.into()]).await?;
    Ok(())
}

/// Declare a worker dead if it did not beat since `beat` was seen. False when it did, or was dead.
pub async fn bury(db: &impl ConnectionTrait, worker: Uuid, beat: i64) -> Result<bool> {
    hold(db, worker).await?;
    let touched =
        execute(db, "UPDATE workers SET dead = TRUE WHERE id = $1 AND beat = $2 AND NOT dead", [worker.into(), beat.into()]).await?;
    Ok(touched == 1)
}

/// Leave: dead by its own word, unless it still holds jobs, which only the reaper may give away.
pub async fn leave(db: &impl ConnectionTrait, worker: WorkerId) -> Result<bool> {
    hold(db, worker.uuid()).await?;
    let touched = execute(
        db,
        "UPDATE workers SET dead = TRUE WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE worker_id = $1 AND state = 'running')",
        [worker.uuid().into()],
    )
    .await?;
    Ok(touched == 1)
}
