//! `worker` and the two small commands it starts itself with around each CLI process.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use worker::supervise::{Supervise, Tether};

/// Runs chat jobs with the Claude CLI.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program and end all of it when the worker is gone (the worker calls this itself).
    #[command(hide = true)]
    Supervise(Supervise),
    /// Become a program that ends with the calling supervisor (the supervisor calls this itself).
    #[command(hide = true)]
    Tether(Tether),
}

fn main() -> ExitCode {
    // These two are the parents of programs: no thread, no runtime and no log may start before them.
    match Arguments::parse().command {
        Command::Supervise(supervise) => supervise.run(),
        Command::Tether(tether) => tether.run(),
    }
}
