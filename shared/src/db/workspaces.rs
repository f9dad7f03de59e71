//! The rows of workspaces: for each conversation one list of its files. The contents are elsewhere.

use sea_orm::{ConnectionTrait, FromQueryResult};

use super::{Db, execute, row};
use crate::{Error, Result, id::SessionId, workspace::Manifest};

/// What is in a conversation's workspace.
pub async fn get(db: &impl ConnectionTrait, session: SessionId) -> Result<Manifest> {
    #[derive(FromQueryResult)]
    struct Packed {
        manifest: Vec<u8>,
    }
    let sql = "SELECT manifest FROM workspaces WHERE session_id = $1";
    let packed: Option<Packed> = row(db, sql, [session.uuid().into()]).await?;
    packed.map_or_else(|| Ok(Manifest::default()), |packed| unpack(&packed.manifest))
}

/// How many bytes a conversation's workspace holds, and the others of its owner together.
pub async fn bytes(db: &Db, session: SessionId) -> Result<(u64, u64)> {
    #[derive(FromQueryResult)]
    struct Sums {
        own: i64,
        others: i64,
    }
    let sql = "SELECT CAST(COALESCE(SUM(CASE WHEN session_id = $1 THEN bytes ELSE 0 END), 0) AS BIGINT) AS own,
                      CAST(COALESCE(SUM(CASE WHEN session_id = $1 THEN 0 ELSE bytes END), 0) AS BIGINT) AS others
               FROM workspaces WHERE session_id IN
                   (SELECT id FROM sessions WHERE deleted_at IS NULL AND user_id = (SELECT user_id FROM sessions WHERE id = $1))";
    let sums: Option<Sums> = row(db.pool(), sql, [session.uuid().into()]).await?;
    let count = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    Ok(sums.map_or((0, 0), |sums| (count(sums.own), count(sums.others))))
}

/// Let this be in a conversation's workspace.
pub async fn put(db: &impl ConnectionTrait, session: SessionId, manifest: &Manifest) -> Result<()> {
    execute(
        db,
        "INSERT INTO workspaces (session_id, manifest, files, bytes, updated_at) VALUES ($1, $2, $3, $4, {now})
         ON CONFLICT (session_id) DO UPDATE SET manifest = excluded.manifest, files = excluded.files, bytes = excluded.bytes,
                                                updated_at = excluded.updated_at",
        [
            session.uuid().into(),
            pack(manifest)?.into(),
            i32::try_from(manifest.contents().count()).unwrap_or(i32::MAX).into(),
            i64::try_from(manifest.bytes()).unwrap_or(i64::MAX).into(),
        ],
    )
    .await?;
    Ok(())
}

fn pack(manifest: &Manifest) -> Result<Vec<u8>> {
    const LEVEL: i32 = 3;
    let json = serde_json::to_vec(manifest).expect("a manifest has only string keys");
    zstd::bulk::compress(&json, LEVEL)
        .map_err(|source| Error::Internal { what: "could not compress a list of files", source: source.into() })
}

fn unpack(packed: &[u8]) -> Result<Manifest> {
    let unreadable = |source: crate::error::Cause| Error::Internal { what: "could not read a stored list of files", source };
    let json = zstd::stream::decode_all(packed).map_err(|source| unreadable(source.into()))?;
    serde_json::from_slice(&json).map_err(|source| unreadable(source.into()))
}
