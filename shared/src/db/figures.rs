//! How much there is to do, counted by indexes that hold only what has not ended.

use std::time::Duration;

use sea_orm::FromQueryResult;

use super::{Db, row};
use crate::{Result, metrics::Figures};

pub async fn read(db: &Db) -> Result<Figures> {
    #[derive(FromQueryResult)]
    struct Row {
        queued: i64,
        oldest_wait_ms: i64,
        running: i64,
        dead_letters: i64,
        workers: i64,
        slots: i64,
    }
    let counted: Option<Row> = row(
        db.pool(),
        "SELECT waiting.queued, waiting.oldest_wait_ms,
                (SELECT count(*) FROM jobs WHERE state = 'running') AS running,
                (SELECT count(*) FROM jobs WHERE dead_letter) AS dead_letters,
                living.workers, living.slots
         FROM (SELECT count(*) AS queued, COALESCE({now} - min(run_at), 0) AS oldest_wait_ms FROM jobs WHERE state = 'queued') AS waiting,
              (SELECT count(*) AS workers, COALESCE(sum(CASE WHEN draining THEN 0 ELSE slots END), 0) AS slots
               FROM workers WHERE NOT dead) AS living",
        [],
    )
    .await?;
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(counted.map_or_else(Figures::default, |row| Figures {
        queued: count(row.queued),
        running: count(row.running),
        oldest_wait: Duration::from_millis(count(row.oldest_wait_ms)),
        dead_letters: count(row.dead_letters),
        workers: count(row.workers),
        slots: count(row.slots),
    }))
}
