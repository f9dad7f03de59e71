//! The schema: six processes start on an empty database, and every step can be taken back.

use futures_util::future::join_all;
use sea_orm::ConnectionTrait as _;
use tests::{
    directory::Directory,
    on_both_databases,
    servers::{Kind, TestDatabase},
    system::{Cli, System},
};

on_both_databases!(
    six_processes_start_on_an_empty_database,
    every_step_is_taken_back_and_taken_again,
    the_bootstrap_user_goes_unless_jobs_are_its_own,
    a_job_that_ended_stays_as_it_is,
);

async fn six_processes_start_on_an_empty_database(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;

    let (apis, workers) = tokio::join!(join_all((0..3).map(|_| system.api())), join_all((0..3).map(|_| system.worker())));

    for api in apis {
        assert_eq!(api?.client.request(reqwest::Method::GET, "/health/ready").send().await?.status(), 200);
    }
    for worker in workers {
        worker?;
    }
    Ok(())
}

async fn every_step_is_taken_back_and_taken_again(kind: Kind) -> anyhow::Result<()> {
    let directory = Directory::create()?;
    let database = TestDatabase::create(kind, directory.path()).await?;

    migration::up(database.url()).await?;
    let taken = migration::status(database.url()).await?;
    let steps = u32::try_from(taken.lines().count())?;
    assert!(taken.lines().all(|line| line.starts_with("Applied")), "{taken}");
    migration::down(database.url(), steps).await?;
    assert!(migration::status(database.url()).await?.lines().all(|line| line.starts_with("Pending")));
    migration::up(database.url()).await?;

    assert_eq!(migration::status(database.url()).await?, taken);
    Ok(())
}

async fn the_bootstrap_user_goes_unless_jobs_are_its_own(kind: Kind) -> anyhow::Result<()> {
    let directory = Directory::create()?;
    let database = TestDatabase::create(kind, directory.path()).await?;
    let up = async || migration::up(database.url()).await;
    let back = async || -> anyhow::Result<()> {
        let status = migration::status(database.url()).await?;
        let steps = status.lines().skip_while(|line| !line.ends_with("m20261123_000001_accounts")).count();
        Ok(migration::down(database.url(), u32::try_from(steps)?).await?)
    };
    let disabled = async || -> anyhow::Result<Vec<bool>> {
        let connection = database.connect().await?;
        let sql = "SELECT disabled FROM users WHERE email = 'user_bootstrap'";
        let rows = connection.query_all_raw(sea_orm::Statement::from_string(connection.get_database_backend(), sql)).await?;
        connection.close().await?;
        rows.iter().map(|row| Ok(row.try_get("", "disabled")?)).collect()
    };

    up().await?;
    assert!(disabled().await?.is_empty());
    back().await?;
    assert_eq!(disabled().await?, [false]);
    let connection = database.connect().await?;
    connection
        .execute_unprepared(
            "INSERT INTO jobs (id, user_id, request, state, max_failures, max_reclaims, run_at, queue_deadline_at, created_at)
             SELECT id, id, '{}', 'queued', 3, 3, 0, 0, 0 FROM users",
        )
        .await?;
    connection.close().await?;
    up().await?;
    assert_eq!(disabled().await?, [true]);
    back().await?;
    assert_eq!(disabled().await?, [false]);
    Ok(())
}

async fn a_job_that_ended_stays_as_it_is(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let id = api.client.say("say:done").await?;
    api.client.ended(&id).await?;
    let database = system.database.connect().await?;

    for change in ["state = 'queued'", "attempt = attempt + 1", "result = NULL", "error = 'x'"] {
        assert!(database.execute_unprepared(&format!("UPDATE jobs SET {change}")).await.is_err(), "{change}");
    }

    let moves = database
        .query_all_raw(sea_orm::Statement::from_string(
            database.get_database_backend(),
            "SELECT from_state, to_state FROM job_events ORDER BY at, attempt, to_state = 'completed'",
        ))
        .await?;
    let moves: Vec<(Option<String>, String)> = moves
        .iter()
        .map(|row| Ok((row.try_get("", "from_state")?, row.try_get("", "to_state")?)))
        .collect::<Result<_, sea_orm::DbErr>>()?;
    let text = |state: &str| Some(state.to_owned());
    assert_eq!(moves, [(None, "queued".to_owned()), (text("queued"), "running".to_owned()), (text("running"), "completed".to_owned())]);
    Ok(())
}
