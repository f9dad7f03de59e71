//! A worker that runs nothing, in a process of its own: it takes as many jobs at once as it has slots, and
//! settles each as soon as it has it. What became of them it says on standard output.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc, thread};

use anyhow::Context as _;
use clap::Args;
use shared::{
    config::{Env, StoreConfig},
    lease::Lease,
    store::Store,
};
use tokio::{
    runtime::Builder,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::ends::{End, Ends};
use crate::{
    bench::streams::{part::Part, said::now},
    hand::{Hand, complete},
    system::System,
};

/// What the worker works on.
#[derive(Args)]
pub struct Serve {
    /// The address of the database.
    #[arg(long)]
    database: String,
    /// The address of Redis.
    #[arg(long)]
    redis: String,
    /// Where what jobs say may spill to.
    #[arg(long)]
    directory: PathBuf,
    /// How many jobs it takes at once.
    #[arg(long)]
    slots: u32,
}

/// Such a worker, as the one who started it sees it.
pub struct Hands(Part);

impl Hands {
    /// Start one over the stores of `system`, and wait until it takes jobs.
    pub async fn start(system: &System, slots: u32) -> anyhow::Result<Self> {
        let (slots, directory) = (slots.to_string(), system.directory().to_string_lossy());
        let arguments = ["--database", system.database.url(), "--redis", system.redis.url(), "--directory", &directory, "--slots", &slots];
        let mut part = Part::start("hands", &arguments)?;
        part.line().await?;
        Ok(Self(part))
    }

    /// Its process.
    pub fn id(&self) -> anyhow::Result<u32> {
        self.0.id()
    }

    /// Tell `ends` what becomes of its jobs. It does not end while the worker lives, and may be dropped.
    pub async fn tell(&mut self, ends: &Ends) -> anyhow::Result<Infallible> {
        loop {
            let line = self.0.line().await?;
            let mut words = line.split(' ');
            let id = words.next().context("an end is a job's")?;
            let mut time = || anyhow::Ok(words.next().context("an end has its times")?.parse()?);
            ends.tell(id, End { claimed: time()?, settled: time()? })?;
        }
    }

    /// Let it end what it has, and wait for its own end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.0.input = None;
        self.0.ended().await
    }
}

/// Work until standard input ends.
pub fn run(serve: &Serve) -> anyhow::Result<()> {
    // The runtime of a worker.
    Builder::new_multi_thread().enable_all().build()?.block_on(work(serve))
}

#[expect(clippy::print_stdout, reason = "its parent listens")]
async fn work(serve: &Serve) -> anyhow::Result<()> {
    let config = StoreConfig::from_env(&Env::of([("DATABASE_URL", serve.database.as_str()), ("REDIS_URL", &serve.redis)]))?;
    let stop = CancellationToken::new();
    let store = Store::open(&config, &stop).await?.context("nobody shuts it down")?;
    let mut hand = Hand::with_slots(&store, &serve.directory, store.timing().beat, serve.slots).await?;
    println!("joined");
    stop_at_the_end_of_input(stop.clone());

    let slots = Arc::new(Semaphore::new(serve.slots as usize));
    let mut settling = JoinSet::new();
    loop {
        // As a worker does: for all the slots that are free, once there is one.
        let mut free = slots.clone().acquire_owned().await?;
        while let Ok(another) = slots.clone().try_acquire_owned() {
            free.merge(another);
        }
        let taken = hand.next(free.num_permits(), &stop).await?;
        if taken.is_empty() {
            break;
        }
        for lease in taken {
            settling.spawn(settle(lease, now(), free.split(1).context("there are no more of them than slots")?));
        }
        while let Some(settled) = settling.try_join_next() {
            settled??;
        }
    }
    while let Some(settled) = settling.join_next().await {
        settled??;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its parent listens")]
async fn settle(lease: Lease, claimed: u64, _slot: OwnedSemaphorePermit) -> anyhow::Result<()> {
    let id = lease.job().id;
    Box::pin(complete(lease, "done")).await.with_context(|| format!("`{id}` could not be settled"))?;
    println!("{id} {claimed} {}", now());
    Ok(())
}

fn stop_at_the_end_of_input(stop: CancellationToken) {
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop.cancel();
    });
}
