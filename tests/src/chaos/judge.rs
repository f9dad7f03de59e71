//! Whether a run left everything as it was promised: what clients were told, what the record says, and what is left over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;
use shared::{id::WorkerId, workers::Workers};

use crate::{
    record::{Move, await_rest, ended_by_its_last_holder, immortal_keys, moves},
    runs::Runs,
    system::PATIENCE,
};

use super::{
    Fault, Plan,
    cast::{Cast, joined},
    crowd::Crowd,
    load::Accepted,
    report::Report,
    trouble::Trouble,
};

/// How many attempts may end with a failure or the death of a worker before a job is given up.
const MOST_ATTEMPTS: usize = 3;

/// A job that took longer to run again is told of: what else was done meanwhile says why.
const SLOW: Duration = Duration::from_secs(6);

/// A machine that lets nobody run for so long may kill a worker that is well.
const STALL: Duration = Duration::from_millis(700);

pub(super) async fn judge(plan: &Plan, cast: &Cast, crowd: &Crowd, done: &[Accepted], trouble: &Trouble) -> anyhow::Result<Report> {
    let at_rest = await_rest(&cast.system, PATIENCE / 2).await;
    let all = moves(&cast.system).await?;
    let mut of_job: BTreeMap<String, Vec<&Move>> = BTreeMap::new();
    for one in &all {
        of_job.entry(one.job.to_string()).or_default().push(one);
    }
    let mut problems = Vec::new();
    let mut report = Report { seed: plan.seed, kind: plan.kind, jobs: done.len(), ..Report::default() };
    match at_rest {
        Ok(took) => report.rest = took,
        Err(error) => problems.push(error.to_string()),
    }

    for one in done {
        let moves = of_job.remove(&one.id).unwrap_or_default();
        match judge_job(cast, crowd, one, &moves).await {
            Ok(how) => *report.ends.entry(how).or_default() += 1,
            Err(error) => problems.push(format!("job {} (`{}`): {error:#}; its moves: {moves:?}", one.work.number, one.id)),
        }
        report.attempts += moves.iter().filter(|one| one.to == "running").count();
        let runs = Runs::read(&cast.ledger(one.work.number));
        report.runs += runs.started.len();
        report.overlaps += runs.overlaps;
        if runs.overlaps > 0 {
            problems.push(format!("runs of job {} met: {runs:?}", one.work.number));
        }
        if !runs.living().is_empty() {
            problems.push(format!("job {} left processes: {:?}", one.work.number, runs.living()));
        }
    }
    problems.extend(of_job.keys().map(|id| format!("`{id}` was accepted and nobody was told")));
    problems.extend(immortal_keys(&cast.system.redis)?.into_iter().map(|key| format!("`{key}` would stay in Redis for ever")));
    report.stall = trouble.longest_stall();
    // Where this process was not let run for so long, neither were the workers.
    report.are_burials_judged = report.stall < STALL;
    if report.are_burials_judged {
        problems.extend(wrongly_buried(cast).await?);
    }

    let losses = trouble.losses();
    for loss in &losses {
        for (job, took) in of_loss(&all, loss.worker, loss.at) {
            report.recoveries.entry(loss.fault).or_default().push(took);
            if took > SLOW {
                let since = trouble.since_begin(loss.at);
                report.slow.push(format!("`{job}`, lost by {:?} at {since:.3}s, ran again {took:?} later", loss.fault));
            }
        }
    }
    report.faults = trouble.counts();
    report.told = trouble.told();
    report.connections = crowd.connections.load(Ordering::Relaxed);
    report.events = crowd.events.load(Ordering::Relaxed);
    report.resyncs = crowd.resyncs.load(Ordering::Relaxed);
    let wipes = [Fault::Flush, Fault::RedisTailLost].iter().filter_map(|wipe| report.faults.get(wipe)).sum::<usize>();
    if report.resyncs > 0 && wipes == 0 {
        problems.push(format!("{} readers lost their place though Redis lost nothing", report.resyncs));
    }
    anyhow::ensure!(problems.is_empty(), "{} things are wrong:\n  {}\n{report}", problems.len(), problems.join("\n  "));
    Ok(report)
}

/// How a job ended, if it was allowed to.
async fn judge_job(cast: &Cast, crowd: &Crowd, one: &Accepted, moves: &[&Move]) -> anyhow::Result<String> {
    let ends: Vec<_> = moves.iter().filter(|one| one.is_terminal()).collect();
    let [end] = ends.as_slice() else { anyhow::bail!("it ended {} times", ends.len()) };
    anyhow::ensure!(moves.iter().all(|one| one.at <= end.at || one.attempt < end.attempt), "it moved after its end");
    let attempts: Vec<_> = moves.iter().filter(|one| one.to == "running").map(|one| one.attempt).collect();
    anyhow::ensure!(attempts.iter().enumerate().all(|(n, attempt)| usize::try_from(*attempt) == Ok(n + 1)), "its attempts: {attempts:?}");
    let (text, told) = crowd.told(&one.id)?;
    let job = cast_client(cast, one).job(&one.id).await?;
    anyhow::ensure!(told == job, "told as\n{told}\nand it is\n{job}");
    let (status, code) = (job["status"].as_str().context("a state")?, job["error"]["code"].as_str());
    anyhow::ensure!(status == end.to, "it is {status}, and moved to {}", end.to);
    anyhow::ensure!(job["attempt"] == json!(end.attempt), "its attempt is {}", job["attempt"]);
    match (status, code) {
        ("completed", None) => {
            anyhow::ensure!(job["result"]["text"] == json!(text), "it told `{text}`, and its result is {}", job["result"]["text"]);
            if let Some(wanted) = &one.work.text {
                anyhow::ensure!(text == *wanted, "it says `{text}`, and was to say `{wanted}`");
            }
            anyhow::ensure!(ended_by_its_last_holder(moves), "it was not ended by who had it last");
        }
        ("cancelled", None) => anyhow::ensure!(one.work.cancelled.is_some(), "nobody cancelled it"),
        ("failed", Some("interrupted" | "cli_crashed")) => anyhow::ensure!(one.work.is_never_repeated, "it may be repeated: {job}"),
        ("failed", Some("attempts_exhausted")) => {
            anyhow::ensure!(attempts.len() >= MOST_ATTEMPTS, "given up after {attempts:?}");
        }
        _ => anyhow::bail!("it must not end so: {job}"),
    }
    Ok(code.map_or_else(|| status.to_owned(), |code| format!("{status}: {code}")))
}

fn cast_client(cast: &Cast, one: &Accepted) -> crate::client::Client {
    one.work.user.of_server(&cast.base(one.work.number))
}

/// Workers that were declared dead though nothing was done to them.
async fn wrongly_buried(cast: &Cast) -> anyhow::Result<Vec<String>> {
    let store = cast.system.store().await?;
    let living: BTreeSet<WorkerId> = Workers::new(&store)
        .list(None, 1000)
        .await?
        .into_iter()
        .filter(|worker| worker.state != shared::workers::WorkerState::Dead)
        .map(|worker| worker.id)
        .collect();
    let mut wrongly = Vec::new();
    for place in &cast.workers {
        let place = place.lock().await;
        let past = place.past.iter().map(|past| (past.name.as_str(), past.log.clone(), past.harms, false));
        let present = place.process.as_ref().map(|process| (place.name.as_str(), process.log(), place.harms, true));
        for (name, log, harms, lives) in past.chain(present) {
            let deaths = log.matches("Declared dead").count();
            if deaths > harms {
                wrongly.push(format!("{name} was declared dead {deaths} times, and harmed {harms} times: {}", fate(&log)));
            }
            if lives && !joined(&log).last().is_some_and(|last| living.contains(last)) {
                wrongly.push(format!("{name} lives and is dead in the record: {}", fate(&log)));
            }
        }
    }
    Ok(wrongly)
}

/// What the log of a worker says of its life.
fn fate(log: &str) -> String {
    let words = ["Joined as", "Declared dead", "heartbeat", "drain"];
    log.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect::<Vec<_>>().join("; ")
}

/// How long each job that `worker` ran at `at` took to run again elsewhere.
fn of_loss(all: &[Move], worker: WorkerId, at: i64) -> Vec<(String, Duration)> {
    let mut of_job: BTreeMap<String, Vec<&Move>> = BTreeMap::new();
    for one in all {
        of_job.entry(one.job.to_string()).or_default().push(one);
    }
    let again = |(job, moves): (&String, &Vec<&Move>)| {
        let before = moves.iter().rposition(|one| one.at <= at)?;
        let held = moves[before];
        if held.to != "running" || held.worker != Some(worker.uuid()) {
            return None;
        }
        let next = moves[before + 1..].iter().find(|one| one.to == "running")?;
        Some((job.clone(), Duration::from_millis(u64::try_from(next.at - at).ok()?)))
    };
    of_job.iter().filter_map(again).collect()
}

#[cfg(test)]
mod tests {
    use shared::id::JobId;

    use super::*;

    fn moves(worker: WorkerId, list: &[(i32, &str, bool, i64)]) -> Vec<Move> {
        let (job, other) = (JobId::new(), WorkerId::new());
        let one = |&(attempt, to, is_worker, at): &(i32, &str, bool, i64)| {
            let worker = if is_worker { worker } else { other };
            Move { job, attempt, to: to.to_owned(), worker: Some(worker.uuid()), at }
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn a_job_that_a_dead_worker_had_is_back_when_it_runs_again() {
        let worker = WorkerId::new();
        let all = moves(worker, &[(1, "running", true, 100), (1, "queued", true, 3_000), (2, "running", false, 3_100)]);

        let took: Vec<Duration> = of_loss(&all, worker, 150).into_iter().map(|(_, took)| took).collect();
        assert_eq!(took, [Duration::from_millis(2_950)]);
        // It had it no more, or not yet.
        assert_eq!((of_loss(&all, worker, 3_050).len(), of_loss(&all, worker, 50).len()), (0, 0));
    }

    #[test]
    fn an_end_by_anybody_but_the_last_holder_is_seen() {
        let worker = WorkerId::new();
        let begun = [(1, "running", true, 100), (1, "queued", true, 200), (2, "running", false, 300)];
        for (end, is_right) in
            [((2, "completed", false, 400), true), ((2, "completed", true, 400), false), ((1, "completed", false, 400), false)]
        {
            let all = moves(worker, &[&begun[..], &[end]].concat());
            assert_eq!(ended_by_its_last_holder(&all), is_right, "{end:?}");
        }
    }
}
