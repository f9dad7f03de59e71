//! `migration up | down N | status`: the schema by hand. The api and the worker run `up` at their start.

#![expect(clippy::print_stdout, reason = "a report is what `status` is for")]

use std::{io::IsTerminal as _, num::NonZero};

use clap::{Parser, Subcommand};

/// Where nothing says another, as for the api and the worker.
const DATABASE_URL: &str = "postgresql://postgres:password@localhost:5432/claude_api";

/// Bring the database's schema up to date, or look at it.
#[derive(Parser)]
struct Arguments {
    /// `postgresql://…` or `sqlite://…`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, default_value = DATABASE_URL)]
    database_url: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take every step that is missing
    Up,
    /// Take back the last steps, and what they hold
    Down {
        /// How many
        steps: NonZero<u32>,
    },
    /// List the steps and whether they were taken
    Status,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(is_terminal).with_target(false).init();
    let Arguments { database_url, command } = Arguments::parse();
    // An empty setting is as good as none.
    let database_url = if database_url.is_empty() { DATABASE_URL } else { &database_url };
    match command {
        Command::Up => migration::up(database_url).await?,
        Command::Down { steps } => migration::down(database_url, steps.get()).await?,
        Command::Status => print!("{}", migration::status(database_url).await?),
    }
    Ok(())
}
