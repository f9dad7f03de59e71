//! The whole product under faults of every kind, as a seed says. `make chaos SEED=…` makes more of it.

#![expect(clippy::print_stdout, reason = "a run says how long it took")]

use std::time::Duration;

use tests::{
    chaos::{Fault, Plan, run},
    servers::Kind,
    system::Cli,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_seed_of_faults_costs_no_job_and_no_event() -> anyhow::Result<()> {
    survive(&Plan::of(1, Kind::Postgres)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_seed_of_faults_costs_no_job_and_no_event() -> anyhow::Result<()> {
    survive(&Plan::of(2, Kind::Postgres)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_of_faults_costs_no_job_and_no_event_on_sqlite() -> anyhow::Result<()> {
    survive(&Plan::of(3, Kind::Sqlite)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_die_with_the_real_cli_cost_no_job_and_no_event() -> anyhow::Result<()> {
    let faults = vec![(Fault::WorkerKill, 1)];
    survive(&Plan {
        jobs: 16,
        time: Duration::from_secs(8),
        pause: Duration::from_secs(2),
        cli: Cli::Real,
        faults,
        ..Plan::of(4, Kind::Postgres)
    })
    .await
}

async fn survive(plan: &Plan) -> anyhow::Result<()> {
    let report = run(plan).await?;
    println!("{report}");
    assert_eq!(report.jobs, plan.jobs);
    assert!(report.faults.values().sum::<usize>() > 2, "hardly anything was done");
    Ok(())
}
