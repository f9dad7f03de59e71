//! The door to jobs: submit, find, list, cancel.

use crate::{
    Result,
    id::{ApiKeyId, JobId, SessionId, UserId},
    job::{ChatSpec, Job, JobState},
    store::Store,
};

/// What can be done with jobs.
#[derive(Clone)]
pub struct Jobs {}

/// A checked request for a job.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Whose it is.
    pub user_id: UserId,
    /// The key it came with.
    pub api_key_id: Option<ApiKeyId>,
    /// What it asks.
    pub spec: ChatSpec,
    /// The client's word for this request: the same word never makes a second job.
    pub idempotency_key: Option<String>,
    /// W3C `traceparent` of the request.
    pub traceparent: Option<String>,
}

/// An accepted job.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// Whether it was accepted before, under the same idempotency key.
    pub replayed: bool,
}

/// Which jobs to list, newest first.
#[derive(Clone, Copy, Debug)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this session.
    pub session_id: Option<SessionId>,
    /// Only those older than this one.
    pub before: Option<JobId>,
    /// The most to answer.
    pub limit: u32,
}

impl Jobs {
    /// The door over `store`.
    pub fn new(_store: &Store) -> Self {
        unimplemented!()
    }

    /// Accept a job: when this answers, the job will end, whatever dies.
    pub async fn submit(&self, _new: NewJob) -> Result<Submitted> {
        unimplemented!()
    }

    /// A job of `user`.
    pub async fn find(&self, _user: UserId, _id: JobId) -> Result<Option<Job>> {
        unimplemented!()
    }

    /// Any job, whoever it belongs to. For the feed, which shows nothing but what its watchers may see.
    pub async fn peek(&self, _id: JobId) -> Result<Option<Job>> {
        unimplemented!()
    }

    /// The jobs of `user` that `filter` lets through, newest first.
    pub async fn list(&self, _user: UserId, _filter: JobFilter) -> Result<Vec<Job>> {
        unimplemented!()
    }

    /// Ask for the end of a job of `user`. A queued one is cancelled at once; a running one gets
    /// `cancel_requested_at`; one that ended is answered as it is.
    pub async fn cancel(&self, _user: UserId, _id: JobId) -> Result<Option<Job>> {
        unimplemented!()
    }

    /// How many jobs wait before this queued one, all users together; 0 for the first.
    pub async fn position(&self, _job: &Job) -> Result<u64> {
        unimplemented!()
    }
}
