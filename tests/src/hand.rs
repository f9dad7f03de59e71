//! A worker without a CLI: tests and the bench say through it what a job says, event by event.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use shared::{
    event::EventBody,
    id::WorkerId,
    job::JobResult,
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    reconciler,
    store::Store,
    workers::{Membership, NewWorker},
};
use tokio::time::{interval, timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::{client::Client, system::PATIENCE};

/// How often a worker of a test gives a sign of life; what [`crate::system::System`] tells its own.
pub const TEST_BEAT: Duration = Duration::from_millis(300);

/// A place among the workers. It beats until it is dropped.
pub struct Hand {
    leases: Leases,
    _beat: AbortOnDropHandle<()>,
}

impl Hand {
    /// Join the workers over `store`, with a sign of life each `beat`; what jobs say may spill to `directory`.
    pub async fn join(store: &Store, directory: &Path, beat: Duration) -> anyhow::Result<Self> {
        Self::with_slots(store, directory, beat, 8).await
    }

    /// The same with so many slots.
    pub async fn with_slots(store: &Store, directory: &Path, beat: Duration, slots: u32) -> anyhow::Result<Self> {
        let worker = NewWorker { name: "hand".into(), host: "here".into(), slots, mcp_servers: Vec::new(), lock_file: None };
        let mut membership = Membership::join(store, WorkerId::new(), &worker).await?;
        let config = LeaseConfig { spool_dir: directory.to_owned(), longest_run: Duration::from_mins(10) };
        let leases = Leases::open(store, membership.id(), config).await?;
        let mut beats = interval(beat);
        let beating = tokio::spawn(async move {
            loop {
                // Who is taken for dead loses the job, and the streams show it.
                beats.tick().await;
                membership.beat().await;
            }
        });
        Ok(Self { leases, _beat: AbortOnDropHandle::new(beating) })
    }

    /// The next job.
    pub async fn take(&mut self) -> anyhow::Result<Lease> {
        let never = CancellationToken::new();
        let mut taken = timeout(PATIENCE, self.leases.next(1, &never)).await.context("no job came")??;
        taken.pop().context("nobody stops it")
    }

    /// The next jobs, whenever they come, and at most `room` of them. None once `stop` fired.
    pub async fn next(&mut self, room: usize, stop: &CancellationToken) -> anyhow::Result<Vec<Lease>> {
        Ok(self.leases.next(room, stop).await?)
    }

    /// A job of `client`, taken.
    pub async fn begin(&mut self, client: &Client) -> anyhow::Result<Lease> {
        let id = client.say("by hand").await?;
        let lease = self.take().await?;
        anyhow::ensure!(lease.job().id.to_string() == id, "`{}` came in place of `{id}`", lease.job().id);
        Ok(lease)
    }
}

/// Watch over the jobs of `store` as every process of the product does, until this is dropped.
pub fn lead(store: &Store) -> DropGuard {
    let stop = CancellationToken::new();
    tokio::spawn(reconciler::run(store.clone(), stop.clone()));
    stop.drop_guard()
}

/// Say a piece of the answer.
pub fn say(lease: &Lease, text: &str) -> anyhow::Result<()> {
    Ok(lease.emit(&EventBody::TextDelta { message_id: "msg_1".into(), text: text.into(), parent_tool_use_id: None })?)
}

/// End a job well.
pub async fn complete(lease: Lease, text: &str) -> anyhow::Result<()> {
    let outcome = Outcome::Completed(JobResult { text: text.into(), ..JobResult::default() });
    lease.settle(outcome, Report::default(), &CancellationToken::new()).await?;
    Ok(())
}
