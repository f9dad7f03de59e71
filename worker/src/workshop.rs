//! What all attempts of this worker have in common, and how a CLI is started in it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use shared::{tools::Tools, trace_context::TraceContext};

use crate::{
    claude::{
        command::{self, CommandLine, Surroundings},
        process::Launch,
        relay::{Endpoint, Relay},
        sandbox::{self, Confinement, Mounts, Sandbox},
        upstream::Upstream,
    },
    config::Config,
    job_dir::{JobDir, JobsRoot},
    metrics::Metrics,
};

/// How long the model's API may take to begin an answer.
const API_TIMEOUT: Duration = Duration::from_mins(2);
/// How long it may be silent in the middle of one.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// The place where jobs are run.
pub struct Workshop {
    /// The settings.
    pub config: Config,
    /// Where the folders of attempts are made.
    pub jobs: JobsRoot,
    /// The model's API.
    pub upstream: Upstream,
    /// The sandbox, where one works.
    pub sandbox: Option<Sandbox>,
    /// Which tools jobs may use.
    pub tools: Tools,
    /// What this worker measures.
    pub metrics: Metrics,
}

/// Where a process of this worker lives, as it sees it itself.
pub(crate) fn surroundings(workshop: &Workshop, dir: &JobDir, relay: command::Relay, trace: Option<TraceContext>) -> Surroundings {
    let inside = |inside: &str, outside: PathBuf| if workshop.sandbox.is_some() { PathBuf::from(inside) } else { outside };
    Surroundings {
        home: inside(sandbox::HOME, dir.home()),
        config_dir: inside(sandbox::CONFIG, dir.config()),
        tmp_dir: inside("/tmp", dir.tmp()),
        path: if workshop.sandbox.is_some() { "/usr/local/bin:/usr/bin:/bin".to_owned() } else { workshop.config.search_path.clone() },
        relay,
        api_timeout: API_TIMEOUT,
        stream_idle_timeout: STREAM_IDLE_TIMEOUT,
        trace,
    }
}

/// The CLI with `command`, in its folder and its sandbox, of a worker that was entitled to run it at `entitled_since`.
pub(crate) fn launch(workshop: &Workshop, command: CommandLine, dir: &JobDir, entitled_since: Instant) -> Launch {
    let config = &workshop.config;
    let confine = |sandbox: &Sandbox| Confinement {
        sandbox: sandbox.clone(),
        mounts: Mounts { workspace: dir.workspace(), config: dir.config(), home: dir.home(), sockets: dir.sockets() },
    };
    Launch {
        program: config.find_claude(),
        args: command.args.into_iter().map(Into::into).collect(),
        env: command.env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cwd: dir.workspace(),
        folder: dir.path().to_owned(),
        sandbox: workshop.sandbox.as_ref().map(confine),
        supervisor: Launch::SUPERVISOR.into(),
        silence: config.store.timing.entitlement(),
        entitled_since,
    }
}

/// The way to the API that the process is told of.
pub(crate) fn way(relay: &Relay) -> command::Relay {
    match relay.endpoint() {
        Endpoint::Socket(_) => command::Relay::UnixSocket(PathBuf::from(sandbox::SOCKETS).join("api.sock")),
        Endpoint::Url(url) => command::Relay::Url(url.clone()),
    }
}
