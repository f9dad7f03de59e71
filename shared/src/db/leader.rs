//! The row that says who leads. Every statement is a compare-and-set on its term and beat.

use sea_orm::FromQueryResult;
use uuid::Uuid;

use super::{Db, execute, row};
use crate::Result;

/// The leader's row as seen by one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Seen {
    pub holder: Option<Uuid>,
    pub term: i64,
    pub beat: i64,
}

pub async fn look(db: &Db) -> Result<Seen> {
    let seen = row(db.pool(), "SELECT holder, term, beat FROM leader WHERE id = 1", []).await?;
    seen.ok_or_else(|| crate::Error::Internal { what: "the leader row is missing", source: "no such row".into() })
}

/// Take over from whoever `seen` shows, if nothing moved since. The new term on success.
pub async fn take(db: &Db, candidate: Uuid, seen: Seen) -> Result<Option<i64>> {
    let taken = execute(
        db.pool(),
        "UPDATE leader SET holder = $1, term = term + 1, beat = beat + 1 WHERE id = 1 AND term = $2 AND beat = $3",
        [candidate.into(), seen.term.into(), seen.beat.into()],
    )
    .await?;
    Ok((taken == 1).then_some(seen.term + 1))
}

/// Say that the leader of `term` lives. False when somebody else leads by now.
pub async fn beat(db: &Db, leader: Uuid, term: i64) -> Result<bool> {
    let touched =
        execute(db.pool(), "UPDATE leader SET beat = beat + 1 WHERE id = 1 AND holder = $1 AND term = $2", [leader.into(), term.into()])
            .await?;
    Ok(touched == 1)
}

/// Give the place up, so that the next one need not wait for a silence.
pub async fn resign(db: &Db, leader: Uuid, term: i64) -> Result<()> {
    execute(
        db.pool(),
        "UPDATE leader SET holder = NULL, beat = beat + 1 WHERE id = 1 AND holder = $1 AND term = $2",
        [leader.into(), term.into()],
    )
    .await?;
    Ok(())
}
