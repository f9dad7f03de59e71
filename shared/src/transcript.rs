//! What the CLI goes on from in the next turn of a conversation: its own files about it, packed by the
//! worker. To everybody else it is bytes.

use bytes::Bytes;

use crate::id::JobId;

/// The most bytes of a conversation's transcript, unpacked.
pub const LARGEST: u64 = 50 * 1024 * 1024;

/// One attempt of one job: who wrote a transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnId {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub attempt: u32,
}

/// A transcript, as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The packed files.
    pub body: Bytes,
    /// How many bytes they have unpacked.
    pub bytes: u64,
    /// The CLI that wrote them.
    pub cli_version: Option<String>,
}

impl std::fmt::Debug for Transcript {
    /// Without its content: what people said does not belong into a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transcript").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
