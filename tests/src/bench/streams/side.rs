//! The two who serve the same events: the product, and a bare server.

use std::{io::Write as _, ops::Range};

use anyhow::Context as _;
use api::ring::Framed;
use bytes::Bytes;
use serde_json::json;
use shared::{
    event::{Event, EventBody, EventId, StartReason},
    id::WorkerId,
    lease::Lease,
    time::Timestamp,
};

use super::{crowd::Target, part::Part, said::piece};
use crate::{
    hand::{Hand, complete},
    servers::Kind,
    system::{Api, Cli, System},
};

/// The product: an api over stores of its own. What is said to it goes all the way of a worker's events.
pub struct Service {
    /// The server.
    pub api: Api,
    hand: Hand,
    /// Last: the stores outlive whoever uses them.
    pub system: System,
}

/// A job on one of the sides, begun.
pub struct Job {
    /// Where it is watched.
    pub target: Target,
    /// The process that serves it.
    pub server: u32,
    source: Source,
}

/// Who says the events.
enum Source {
    Service(Box<Lease>),
    Bare(Box<Part>),
}

impl Service {
    /// Start it.
    pub async fn start() -> anyhow::Result<Self> {
        // The clocks of production, not those of tests.
        let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
        let api = system.api().await?;
        let store = system.store().await?;
        let hand = Hand::join(&store, system.directory(), store.timing().beat).await?;
        Ok(Self { api, hand, system })
    }

    /// Begin a job.
    pub async fn begin(&mut self) -> anyhow::Result<Job> {
        let lease = self.hand.begin(&self.api.client).await?;
        let address = self.api.client.base().trim_start_matches("http://").parse()?;
        let target = Target { address, path: format!("/api/jobs/{}/events", lease.job().id), key: self.api.key.clone() };
        Ok(Job { target, server: self.api.process.id()?, source: Source::Service(Box::new(lease)) })
    }
}

impl Job {
    /// Begin one on a bare server of its own.
    pub async fn bare() -> anyhow::Result<Self> {
        let mut part = Part::start("bare", &[])?;
        let started = EventBody::JobStarted { attempt: 1, worker_id: WorkerId::new(), reason: StartReason::First };
        write(&part, &frame(0, &started))?;
        let address = part.line().await?.parse()?;
        let target = Target { address, path: "/".to_owned(), key: "none".to_owned() };
        Ok(Self { target, server: part.id()?, source: Source::Bare(Box::new(part)) })
    }

    /// Say the pieces with these numbers, which are due at `due`. They begin with 1: the first event is the start.
    pub fn say(&self, numbers: Range<u32>, due: u64) -> anyhow::Result<()> {
        match &self.source {
            Source::Service(lease) => Ok(numbers.map(|n| piece(n, due)).try_for_each(|piece| lease.emit(&piece))?),
            Source::Bare(part) => write(part, &numbers.flat_map(|n| frame(n, &piece(n, due))).collect::<Vec<u8>>()),
        }
    }

    /// End it with the event that is its last, the one with the number `n`.
    pub async fn end(self, n: u32) -> anyhow::Result<()> {
        match self.source {
            Source::Service(lease) => Box::pin(complete(*lease, "done")).await,
            Source::Bare(mut part) => {
                let id = EventId { attempt: 1, n };
                let json = json!({"id": id, "type": "job.completed"}).to_string();
                write(&part, &Framed::new(&Event { id, json: json.into() }).frame)?;
                part.input = None;
                part.ended().await
            }
        }
    }
}

fn frame(n: u32, body: &EventBody) -> Bytes {
    Framed::new(&Event::new(EventId { attempt: 1, n }, body, Timestamp::now())).frame
}

fn write(part: &Part, bytes: &[u8]) -> anyhow::Result<()> {
    let mut input = part.input.as_ref().context("its input is open")?;
    Ok(input.write_all(bytes)?)
}
