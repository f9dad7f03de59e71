//! A job that was given up, and what is made of it when it is sent again.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use shared::{
    Error,
    audit::{AuditFilter, AuditLog, By},
    id::{JobId, UserId},
    job::{ChatSpec, Job, JobError, JobState, NanoUsd},
    jobs::{JobFilter, Jobs, NewJob},
    lease::{Outcome, Report},
    store::Store,
    user::{PasswordHash, Role, UserLimits},
    users::{NewUser, UserChange, Users},
};
use tests::{
    hand::{Hand, TEST_BEAT, lead},
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};
use tokio_util::sync::CancellationToken;

on_both_databases!(
    a_dead_letter_becomes_one_job_however_many_send_it_again,
    a_budget_that_does_not_cover_it_refuses_the_retry,
    only_a_dead_letter_is_sent_again,
);

async fn a_dead_letter_becomes_one_job_however_many_send_it_again(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let jobs = Jobs::new(&store);
    let dead = given_up(&system, &store).await?;
    let by = By { actor: Some(dead.user_id), ..By::default() };

    let answers = join_all((0..8).map(|_| jobs.retry(dead.id, NanoUsd(0), &by))).await;

    let mut made = Vec::new();
    for answer in answers {
        made.push(answer?.expect("it is there"));
    }
    let retry = made[0].job.clone();
    assert!(made.iter().all(|answer| answer.job.id == retry.id), "{made:?}");
    assert_eq!(made.iter().filter(|answer| !answer.replayed).count(), 1);
    assert_ne!(retry.id, dead.id);
    assert_eq!((retry.user_id, retry.api_key_id, &retry.spec), (dead.user_id, None, &dead.spec));
    assert_eq!((retry.state, retry.attempt, retry.retry_of), (JobState::Queued, 0, Some(dead.id)));
    let old = jobs.peek(dead.id).await?.expect("it stays");
    assert_eq!((old.state, old.retried_as, old.view().retried_as), (JobState::Failed, Some(retry.id), Some(retry.id)));
    let filter = JobFilter { state: None, session_id: None, dead_letters: true, before: None, limit: 10 };
    assert_eq!(jobs.list_all(None, filter).await?.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [dead.id]);
    let filter = AuditFilter { actor: None, action: Some("job.retry".into()), before: None, limit: 10 };
    let noted = AuditLog::new(&store).list(filter).await?;
    assert_eq!((noted.len(), &noted[0].by, noted[0].target.clone()), (1, &by, Some(dead.id.to_string())));
    Ok(())
}

async fn a_budget_that_does_not_cover_it_refuses_the_retry(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let (jobs, by) = (Jobs::new(&store), By::default());
    let dead = given_up(&system, &store).await?;
    let change = UserChange { daily_budget: Some(Some(NanoUsd(10))), ..UserChange::default() };
    Users::new(&store).update(dead.user_id, change, &by).await?;

    assert!(matches!(jobs.retry(dead.id, NanoUsd(11), &by).await, Err(Error::BudgetExhausted)));
    assert_eq!(jobs.peek(dead.id).await?.and_then(|job| job.retried_as), None);

    let retry = jobs.retry(dead.id, NanoUsd(10), &by).await?.expect("it is there").job;
    assert_eq!((retry.reserved, retry.retry_of), (NanoUsd(10), Some(dead.id)));
    Ok(())
}

async fn only_a_dead_letter_is_sent_again(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let jobs = Jobs::new(&store);
    let waiting = jobs.submit(new_job(user(&store).await?)).await?.job;

    assert!(matches!(jobs.retry(waiting.id, NanoUsd(0), &By::default()).await, Err(Error::NotADeadLetter)));
    assert!(jobs.retry(JobId::new(), NanoUsd(0), &By::default()).await?.is_none());
    Ok(())
}

async fn user(store: &Store) -> anyhow::Result<UserId> {
    let password = PasswordHash::new("none".to_owned());
    let new = NewUser { email: "a@example.com".parse()?, name: None, password, role: Role::User, limits: UserLimits::default() };
    Ok(Users::new(store).create(new, &By::default()).await?.id)
}

fn new_job(user_id: UserId) -> NewJob {
    let spec = ChatSpec { metadata: [("ticket".to_owned(), "7".to_owned())].into(), ..ChatSpec::text("hi") };
    NewJob {
        user_id,
        api_key_id: None,
        session_id: None,
        spec,
        idempotency_key: Some("once".to_owned()),
        trace: None,
        reservation: NanoUsd(0),
    }
}

/// A job that failed as often as it may.
async fn given_up(system: &System, store: &Store) -> anyhow::Result<Job> {
    let jobs = Jobs::new(store);
    let id = jobs.submit(new_job(user(store).await?)).await?.job.id;
    let _leader = lead(store);
    let mut hand = Hand::join(store, system.directory(), TEST_BEAT).await?;
    let never = CancellationToken::new();
    for _ in 0..3 {
        let lease = hand.take().await?;
        let error = JobError::new("upstream_overloaded", "too much", true);
        lease.settle(Outcome::Retry { error, delay: Duration::ZERO }, Report::default(), &never).await?;
    }
    let job = jobs.peek(id).await?.context("it stays")?;
    assert!(job.dead_letter && job.error.as_ref().is_some_and(|error| error.code == "attempts_exhausted"), "{job:?}");
    Ok(job)
}
