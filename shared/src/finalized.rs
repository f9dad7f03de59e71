//! The note that a job's end reached everybody, made for many jobs at once and a little later: it spares the
//! leader a look, and nobody waits for it. What is lost of it, with its process or because there is too much at
//! once, the leader finds out by itself.

use std::time::Duration;

use tokio::{sync::mpsc, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    db::{Db, jobs as table},
    id::JobId,
};

/// How long the first waits for others.
const PAUSE: Duration = Duration::from_millis(200);
/// The most in one statement.
const BATCH: usize = 500;
/// The most that wait for a database that is away.
const MOST: usize = 10_000;

/// Where it is told. Its task ends with it.
pub struct Finalized {
    jobs: mpsc::Sender<JobId>,
    _task: AbortOnDropHandle<()>,
}

impl Finalized {
    /// Note it in `db`.
    pub fn start(db: Db) -> Self {
        let (jobs, inbox) = mpsc::channel(MOST);
        Self { jobs, _task: AbortOnDropHandle::new(tokio::spawn(note(db, inbox))) }
    }

    /// `job` has ended, its whole log is in Redis and its doorbell is gone.
    pub fn note(&self, job: JobId) {
        let _ = self.jobs.try_send(job);
    }
}

async fn note(db: Db, mut inbox: mpsc::Receiver<JobId>) {
    let mut jobs = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut jobs, 1).await > 0 {
        sleep(PAUSE).await;
        while jobs.len() < BATCH
            && let Ok(job) = inbox.try_recv()
        {
            jobs.push(job);
        }
        if let Err(error) = table::mark_finalized(&db, &jobs).await {
            tracing::debug!(%error, "Left it to the leader to note whose end everybody heard");
        }
        jobs.clear();
    }
}
