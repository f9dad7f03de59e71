//! The scripted Messages API as a process: what `make run` starts where there is no credential, and what a
//! person uses to try the CLI without one.

use std::io::{Write as _, stdout};

use clap::Parser;
use tests::mock_anthropic::{MockAnthropic, Options};
use tokio::signal::unix::{SignalKind, signal};

/// A Messages API on loopback that answers what its prompts ask for
#[derive(Parser)]
struct Args {
    /// The port to listen on; 0 chooses a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Answer ordinary prompts as the offline demo model
    #[arg(long)]
    demo: bool,
    /// Refuse every other credential
    #[arg(long)]
    require_key: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { port, demo, require_key } = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    // A process serves for weeks and nobody asks it for its requests.
    let server = MockAnthropic::start_with(Options { port, demo, require_key, keep: 0 }).await?;
    writeln!(stdout(), "{}", server.url())?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt?,
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}
