//! A copy of small transcripts, for a turn that follows soon. Each says which turn wrote it, and whoever
//! reads it asks the record for that first: an old copy is never taken for the present one.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use fred::{
    interfaces::KeysInterface as _,
    prelude::{Client, Expiration},
};
use uuid::Uuid;

use super::{keys, unavailable};
use crate::{
    Result,
    id::{JobId, SessionId},
    transcript::TurnId,
};

/// How long a copy is kept.
const LIFE: Duration = Duration::from_mins(10);
/// The largest transcript, compressed, that is copied.
pub const LARGEST: usize = 256 * 1024;
/// A job's UUID and an attempt come before the copy itself.
const HEAD: usize = 16 + 4;

/// The copy of what `turn` wrote, if that is the one there is.
pub async fn get(client: &Client, session: SessionId, turn: TurnId) -> Result<Option<Bytes>> {
    let found: Option<Bytes> = client.get(keys::transcript(session)).await.map_err(unavailable)?;
    Ok(found.and_then(split).filter(|(wrote, _)| *wrote == turn).map(|(_, body)| body))
}

/// Keep a copy of what `turn` wrote.
pub async fn put(client: &Client, session: SessionId, turn: TurnId, body: &[u8]) -> Result<()> {
    let life_ms = i64::try_from(LIFE.as_millis()).unwrap_or(i64::MAX);
    let expiration = Some(Expiration::PX(life_ms));
    client.set::<(), _, _>(keys::transcript(session), join(turn, body), expiration, None, false).await.map_err(unavailable)
}

/// Forget the copy.
pub async fn forget(client: &Client, session: SessionId) -> Result<()> {
    client.del::<(), _>(keys::transcript(session)).await.map_err(unavailable)
}

fn join(turn: TurnId, body: &[u8]) -> Bytes {
    let mut copy = BytesMut::with_capacity(HEAD + body.len());
    copy.put_slice(turn.job.uuid().as_bytes());
    copy.put_u32(turn.attempt);
    copy.put_slice(body);
    copy.freeze()
}

fn split(mut copy: Bytes) -> Option<(TurnId, Bytes)> {
    if copy.len() < HEAD {
        return None;
    }
    let head = copy.split_to(HEAD);
    let (job, attempt) = head.split_at(16);
    let job = JobId::from_uuid(Uuid::from_slice(job).ok()?);
    Some((TurnId { job, attempt: u32::from_be_bytes(attempt.try_into().ok()?) }, copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_which_turn_wrote_it() {
        let turn = TurnId { job: JobId::new(), attempt: 7 };

        assert_eq!(split(join(turn, b"words")), Some((turn, Bytes::from_static(b"words"))));
        assert_eq!(split(Bytes::from_static(b"short")), None);
    }
}
