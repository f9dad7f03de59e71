//! Sockets of real servers: through nginx, over the end of a server and of Redis, and against everything that a
//! client can send.

mod fuzz;

use std::time::Duration;

use anyhow::Context as _;
use api::token::Claims;
use jsonwebtoken::{EncodingKey, Header};
use rustix::process::Signal;
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    api_keys::{ApiKeys, NewApiKey},
    audit::By,
    id::UserId,
    logins::Logins,
    time::Timestamp,
    user::Role,
    users::Users,
};
use tests::{
    client::{Event, assert_whole},
    nginx::Nginx,
    servers::{Kind, RedisServer},
    socket::Socket,
    system::{Api, Cli, JWT_SECRET, System},
};

use crate::accounts::new_user;

fn new_key(user_id: UserId, scope: Scope) -> NewApiKey {
    NewApiKey {
        user_id,
        name: "key".to_owned(),
        scopes: vec![scope],
        allowed_tools: None,
        allowed_ips: None,
        rate_limit_per_hour: None,
        max_concurrent_jobs: None,
        expires_at: None,
    }
}

/// A socket of the user of `api`, opened at `base`.
async fn open(api: &Api, base: &str) -> anyhow::Result<Socket> {
    Socket::connect(base, &[("x-api-key", &api.key)]).await
}

/// Take the events of `job` to the first of type `kind` into `events`.
async fn until(socket: &mut Socket, job: &str, kind: &str, events: &mut Vec<Event>) -> anyhow::Result<()> {
    loop {
        let mut message = socket.until("event").await?;
        if message["job_id"] != job {
            continue;
        }
        let data = message["event"].take();
        let text = |field: &str| data[field].as_str().map(str::to_owned);
        events.push(Event { id: text("id"), kind: text("type").context("a type")?, data: data.clone() });
        if data["type"] == kind {
            return Ok(());
        }
    }
}

/// Ask for an answer and its events; the job's id.
async fn chat(socket: &mut Socket, text: &str) -> anyhow::Result<String> {
    let asked = socket.done(json!({"type": "chat", "message": text, "stream": true})).await?;
    Ok(asked["job"]["id"].as_str().context("an id")?.to_owned())
}

/// The next news of a job: which one, and in which state it is.
async fn told(socket: &mut Socket) -> anyhow::Result<(String, String)> {
    let message = socket.until("job").await?;
    let text = |field: &str| message["job"][field].as_str().context("a field").map(str::to_owned);
    Ok((text("id")?, text("status")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_comes_over_a_socket_through_nginx() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let nginx = Nginx::documented(system.directory(), api.client.base().trim_start_matches("http://"), "")?;
    let offer = format!("claude.v1, bearer.{}", api.key);
    // A page of the site that nginx serves.
    let headers = [("sec-websocket-protocol", offer.as_str()), ("origin", &nginx.url())];
    let mut socket = Socket::connect(&nginx.url(), &headers).await?;
    assert_eq!(socket.head["sec-websocket-protocol"], "claude.v1");
    let mut events = Vec::new();

    let id = chat(&mut socket, "slow:20:0.05").await?;
    until(&mut socket, &id, "text.delta", &mut events).await?;
    assert_eq!(api.client.job(&id).await?["status"], "running", "it came as it was made");
    until(&mut socket, &id, "job.completed", &mut events).await?;

    let text = assert_whole(&events);
    assert_eq!(events.last().context("events")?.data["job"]["result"]["text"], json!(text));
    let kept: Vec<Value> = events.iter().filter(|event| event.id.is_some()).map(|event| event.data.clone()).collect();
    let streamed = api.client.events(&id, None).await?.rest().await?;
    assert_eq!(kept, streamed.into_iter().filter(|event| event.id.is_some()).map(|event| event.data).collect::<Vec<_>>());
    socket.leave().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_told_to_stop_sends_its_sockets_to_another_one() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (mut one, other, _worker) = (system.api().await?, system.api().await?, system.worker().await?);
    let (mut socket, mut unknown) = (open(&one, one.client.base()).await?, Socket::connect(one.client.base(), &[]).await?);
    unknown.ask(json!({"type": "ping"})).await?;
    let mut events = Vec::new();
    let id = chat(&mut socket, "slow:40:0.05").await?;
    until(&mut socket, &id, "text.delta", &mut events).await?;

    one.process.signal(Signal::TERM)?;
    let (code, _) = socket.closed().await?;
    assert_eq!((code, unknown.closed().await?.0), (1012, 1012));
    drop((socket, unknown));
    assert!(one.process.ended().await?, "{}", one.process.log());
    let mut socket = open(&other, other.client.base()).await?;
    let after = events.last().context("an event")?.id.clone();
    socket.done(json!({"type": "subscribe", "job_id": id, "after": after})).await?;
    until(&mut socket, &id, "job.completed", &mut events).await?;

    let text = assert_whole(&events);
    assert_eq!(events.last().context("events")?.data["job"]["result"]["text"], json!(text));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_of_jobs_come_from_other_servers_and_outlive_redis() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, other, _worker) = (system.api().await?, system.api().await?, system.worker().await?);
    let mut socket = open(&api, api.client.base()).await?;
    socket.done(json!({"type": "watch", "what": "jobs"})).await?;

    let id = other.client.say("slow:20:0.05").await?;
    for status in ["queued", "running", "completed"] {
        assert_eq!(told(&mut socket).await?, (id.clone(), status.to_owned()));
    }
    system.redis.kill();
    system.redis = RedisServer::start(system.directory())?;
    // A state may be over before the server hears of Redis again; none is told twice or after a later one.
    let id = other.client.say("slow:20:0.05").await?;
    let mut statuses = ["queued", "running", "completed"].iter();
    while let (job, status) = told(&mut socket).await?
        && status != "completed"
    {
        assert_eq!(job, id);
        assert!(statuses.any(|next| *next == status), "{status}");
    }
    // What ends while nobody can announce it is heard of all the same.
    let id = other.client.say("slow:20:0.05").await?;
    while told(&mut socket).await? != (id.clone(), "running".to_owned()) {}
    system.redis.kill();
    assert_eq!(told(&mut socket).await?, (id, "completed".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_sees_a_worker_join_and_drain_and_go() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let api = system.api().await?;
    let store = system.store().await?;
    let admin = Users::new(&store).create(new_user("admin@example.com", Role::Admin), &By::default()).await?;
    let key = new_key(admin.id, Scope::Admin);
    let key = ApiKeys::new(&store).create(key, &By::default()).await?.1;
    let mut socket = Socket::connect(api.client.base(), &[("x-api-key", key.expose())]).await?;
    socket.done(json!({"type": "watch", "what": "system"})).await?;
    assert_eq!(socket.until("system").await?["workers"], json!([]));
    let mut state = async |state: &str| loop {
        let news = socket.until("system").await?;
        if news["workers"][0]["state"] == state {
            return anyhow::Ok(news);
        }
    };

    let mut worker = system.worker().await?;
    assert_eq!(state("active").await?["queue"]["workers"], 1);
    let id = api.client.say("slow:60:0.05").await?;
    api.client.events(&id, None).await?.until("text.delta", &mut Vec::new()).await?;
    worker.signal(Signal::TERM)?;

    assert_eq!(state("draining").await?["workers"][0]["running"], 1);
    state("dead").await?;
    assert!(worker.ended().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_sends_nobody_away_but_whose_token_ends() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, store) = (system.api().await?, system.store().await?);
    let user = Users::new(&store).create(new_user("me@example.com", Role::User), &By::default()).await?;
    let (fam, _) = Logins::new(&store, Duration::from_mins(5)).begin(&user, &By::default()).await?;
    let iat = Timestamp::now().unix_ms() / 1_000;
    let (iss, aud) = ("claude-api".to_owned(), "claude-api".to_owned());
    let claims = Claims { sub: user.id, jti: "1".to_owned(), fam, role: Role::User, iat, exp: iat + 5, iss, aud };
    let token = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(JWT_SECRET.as_bytes()))?;
    let mut ends = Socket::connect(api.client.base(), &[("authorization", &format!("Bearer {token}"))]).await?;
    let mut stays = open(&api, api.client.base()).await?;
    for socket in [&mut ends, &mut stays] {
        socket.done(json!({"type": "watch", "what": "jobs"})).await?;
    }

    // Without Redis anybody's rights may have changed, and the database does not say.
    system.database.shut().await?;
    system.redis.kill();
    system.redis = RedisServer::start(system.directory())?;

    assert_eq!(ends.closed().await?, (4401, "token_expired".to_owned()));
    let mut unknown = Socket::connect(api.client.base(), &[]).await?;
    let refused = unknown.refused(json!({"type": "auth", "token": api.key})).await?;
    assert!(matches!(refused.as_str(), "unavailable" | "internal_error"), "{refused}");
    assert_eq!(unknown.ask(json!({"type": "ping"})).await?["type"], "pong", "it may try again");
    system.database.open().await?;
    assert_eq!(stays.ask(json!({"type": "ping"})).await?["type"], "pong");
    stays.done(json!({"type": "watch", "what": "jobs"})).await?;
    Ok(())
}
