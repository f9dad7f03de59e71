//! A worker without a CLI: it takes jobs by the worker's own doors and says what the bench wants to be said.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use shared::{
    job::JobResult,
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    store::Store,
    workers::{Membership, NewWorker},
};
use tokio::time::{interval, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{client::Client, system::PATIENCE};

/// A place among the workers.
pub struct Hand {
    leases: Leases,
    _beat: AbortOnDropHandle<()>,
}

impl Hand {
    /// Join the workers of `store`. What does not fit into memory goes to `spool`.
    pub async fn join(store: &Store, spool: PathBuf) -> anyhow::Result<Self> {
        let worker = NewWorker { name: "hand".into(), host: "here".into(), slots: 1, mcp_servers: Vec::new() };
        let mut membership = Membership::join(store, &worker).await?;
        let config = LeaseConfig { spool_dir: spool, longest_run: Duration::from_mins(10) };
        let leases = Leases::open(store, membership.id(), config).await?;
        let mut beats = interval(store.timing().beat);
        let beat = tokio::spawn(async move {
            loop {
                beats.tick().await;
                // Who is taken for dead loses the job, and the streams show it.
                membership.beat().await;
            }
        });
        Ok(Self { leases, _beat: AbortOnDropHandle::new(beat) })
    }

    /// The next job.
    pub async fn take(&mut self) -> anyhow::Result<Lease> {
        let lease = timeout(PATIENCE, self.leases.next(&CancellationToken::new())).await.context("no job came")??;
        lease.context("nobody told it to stop")
    }

    /// A job of `client`, taken.
    pub async fn begin(&mut self, client: &Client) -> anyhow::Result<Lease> {
        let id = client.say("by hand").await?;
        let lease = self.take().await?;
        anyhow::ensure!(lease.job().id.to_string() == id, "`{}` came in place of `{id}`", lease.job().id);
        Ok(lease)
    }
}

/// End a job well.
pub async fn complete(lease: Lease) -> anyhow::Result<()> {
    let outcome = Outcome::Completed(JobResult { text: "done".into(), ..JobResult::default() });
    lease.settle(outcome, Report::default(), &CancellationToken::new()).await?;
    Ok(())
}
