//! What is left of jobs where operators look: the moves of each in the record, and at rest nothing in the queue, in
//! Redis or among the processes.

use std::{borrow::Borrow, collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use sea_orm::{ConnectionTrait as _, Statement};
use shared::{
    id::JobId,
    workers::{WorkerState, Workers},
};
use tokio::time::{Instant, interval, timeout_at};

use crate::{
    servers::RedisServer,
    system::{System, processes_with},
};

/// The states that jobs end in, for SQL.
pub const TERMINAL: &str = "('completed', 'failed', 'cancelled')";

/// A move of a job from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Whose it is.
    pub job: JobId,
    /// During which attempt.
    pub attempt: i32,
    /// To which state.
    pub to: String,
    /// By which worker, as the record has it.
    pub worker: Option<uuid::Uuid>,
    /// When, in Unix milliseconds.
    pub at: i64,
}

impl Move {
    /// Whether the job ended with it.
    pub fn is_terminal(&self) -> bool {
        ["completed", "failed", "cancelled"].contains(&self.to.as_str())
    }
}

/// Whether a job with these moves was ended by the worker that had it last, in the attempt that it had it for.
pub fn ended_by_its_last_holder(moves: &[impl Borrow<Move>]) -> bool {
    let moves = || moves.iter().rev().map(Borrow::borrow);
    let (begun, ended) = (moves().find(|one| one.to == "running"), moves().find(|one| one.is_terminal()));
    begun.zip(ended).is_some_and(|(begun, ended)| (begun.worker, begun.attempt) == (ended.worker, ended.attempt))
}

/// All moves of all jobs, in the order in which they were made.
pub async fn moves(system: &System) -> anyhow::Result<Vec<Move>> {
    let database = system.database.connect().await?;
    let sql = "SELECT job_id, attempt, to_state, worker_id, at FROM job_events ORDER BY at, attempt";
    let rows = database.query_all_raw(Statement::from_string(database.get_database_backend(), sql)).await?;
    database.close().await?;
    let read = |row: &sea_orm::QueryResult| {
        anyhow::Ok(Move {
            job: JobId::from_uuid(row.try_get("", "job_id")?),
            attempt: row.try_get("", "attempt")?,
            to: row.try_get("", "to_state")?,
            worker: row.try_get("", "worker_id")?,
            at: row.try_get("", "at")?,
        })
    };
    rows.iter().map(read).collect()
}

/// The moves of one job.
pub async fn moves_of(system: &System, id: &str) -> anyhow::Result<Vec<Move>> {
    let id: JobId = id.parse()?;
    Ok(moves(system).await?.into_iter().filter(|one| one.job == id).collect())
}

/// Wait until each job has ended, once, and nothing is left of any: no entry in the queue, none that a worker heard of,
/// no consumer without its worker, no process. How long that took. Nobody announces it, so this looks again and again.
pub async fn await_rest(system: &System, patience: Duration) -> anyhow::Result<Duration> {
    let (began, store) = (Instant::now(), system.store().await?);
    let workers = Workers::new(&store);
    let mut looks = interval(Duration::from_millis(50));
    let mut left = vec!["nobody has looked".to_owned()];
    let looking = async {
        while !left.is_empty() {
            looks.tick().await;
            left = left_over(system, &workers).await?;
        }
        anyhow::Ok(())
    };
    let seen = timeout_at(began + patience, looking).await;
    seen.with_context(|| format!("not at rest after {patience:?}: {}", left.join("; ")))??;
    let twice = "(SELECT job_id FROM job_events WHERE to_state IN ";
    let twice = system.database.count(&format!("{twice}{TERMINAL} GROUP BY job_id HAVING count(*) > 1) AS twice")).await?;
    ensure!(twice == 0, "{twice} jobs ended more than once");
    Ok(began.elapsed())
}

async fn left_over(system: &System, workers: &Workers) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    let mut note = |count: i64, what: &str| {
        if count > 0 {
            left.push(format!("{count} {what}"));
        }
    };
    note(system.database.count(&format!("jobs WHERE state NOT IN {TERMINAL}")).await?, "jobs that have not ended");
    let (entries, pending, index) = queue(&system.redis)?;
    note(entries, "entries in the queue");
    note(pending, "entries that a worker heard of");
    note(index, "entries in the index");
    let living: BTreeSet<String> = workers
        .list(None, 1000)
        .await?
        .into_iter()
        .filter(|worker| worker.state != WorkerState::Dead)
        .map(|one| one.id.to_string())
        .collect();
    let orphans = consumers(&system.redis)?.into_iter().filter(|name| !living.contains(name)).count();
    note(i64::try_from(orphans)?, "consumers without a worker");
    let mut processes = BTreeSet::new();
    for mark in marks(system.directory()) {
        processes.extend(processes_with(&mark)?);
    }
    note(i64::try_from(processes.len())?, "processes of jobs");
    Ok(left)
}

/// What is in the command lines of what jobs of a test started, with a sandbox and without.
fn marks(directory: &Path) -> [String; 2] {
    let directory = directory.display();
    [format!("{directory}/jobs"), format!("{directory}/cli/")]
}

/// How many entries the queue has, of how many of them some worker heard, and how many the index knows.
pub fn queue(redis: &RedisServer) -> anyhow::Result<(i64, i64, i64)> {
    let number = |words: &[&str]| anyhow::Ok(redis.command(words)?.lines().next().unwrap_or_default().trim().parse().unwrap_or(-1));
    let exists = number(&["EXISTS", "{q}:work"])? == 1;
    let pending = if exists { number(&["XPENDING", "{q}:work", "w"])? } else { 0 };
    Ok((number(&["XLEN", "{q}:work"])?, pending, number(&["HLEN", "{q}:idx"])?))
}

/// Who is known to the queue as somebody who hears.
pub fn consumers(redis: &RedisServer) -> anyhow::Result<Vec<String>> {
    let told = redis.command(&["XINFO", "CONSUMERS", "{q}:work", "w"])?;
    let mut lines = told.lines();
    let mut names = Vec::new();
    while let Some(line) = lines.next() {
        if line == "name" {
            names.extend(lines.next().map(str::to_owned));
        }
    }
    Ok(names)
}

/// The keys in Redis that would stay for ever, but those of the queue itself.
pub fn immortal_keys(redis: &RedisServer) -> anyhow::Result<Vec<String>> {
    let script = "local found = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                  if redis.call('TTL', key) == -1 and string.sub(key, 1, 4) ~= '{q}:' then found[#found + 1] = key end end return found";
    Ok(redis.command(&["EVAL", script, "0"])?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}
