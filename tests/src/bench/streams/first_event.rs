//! How late a job's first event is at its client, while many jobs a second begin whether those before are done
//! or not: counted from the time that the CLI itself tells, right before it writes it. The same of a CLI whose
//! pipe the bench reads, bare and in the worker's own confinement, as many a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::{task::JoinSet, time::sleep_until};

use super::{
    said::{between, now},
    vitals::cpu_of_all,
};
use crate::{
    bench::{
        direct::Direct,
        figures::{Figures, difference, head_of, row},
    },
    client::{Client, assert_whole},
    servers::Kind,
    system::{Cli, System},
};

/// How many jobs a second.
const RATES: [u32; 3] = [10, 25, 50];
/// A CLI that starts, waits, and says what time it is: its start is over by then, though others start.
const QUESTION: &str = "clock:1:1";
/// How long it waits.
const PAUSE_SECS: u32 = 1;

/// A row: how late the events were, and how many cores were busy meanwhile.
type Late = [f64; 5];

/// The figures of so many seconds at each rate, each way.
pub async fn table(secs: u32) -> anyhow::Result<String> {
    let settings = [("WORKER_BEAT", "1s"), ("WORKER_TTL", "10s"), ("MAX_WORKERS", "400")];
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let system = settings.iter().fold(system, |system, (name, value)| system.with(name, value));
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let direct = Arc::new(Direct::new(system.cli(), system.mock.url(), system.directory())?);
    let sandbox = direct.sandbox().await.ok();
    let first_time = |sandbox| {
        let direct = direct.clone();
        async move { direct.first_time(sandbox, QUESTION).await }
    };

    let mut lines = Vec::new();
    for rate in RATES {
        let bare = at_rate(rate, secs, || first_time(None)).await.context("directly")?;
        let service = at_rate(rate, secs, || served(api.client.clone())).await.context("through the service")?;
        lines.push(format!("  {rate} jobs a second:"));
        lines.push(head_of(["min", "p50", "p90", "p99", "cores"]));
        lines.push(row("direct", bare, 1));
        if sandbox.is_some() {
            let confined = at_rate(rate, secs, || first_time(sandbox.clone())).await.context("sandboxed")?;
            lines.push(row("direct, supervised and sandboxed", confined, 1));
        }
        lines.push(row("service", service, 1));
        lines.push(row("service - direct", difference(service, bare), 1));
    }
    Ok(lines.join("\n"))
}

/// Ask so often a second, for so many seconds, whether what was asked before has an answer or not.
async fn at_rate<F>(rate: u32, secs: u32, ask: impl Fn() -> F) -> anyhow::Result<Late>
where
    F: Future<Output = anyhow::Result<Duration>> + Send + 'static,
{
    let (begun, spent) = (Instant::now(), cpu_of_all()?);
    let mut asked = JoinSet::new();
    let (counted, all) = (rate * secs, rate * (secs + PAUSE_SECS));
    for n in 0..all {
        sleep_until((begun + Duration::from_secs(n.into()) / rate).into()).await;
        let answer = ask();
        asked.spawn(async move { anyhow::Ok((n, answer.await?)) });
    }
    let cores = cpu_of_all()?.saturating_sub(spent).as_secs_f64() / begun.elapsed().as_secs_f64();
    let mut late = Vec::new();
    while let Some(answered) = asked.join_next().await {
        let (n, answered) = answered??;
        // Those after it answer when no others begin any more.
        if n < counted {
            late.push(answered);
        }
    }
    let [min, p50, p90, p99] = Figures::of(late).context("no job was counted")?.columns();
    Ok([min, p50, p90, p99, cores])
}

/// How late the first event of a job is at a client of the service.
async fn served(client: Client) -> anyhow::Result<Duration> {
    let mut stream = client.chat(QUESTION).await?;
    let mut events = Vec::new();
    let first = stream.until("text.delta", &mut events).await?;
    let at = now();
    let text = first.data["text"].as_str().context("a delta has a text")?.to_owned();
    events.extend(stream.rest().await?);
    let said = assert_whole(&events);
    let job = &events.last().context("a job has events")?.data["job"];
    ensure!(said == text && job["result"]["text"] == text && job["attempt"] == 1, "`{text}` came, and the job is {job}");
    Ok(between(text.trim_end().parse()?, at))
}
