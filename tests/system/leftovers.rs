//! Whatever becomes of a job, its worker and its supervisor: nothing that the job started is left.

use std::{
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use reqwest::Method;
use rustix::process::Signal;
use tests::{
    brood::Brood,
    client::{Client, Stream},
    exposition::{self, value},
    servers::Kind,
    system::{Api, Cli, PATIENCE, Running, System},
};

/// Children that are deaf to SIGTERM, some in sessions of their own, under a CLI that is deaf as well.
const BROODS: &str = "seq:cli:ignore_term || cli:children:6 || slow:300:0.05";

/// A system whose tools are confined, or not.
async fn system(is_confined: bool) -> anyhow::Result<System> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0");
    if is_confined {
        return Ok(system);
    }
    // All that jobs need, and no bwrap.
    let programs = system.directory().join("programs");
    std::fs::create_dir(&programs)?;
    for name in ["sh", "setsid", "sleep"] {
        symlink(Path::new("/usr/bin").join(name), programs.join(name))?;
    }
    let programs = programs.to_string_lossy().into_owned();
    Ok(system.with("UNSANDBOXED_TOOLS", "1").with("PATH", &programs))
}

/// A job in the middle of its answer, and all that its worker started.
async fn caught(api: &Api, worker: &mut Running) -> anyhow::Result<(Stream, Brood)> {
    // So that what is counted later are the processes of jobs alone.
    worker.said("The CLI is").await?;
    let mut stream = api.client.chat(BROODS).await?;
    stream.until("text.delta", &mut Vec::new()).await?;
    let brood = Brood::with(worker, 6, "sleep 1000").await?;
    Ok((stream, brood))
}

/// Wait until a worker counts no CLI process any more.
async fn counts_none(worker: &mut Running) -> anyhow::Result<()> {
    let line = worker.said("Answering on http://").await?;
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default().to_owned();
    let pages = Client::new(&format!("http://{address}"), "no key");
    let begun = Instant::now();
    loop {
        let page = pages.request(Method::GET, "/health/metrics").send().await?.error_for_status()?.text().await?;
        match value(&exposition::parse(&page)?, "claude_worker_cli_processes", &[]) {
            Some(0.0) => return Ok(()),
            living => ensure!(begun.elapsed() < PATIENCE, "it counts {living:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_job_that_completed() -> anyhow::Result<()> {
    for is_confined in [false, true] {
        let system = system(is_confined).await?;
        let (api, mut worker) = (system.api().await?, system.worker().await?);
        worker.said("The CLI is").await?;
        let mut stream = api.client.chat(&BROODS.replace("300", "20")).await?;
        stream.until("text.delta", &mut Vec::new()).await?;
        let brood = Brood::with(&worker, 6, "sleep 1000").await?;

        stream.until("job.completed", &mut Vec::new()).await?;

        assert_eq!(brood.living(), Vec::<&str>::new(), "confined: {is_confined}");
        counts_none(&mut worker).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_job_that_was_cancelled() -> anyhow::Result<()> {
    for is_confined in [false, true] {
        let system = system(is_confined).await?;
        let (api, mut worker) = (system.api().await?, system.worker().await?);
        let (mut stream, brood) = caught(&api, &mut worker).await?;

        api.client.cancel(&api.client.only_job().await?).await?;
        stream.until("job.cancelled", &mut Vec::new()).await?;

        assert_eq!(brood.living(), Vec::<&str>::new(), "confined: {is_confined}");
        counts_none(&mut worker).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cli_that_hears_nothing_is_gone_five_seconds_after_its_cancel() -> anyhow::Result<()> {
    let system = system(false).await?;
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    worker.said("The CLI is").await?;
    let id = api.client.say("seq:cli:ignore_term || cli:children:6 || cli:hang").await?;
    let brood = Brood::with(&worker, 6, "sleep 1000").await?;

    let asked = Instant::now();
    api.client.cancel(&id).await?;
    brood.gone().await?;

    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(api.client.ended(&id).await?["status"], "cancelled");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_when_a_worker_is_killed_or_frozen() -> anyhow::Result<()> {
    for (is_confined, signal) in [(false, Signal::KILL), (true, Signal::KILL), (false, Signal::STOP), (true, Signal::STOP)] {
        let system = system(is_confined).await?;
        let (api, mut worker) = (system.api().await?, system.worker().await?);
        let (_stream, brood) = caught(&api, &mut worker).await?;

        worker.signal(signal)?;

        brood.gone().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_worker_ends_what_one_left_that_was_killed_with_its_supervisors() -> anyhow::Result<()> {
    for is_confined in [false, true] {
        let system = system(is_confined).await?;
        let (api, mut worker) = (system.api().await?, system.worker().await?);
        let (_stream, brood) = caught(&api, &mut worker).await?;

        // Stopped first, so that none hears of the other's end.
        for signal in [Signal::STOP, Signal::KILL] {
            brood.signal_supervisors(signal)?;
            worker.signal(signal)?;
        }
        assert!(!worker.ended().await?);
        // Without the sandbox nothing ends with a supervisor but the CLI itself.
        assert!(is_confined || brood.living().len() >= 6, "{:?}", brood.living());
        let _next = system.worker().await?;

        assert_eq!(brood.living(), Vec::<&str>::new(), "confined: {is_confined}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_supervisor_was_killed_has_ended_when_nothing_of_it_is_left() -> anyhow::Result<()> {
    for is_confined in [false, true] {
        let system = system(is_confined).await?;
        let (api, mut worker) = (system.api().await?, system.worker().await?);
        let (mut stream, brood) = caught(&api, &mut worker).await?;

        brood.signal_supervisors(Signal::KILL)?;
        let retrying = stream.until("retrying", &mut Vec::new()).await?;

        assert_eq!(retrying.data["reason"], "retry");
        assert_eq!(brood.living(), Vec::<&str>::new(), "confined: {is_confined}");
    }
    Ok(())
}
