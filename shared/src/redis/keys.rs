//! Every key and channel. Braces make the keys of one script share a Redis Cluster slot.

use crate::id::{ApiKeyId, JobId, SessionId, UserId, WorkerId};

/// The stream of doorbells: one entry for each job that waits or runs.
pub const WORK: &str = "{q}:work";
/// Hash: job → its entry in [`WORK`].
pub const INDEX: &str = "{q}:idx";
/// How many jobs the workers can run at once: the most entries of [`WORK`].
pub const SLOTS: &str = "{q}:slots";
/// There while jobs wait for a place in [`WORK`].
pub const BACKLOG: &str = "{q}:backlog";
/// Where it is announced that a place became free, or may be needed.
pub const ROOM: &str = "{q}:room";
/// The consumer group of all workers.
pub const GROUP: &str = "w";
/// The leader's stamp, another one each time it has reached the database. Gone: nobody reaches it.
pub const LEADER_STAMP: &str = "leader:stamp";

/// Where it is announced that a user's rights changed: each message is the user's UUID.
pub const ACCESS: &str = "access";

/// One job's numbered log.
pub fn log(job: JobId) -> String {
    format!("j:{{{}}}:log", job.uuid().simple())
}

/// Where the growth of one job's log is announced.
pub fn channel(job: JobId) -> String {
    format!("j:{{{}}}:ch", job.uuid().simple())
}

/// Where it is announced that a job of this user changed its state: each message is the job's UUID.
pub fn jobs_of(user: UserId) -> String {
    format!("u:{{{}}}:jobs", user.uuid().simple())
}

/// Where one worker is called to beat at once: its row, or that of a job of its, asks something of it.
pub fn calls_of(worker: WorkerId) -> String {
    format!("w:{{{}}}:ctl", worker.uuid().simple())
}

/// What one worker says of itself.
pub fn status_of(worker: WorkerId) -> String {
    format!("w:{{{}}}:st", worker.uuid().simple())
}

/// The hourly window of a user.
pub fn user_window(user: UserId) -> String {
    format!("l:{{{}}}:u", user.uuid().simple())
}

/// The hourly window of a key of `user`.
pub fn key_window(user: UserId, key: ApiKeyId) -> String {
    format!("l:{{{}}}:k:{}", user.uuid().simple(), key.uuid().simple())
}

/// The copy of a conversation's transcript.
pub fn transcript(session: SessionId) -> String {
    format!("s:{{{}}}:t", session.uuid().simple())
}
