//! What the doors of this crate can answer instead of a result. Made for code to switch on; the cause
//! travels as `source` for the log and never reaches a client.

use std::sync::Arc;

use crate::workspace::Refused;

/// A boxed cause, kept for the log.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The result of a door.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a door could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The same idempotency key was used before with another request.
    #[error("idempotency key was used with another request")]
    IdempotencyMismatch,
    /// Another account has this address.
    #[error("another account has this email address")]
    EmailTaken,
    /// What was shown is not, or no longer, the account's password.
    #[error("the password is another one")]
    WrongPassword,
    /// Nobody would be left who may administer the service.
    #[error("the last active admin stays")]
    LastAdmin,
    /// The owner's budget of the day does not cover what the job reserves.
    #[error("daily budget does not cover the job")]
    BudgetExhausted,
    /// The owner, or the key, has as many jobs that have not ended as it may have.
    #[error("too many jobs have not ended")]
    TooManyJobs,
    /// As many jobs of the owner wait as may.
    #[error("too many jobs wait")]
    QueueFull,
    /// Only a job that was given up after all its tries is sent again.
    #[error("job is not a dead letter")]
    NotADeadLetter,
    /// There is no such conversation, or it is somebody else's.
    #[error("session does not exist")]
    NoSuchSession,
    /// The conversation was deleted.
    #[error("session was deleted")]
    SessionDeleted,
    /// The conversation takes no more jobs, and its files stay as they are.
    #[error("session is archived")]
    SessionArchived,
    /// A job of the conversation runs: its files are that job's for the moment.
    #[error("a job of the session runs")]
    SessionBusy,
    /// The workspace cannot be changed like that.
    #[error("workspace cannot be changed like that")]
    Workspace(#[source] Refused),
    /// What is dead cannot be asked for anything.
    #[error("worker is dead")]
    WorkerDead,
    /// The database or Redis is away or too slow; the same call may pass later.
    #[error("{service} is unavailable")]
    Unavailable {
        /// `database` or `redis`.
        service: &'static str,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// Somebody else owns the row by now: the caller's attempt is over and must write nothing more.
    #[error("attempt is over: it was fenced off by a newer one")]
    Fenced,
    /// A store answered something this version cannot read, or refused a statement: a defect.
    #[error("{what}")]
    Internal {
        /// What was being done.
        what: &'static str,
        /// What the driver said.
        #[source]
        source: Cause,
    },
}

impl Error {
    /// The failure of a question that several asked at once; `what` they wanted where it is a defect.
    pub(crate) fn of_several(error: Arc<Self>, what: &'static str) -> Self {
        match *error {
            Self::Unavailable { service, .. } => Self::Unavailable { service, source: error.into() },
            _ => Self::Internal { what, source: error.into() },
        }
    }

    /// Whether waiting may help.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the attempt is somebody else's by now.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced)
    }
}
