//! `worker` runs jobs; `worker config` prints its settings; `worker supervise` and `worker tether` are the small
//! parents it starts around each CLI process.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use shared::{
    config::Env,
    reconciler,
    settings::{self, Reader},
    stop_signals::StopSignals,
    store::Store,
    tools::Tools,
};
use tokio_util::sync::CancellationToken;
use worker::{
    claude::{process::Launch, sandbox::Sandbox, upstream::Upstream},
    config::{Config, find_program},
    http::{self, Pages},
    job_dir::JobsRoot,
    metrics::Metrics,
    runner::{self, Shutdown},
    supervise::{Supervise, Tether},
    workshop::Workshop,
};

/// Runs chat jobs with the Claude CLI. Its settings are environment variables (see `worker config`).
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the settings as they are, secrets masked; fails where one cannot be used.
    Config,
    /// Run a program and end all of it when the worker is gone (the worker calls this itself).
    #[command(hide = true)]
    Supervise(Supervise),
    /// Become a program that ends with the calling supervisor (the supervisor calls this itself).
    #[command(hide = true)]
    Tether(Tether),
}

fn main() -> anyhow::Result<ExitCode> {
    // The first two are the parents of programs: no thread, no runtime and no log may start before them.
    match Arguments::parse().command {
        Some(Command::Supervise(supervise)) => Ok(supervise.run()),
        Some(Command::Tether(tether)) => Ok(tether.run()),
        Some(Command::Config) => print_config(),
        None => start(),
    }
}

fn print_config() -> anyhow::Result<ExitCode> {
    let env = Env::of_process();
    io::stdout().write_all(settings::listing(&env, Reader::Worker).as_bytes()).context("could not print the settings")?;
    Config::from_env(&env)?;
    Ok(ExitCode::SUCCESS)
}

fn start() -> anyhow::Result<ExitCode> {
    let env = Env::of_process();
    let config = Config::from_env(&env)?;
    // It outlives the runtime: what that still ends is told, too.
    let _telemetry = config.telemetry.start("claude-worker")?;
    settings::warn_of_misspelt(&env);
    match tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work(config)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!("{error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn work(config: Config) -> anyhow::Result<()> {
    for contradiction in config.contradictions() {
        tracing::warn!("{contradiction}");
    }
    let shutdown = shutdown_on_signals()?;
    let metrics = Metrics::new(config.slots);

    // First of all, so that it can be asked while it waits for its stores.
    let stop_answering = CancellationToken::new();
    let answering = match config.http {
        Some(address) => {
            let listener = http::listen(address).await?;
            let address = listener.local_addr()?;
            tracing::info!(%address, "Answering on http://{address}/health/ready");
            let pages = Pages { metrics: metrics.clone(), access: config.metrics.clone(), draining: shutdown.drain.clone() };
            Some(tokio::spawn(http::serve(listener, pages, stop_answering.clone())))
        }
        None => None,
    };
    let worked = Box::pin(work_with(config, metrics, &shutdown)).await;
    stop_answering.cancel();
    if let Some(answering) = answering {
        answering.await.context("the pages of this worker panicked")?;
    }
    worked
}

/// Work with what `config` names, until `shutdown`.
async fn work_with(config: Config, metrics: Metrics, shutdown: &Shutdown) -> anyhow::Result<()> {
    let Some(store) = Store::open(&config.store, &shutdown.drain).await.context("could not open the stores")? else {
        return Ok(());
    };
    metrics.opened(&store);
    let workshop = workshop(config, &store, metrics).await?;

    let watching = CancellationToken::new();
    let watch = tokio::spawn(reconciler::run(store.clone(), watching.clone()));
    let worked = runner::run(&store, workshop, shutdown).await;
    watching.cancel();
    watch.await.context("the watch over the jobs panicked")?;
    worked.context("could not join the workers")
}

async fn workshop(config: Config, store: &Store, metrics: Metrics) -> anyhow::Result<Workshop> {
    let jobs = JobsRoot::create(&config.jobs_dir).with_context(|| format!("could not use `JOBS_DIR` ({})", config.jobs_dir.display()))?;
    let upstream = Upstream::new(&config.upstream_url, &config.credential)?;
    let bwrap = find_program("bwrap".as_ref(), &config.search_path);
    let sandbox = match Sandbox::probe(&bwrap, &jobs.path().join("sandbox"), Launch::SUPERVISOR.as_ref()).await {
        Ok(sandbox) => Some(sandbox),
        Err(error) if config.unsandboxed_tools => {
            tracing::warn!(%error, "NO SANDBOX, and `UNSANDBOXED_TOOLS` is set: every job can do what this worker's user can");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "No sandbox works here: jobs run without tools");
            None
        }
    };
    Ok(Workshop { config, jobs, upstream, sandbox, tools: Tools::new(store), metrics })
}

/// The first SIGTERM or SIGINT asks to drain, the second to end now.
fn shutdown_on_signals() -> io::Result<Shutdown> {
    let mut signals = StopSignals::listen()?;
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    // Ends with the runtime.
    tokio::spawn(async move {
        for token in [told.drain, told.now] {
            signals.next().await;
            token.cancel();
        }
    });
    Ok(shutdown)
}
