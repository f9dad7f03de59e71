//! `api` serves; `api config` prints the settings, `api openapi` the contract; `api admin` and `api key` are for
//! operators.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use api::{
    app::App,
    config::Config,
    endpoint, openapi,
    operator::{self, Task},
    serve::{self, Limits},
    shutdown::Shutdown,
};
use clap::{Parser, Subcommand};
use shared::{
    config::{self, Env, StoreConfig},
    reconciler,
    settings::{self, Reader},
    store::Store,
    telemetry::TelemetryConfig,
};
use tracing::{info, warn};

/// The HTTP API over the Claude CLI. Without a command it serves.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API (what is done without a command, too).
    Serve,
    /// Print the settings as they are, secrets masked; fails where one cannot be used.
    Config,
    /// Print the contract as YAML.
    Openapi,
    #[command(flatten)]
    Operate(Task),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let env = Env::of_process();
            let config = Config::from_env(&env)?;
            // It outlives the runtime: what that still ends is told, too.
            let _telemetry = config.telemetry.start("claude-api")?;
            settings::warn_of_misspelt(&env);
            runtime()?.block_on(serve(config))
        }
        Command::Config => {
            let env = Env::of_process();
            print(&settings::listing(&env, Reader::Api))?;
            Ok(Config::from_env(&env).map(drop)?)
        }
        Command::Openapi => print(&openapi::yaml()),
        Command::Operate(task) => print(&runtime()?.block_on(operate(task))?),
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("could not print the answer")
}

async fn operate(task: Task) -> anyhow::Result<String> {
    let (telemetry, config) = config::read(&Env::of_process(), |reading| (TelemetryConfig::read(reading), StoreConfig::read(reading)))?;
    telemetry.start_logs();
    let shutdown = Shutdown::on_signals(Duration::ZERO)?;
    let store = Store::open(&config, &shutdown.told).await?.context("told to stop")?;
    operator::perform(&store, task).await
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals(config.drain_delay)?;

    // The port first: that it is taken is the likeliest mistake, and seen at once.
    let listener = serve::listen(config.address).await?;
    let Some(store) = Store::open(&config.store, &shutdown.told).await? else { return Ok(()) };
    let address = listener.local_addr()?;
    let reconciler = tokio::spawn(reconciler::run(store.clone(), shutdown.draining.clone()));
    let app = App { leaving: shutdown.told.clone(), ..App::new(config, store, shutdown.draining.clone()) };
    operator::ensure_admin(&app).await?;

    info!(%address, "Serving on http://{address}, documented at http://{address}/docs");
    let serving = serve::serve(listener, endpoint(app.clone()), Limits::of(&app), shutdown.draining);
    if shutdown.now.run_until_cancelled(serving).await.is_some() {
        app.feeds.join_all().await;
        app.job_news.join_all().await;
    } else {
        warn!("Told twice to stop: cutting off what has not finished");
    }
    reconciler.await.context("the watch over the jobs broke off")?;
    info!("Stopped");
    Ok(())
}
