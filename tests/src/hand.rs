//! A worker without a CLI: a test says through it what a job says, event by event.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use shared::{
    event::EventBody,
    job::JobResult,
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    store::Store,
    workers::{Membership, NewWorker},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::system::PATIENCE;

/// A worker of a test. It beats until it is dropped.
pub struct Hand {
    leases: Leases,
    beating: JoinHandle<()>,
}

impl Hand {
    /// Join the workers over `store`; what jobs say may spill to `directory`.
    pub async fn join(store: &Store, directory: &Path) -> anyhow::Result<Self> {
        let worker = NewWorker { name: "hand".into(), host: "here".into(), slots: 8, mcp_servers: Vec::new() };
        let mut membership = Membership::join(store, &worker).await?;
        let config = LeaseConfig { spool_dir: directory.to_owned(), longest_run: Duration::from_mins(5) };
        let leases = Leases::open(store, membership.id(), config).await?;
        let beating = tokio::spawn(async move {
            let mut beats = tokio::time::interval(Duration::from_millis(300));
            loop {
                beats.tick().await;
                membership.beat().await;
            }
        });
        Ok(Self { leases, beating })
    }

    /// The next job.
    pub async fn take(&mut self) -> anyhow::Result<Lease> {
        let never = CancellationToken::new();
        timeout(PATIENCE, self.leases.next(&never)).await.context("no job came")??.context("nobody stops it")
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.beating.abort();
    }
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
