//! Accounts in the record: who is an admin, whose an address is, and what becomes of the deleted.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait as _, Statement};
use serde_json::json;
use shared::{
    Error,
    audit::{Action, AuditFilter, AuditLog, By},
    id::{JobId, UserId},
    job::{ChatSpec, JobState, NanoUsd},
    jobs::{Jobs, NewJob},
    reconciler,
    user::{Email, PasswordHash, Role, User, UserLimits},
    users::{NewUser, UserChange, UserFilter, Users},
};
use tests::{
    on_both_databases,
    servers::Kind,
    system::{Cli, PATIENCE, System},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

on_both_databases!(
    of_many_who_would_be_the_first_admin_one_is,
    an_address_is_taken_whatever_its_case,
    the_last_active_admin_stays,
    two_admins_who_unmake_each_other_leave_one,
    a_change_is_made_and_audited_by_its_names,
    the_audit_log_is_read_page_by_page,
    users_are_found_by_a_part_of_their_address_or_name,
    a_deleted_user_is_gone_at_once_and_forgotten_in_time,
    a_job_sent_while_its_user_was_deleted_is_cancelled_and_forgotten,
);

pub fn email(text: &str) -> Email {
    text.parse().expect("an address")
}

pub fn new_user(address: &str, role: Role) -> NewUser {
    NewUser {
        email: email(address),
        name: None,
        password: PasswordHash::new("$argon2id$made-up".to_owned()),
        role,
        limits: UserLimits::default(),
    }
}

fn demoted() -> UserChange {
    UserChange { role: Some(Role::User), ..UserChange::default() }
}

fn disabled(disabled: bool) -> UserChange {
    UserChange { disabled: Some(disabled), ..UserChange::default() }
}

fn everyone() -> UserFilter {
    UserFilter { query: None, before: None, limit: 100 }
}

fn everything() -> AuditFilter {
    AuditFilter { actor: None, action: None, before: None, limit: 100 }
}

async fn of_many_who_would_be_the_first_admin_one_is(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let replicas = [Users::new(&system.store().await?), Users::new(&system.store().await?)];
    let by = By { address: Some("127.0.0.1".parse()?), ..By::default() };
    assert!(!replicas[0].has_admin().await?);

    let asked = (0..24).map(|n| {
        let (users, by) = (&replicas[n % 2], &by);
        async move { users.create_first_admin(new_user(&format!("admin{n}@example.com"), Role::User), by).await }
    });
    let answers: Vec<_> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;

    let admins: Vec<User> = answers.into_iter().flatten().collect();
    assert_eq!(admins.len(), 1);
    assert_eq!(admins[0].role, Role::Admin);
    assert_eq!(replicas[1].list(everyone()).await?, admins);
    assert!(replicas[1].has_admin().await?);
    let entries = AuditLog::new(&system.store().await?).list(everything()).await?;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((entries[0].action.as_str(), entries[0].by.actor), (Action::UserRegister.as_str(), Some(admins[0].id)));
    Ok(())
}

async fn an_address_is_taken_whatever_its_case(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let users = Users::new(&system.store().await?);
    let by = By::default();

    let spellings = ["me@example.com", "Me@Example.com", "ME@EXAMPLE.COM", "mE@example.com"];
    let answers = join_all(spellings.map(|spelling| users.create(new_user(spelling, Role::User), &by))).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 1);
    assert!(refused.iter().all(|answer| matches!(answer, Err(Error::EmailTaken))), "{refused:?}");

    let other = users.create(new_user("you@example.com", Role::User), &by).await?;
    let change = UserChange { email: Some(email("YOU@example.com")), ..UserChange::default() };
    let renamed = users.update(other.id, change, &by).await?.context("it is there")?;
    assert_eq!(renamed.email, "YOU@example.com");
    let change = UserChange { email: Some(email("ME@example.com")), name: Some(Some("x".into())), ..UserChange::default() };
    assert!(matches!(users.update(other.id, change, &by).await, Err(Error::EmailTaken)));
    // Nothing of a refused change is kept.
    assert_eq!(users.find(other.id).await?, Some(renamed));
    assert_eq!(users.find_by_email(&email("you@EXAMPLE.com")).await?.map(|user| user.id), Some(other.id));
    assert_eq!(users.password_of(&email("You@example.com")).await?.context("it can log in")?.1.expose(), "$argon2id$made-up");
    Ok(())
}

async fn the_last_active_admin_stays(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let users = Users::new(&system.store().await?);
    let by = By::default();
    let last = users.create(new_user("a@example.com", Role::Admin), &by).await?;
    let other = users.create(new_user("b@example.com", Role::Admin), &by).await?;
    users.update(other.id, disabled(true), &by).await?;

    for change in [demoted(), disabled(true)] {
        assert!(matches!(users.update(last.id, change, &by).await, Err(Error::LastAdmin)));
    }
    assert!(matches!(users.delete(last.id, &by).await, Err(Error::LastAdmin)));
    assert_eq!(users.find(last.id).await?, Some(last.clone()));

    users.update(other.id, disabled(false), &by).await?;
    assert!(users.delete(last.id, &by).await?);
    assert!(matches!(users.delete(other.id, &by).await, Err(Error::LastAdmin)));
    Ok(())
}

async fn two_admins_who_unmake_each_other_leave_one(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let replicas = [Users::new(&system.store().await?), Users::new(&system.store().await?)];
    let by = By::default();

    for round in 0..8 {
        let one = replicas[0].create(new_user(&format!("one{round}@example.com"), Role::Admin), &by).await?;
        let two = replicas[0].create(new_user(&format!("two{round}@example.com"), Role::Admin), &by).await?;
        for user in replicas[0].list(everyone()).await? {
            if user.id != one.id && user.id != two.id {
                replicas[0].update(user.id, demoted(), &by).await?;
            }
        }
        let unmake = |users: Users, id: UserId, how: u32| {
            let by = &by;
            async move {
                match how % 3 {
                    0 => users.update(id, demoted(), by).await.map(drop),
                    1 => users.update(id, disabled(true), by).await.map(drop),
                    _ => users.delete(id, by).await.map(drop),
                }
            }
        };

        let answers = tokio::join!(unmake(replicas[0].clone(), two.id, round), unmake(replicas[1].clone(), one.id, round / 3),);

        match answers {
            (Ok(()), Err(Error::LastAdmin)) | (Err(Error::LastAdmin), Ok(())) => {}
            both => anyhow::bail!("round {round}: {both:?}"),
        }
        let left: Vec<User> = replicas[0].list(everyone()).await?.into_iter().filter(User::is_active_admin).collect();
        assert_eq!(left.len(), 1, "round {round}");
    }
    Ok(())
}

async fn a_change_is_made_and_audited_by_its_names(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let (users, log) = (Users::new(&store), AuditLog::new(&store));
    let user = users.create(new_user("me@example.com", Role::User), &By::default()).await?;
    let by = By { actor: Some(user.id), api_key: None, address: Some("::ffff:10.0.0.7".parse()?) };
    let change = UserChange {
        name: Some(Some("nul\0".into())),
        rate_limit_per_hour: Some(Some(7)),
        max_concurrent_jobs: Some(None),
        queue_weight: Some(Some(3)),
        daily_budget: Some(Some(NanoUsd(1_500_000_000))),
        password: Some(PasswordHash::new("$argon2id$another".into())),
        ..UserChange::default()
    };

    users.update(user.id, change, &by).await?.context("it is there")?;
    users.update(user.id, UserChange { role: Some(Role::User), ..UserChange::default() }, &by).await?;

    let now = users.find(user.id).await?.context("it is there")?;
    assert_eq!(now.name.as_deref(), Some("nul\u{fffd}"));
    let limits = UserLimits {
        rate_limit_per_hour: Some(7),
        max_concurrent_jobs: None,
        daily_budget: Some(NanoUsd(1_500_000_000)),
        queue_weight: Some(3),
    };
    assert_eq!(now.limits, limits);
    assert_eq!(users.password_of(&email("me@example.com")).await?.context("it can log in")?.1.expose(), "$argon2id$another");
    let mine = log.list(AuditFilter { actor: Some(user.id), ..everything() }).await?;
    let told: Vec<_> = mine.iter().rev().map(|entry| (entry.action.as_str(), entry.detail.clone())).collect();
    let names = json!({"changed": ["name", "rate_limit_per_hour", "queue_weight", "daily_budget_usd"]});
    // The last change changed nothing.
    assert_eq!(told, [("user.update", Some(names)), ("password.change", None)]);
    assert!(mine.iter().all(|entry| entry.target == Some(user.id.to_string()) && entry.by.address == "10.0.0.7".parse().ok()));
    assert_eq!(users.update(UserId::new(), demoted(), &by).await?, None);
    Ok(())
}

async fn the_audit_log_is_read_page_by_page(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let log = AuditLog::new(&system.store().await?);
    for n in 0..5 {
        let action = if n % 2 == 0 { Action::LoginFailed } else { Action::ToolSwitch };
        log.note(By::default(), action, Some(n.to_string()), None).await?;
    }
    let targets = |entries: &[shared::audit::AuditEntry]| entries.iter().filter_map(|entry| entry.target.clone()).collect::<Vec<_>>();

    let first = log.list(AuditFilter { limit: 2, ..everything() }).await?;
    let rest = log.list(AuditFilter { before: Some(first[1].id), ..everything() }).await?;
    let failed = log.list(AuditFilter { action: Some("login.failed".into()), ..everything() }).await?;

    assert_eq!((targets(&first), targets(&rest)), (vec!["4".into(), "3".into()], vec!["2".into(), "1".into(), "0".into()]));
    assert_eq!(targets(&failed), ["4", "2", "0"]);
    Ok(())
}

async fn users_are_found_by_a_part_of_their_address_or_name(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let users = Users::new(&system.store().await?);
    for (address, name) in [("ada@example.com", Some("Lovelace")), ("bob_%@example.org", None), ("bobby@example.org", Some("100% Bob"))] {
        users.create(NewUser { name: name.map(str::to_owned), ..new_user(address, Role::User) }, &By::default()).await?;
    }
    let found = async |query: &str| {
        let filter = UserFilter { query: Some(query.to_owned()), ..everyone() };
        users.list(filter).await.map(|users| users.into_iter().map(|user| user.email).collect::<Vec<_>>())
    };

    assert_eq!(found("LOVE").await?, ["ada@example.com"]);
    assert_eq!(found("BOB").await?, ["bobby@example.org", "bob_%@example.org"]);
    assert_eq!(found("b_%").await?, ["bob_%@example.org"]);
    assert_eq!(found("0% b").await?, ["bobby@example.org"]);
    assert_eq!(found("\\").await?, Vec::<String>::new());
    assert_eq!(found("\0").await?, Vec::<String>::new());
    assert_eq!(found("").await?.len(), 3);
    let newest = users.list(UserFilter { limit: 1, ..everyone() }).await?;
    let older = users.list(UserFilter { before: Some(newest[0].id), ..everyone() }).await?;
    assert_eq!((newest.len(), older.len()), (1, 2));
    Ok(())
}

async fn a_deleted_user_is_gone_at_once_and_forgotten_in_time(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?.with("MAX_WORKERS", "1");
    let store = system.store().await?;
    let (users, jobs) = (Users::new(&store), Jobs::new(&store));
    let by = By::default();
    let user = users.create(new_user("me@example.com", Role::User), &by).await?;
    let _worker = system.worker().await?;
    let running = submit(&jobs, user.id, "slow:600:0.1").await?;
    until(async || Ok(jobs.peek(running).await?.is_some_and(|job| job.state == JobState::Running))).await?;
    let waiting = submit(&jobs, user.id, "say:never").await?;

    assert!(users.delete(user.id, &by).await?);

    assert_eq!(users.find(user.id).await?, None);
    assert_eq!(users.list(everyone()).await?, []);
    assert!(users.password_of(&email("me@example.com")).await?.is_none());
    assert!(!users.delete(user.id, &by).await?);
    assert_eq!(users.update(user.id, demoted(), &by).await?, None);
    let next = users.create(new_user("Me@example.com", Role::User), &by).await?;
    // What waited ended with its user, or is forgotten already; what runs ends and is forgotten as well.
    assert!(jobs.peek(waiting).await?.is_none_or(|job| job.state == JobState::Cancelled));
    until(async || Ok(count(&system, "users").await? == 1)).await?;
    assert_eq!(count(&system, "jobs").await?, 0);
    assert_eq!(users.find(next.id).await?, Some(next));
    let deeds = AuditLog::new(&store).list(AuditFilter { action: Some("user.delete".into()), ..everything() }).await?;
    assert_eq!(deeds.iter().filter_map(|deed| deed.target.clone()).collect::<Vec<_>>(), [user.id.to_string()]);
    Ok(())
}

async fn a_job_sent_while_its_user_was_deleted_is_cancelled_and_forgotten(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let (users, jobs) = (Users::new(&store), Jobs::new(&store));
    let user = users.create(new_user("me@example.com", Role::User), &By::default()).await?;
    users.delete(user.id, &By::default()).await?;
    let late = submit(&jobs, user.id, "say:late").await?;
    assert_eq!(count(&system, "users").await?, 1);

    let shutdown = CancellationToken::new();
    let leader = tokio::spawn(reconciler::run(store.clone(), shutdown.clone()));
    until(async || Ok(count(&system, "users").await? == 0)).await?;

    assert!(jobs.peek(late).await?.is_none());
    shutdown.cancel();
    leader.await?;
    Ok(())
}

async fn submit(jobs: &Jobs, user_id: UserId, text: &str) -> anyhow::Result<JobId> {
    let spec: ChatSpec = serde_json::from_value(json!({ "message": text }))?;
    let new = NewJob { user_id, api_key_id: None, session_id: None, spec, idempotency_key: None, trace: None, reservation: NanoUsd(0) };
    Ok(jobs.submit(new).await?.job.id)
}

/// How many rows a table has.
pub async fn count(system: &System, table: &str) -> anyhow::Result<i64> {
    let database = system.database.connect().await?;
    let sql = format!("SELECT count(*) AS n FROM {table}");
    let row = database.query_one_raw(Statement::from_string(database.get_database_backend(), sql)).await?;
    database.close().await?;
    Ok(row.context("a count")?.try_get("", "n")?)
}

/// Wait until something is so. The record announces nothing, so this looks again and again.
pub async fn until(is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let seen = async {
        while !is_so().await? {
            looks.tick().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, seen).await.context("it never was so")?
}
