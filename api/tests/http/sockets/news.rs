//! News of a user's jobs, and for admins of the system, over sockets.

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{api_key::Scope, audit::By, user::Role, users::UserChange};

use super::{ping, watch};
use crate::{
    socket::Socket,
    stage::{Stage, complete, say},
};

/// What the next news of a job says: whose, in which state, on which attempt.
async fn told(socket: &mut Socket) -> (String, String, bool) {
    let job = socket.until("job").await.expect("news")["job"].clone();
    let text = |field: &str| job[field].as_str().unwrap_or_default().to_owned();
    (text("id"), text("status"), job["cancel_requested_at"].is_string())
}

fn news(job: &str, status: &str) -> (String, String, bool) {
    (job.to_owned(), status.to_owned(), false)
}

#[tokio::test]
async fn whoever_watches_jobs_hears_of_those_open_and_of_each_change_of_their_own_wherever_it_is_made() {
    let stage = Stage::new().await;
    let elsewhere = stage.elsewhere(&[]).await;
    let (server, mut hand) = (elsewhere.server().await, stage.hand().await);
    let other = stage.account("other@example.com", Role::User).await;
    let others_key = stage.key_of(&other, &[Scope::Chat]).await;
    let (ended, open) = (stage.submit("ended").await, stage.submit("open").await);
    complete(hand.take().await, "before").await;
    let mut socket = server.socket(&stage.key).await;

    socket.done(watch("jobs")).await.expect("done");
    assert_eq!(told(&mut socket).await, news(&open, "queued"), "{ended} had ended");
    let lease = hand.take().await;
    assert_eq!(told(&mut socket).await, news(&open, "running"));
    let unheard = stage.call(&others_key, Method::POST, "/api/chat", &json!({"message": "unheard"})).await;
    assert_eq!(unheard.status, StatusCode::ACCEPTED);
    let last = stage.submit("last").await;
    assert_eq!(told(&mut socket).await, news(&last, "queued"));
    elsewhere.call(&stage.key, Method::POST, &format!("/api/jobs/{open}/cancel"), &Value::Null).await;
    assert_eq!(told(&mut socket).await, (open.clone(), "running".into(), true));
    complete(lease, "done").await;
    assert_eq!(told(&mut socket).await, (open.clone(), "completed".into(), true));
    // The other user's job is first.
    let unheard = hand.take().await;
    complete(unheard, "unheard").await;
    let lease = hand.take().await;
    assert_eq!(told(&mut socket).await, news(&last, "running"));
    complete(lease, "the whole answer").await;

    let told = socket.until("job").await.expect("news")["job"].clone();
    assert_eq!(told, stage.get(&format!("/api/jobs/{last}")).await.json());
    assert_eq!(told["result"]["text"], "the whole answer");
}

#[tokio::test]
async fn the_sockets_of_a_user_hear_the_same_and_whoever_unwatches_hears_no_more() {
    let stage = Stage::new().await;
    let (server, mut one) = stage.socket().await;
    let mut two = server.socket(&stage.token_of(&stage.user).await).await;
    let first = stage.submit("first").await;
    for socket in [&mut one, &mut two] {
        socket.done(watch("jobs")).await.expect("done");
        assert_eq!(told(socket).await, news(&first, "queued"));
    }

    let lease = stage.hand().await.take().await;
    for socket in [&mut one, &mut two] {
        assert_eq!(told(socket).await, news(&first, "running"));
    }
    one.done(json!({"type": "unwatch", "what": "jobs"})).await.expect("done");
    complete(lease, "done").await;
    let second = stage.submit("second").await;
    assert_eq!(told(&mut two).await, news(&first, "completed"));
    assert_eq!(told(&mut two).await, news(&second, "queued"));

    // Whatever it was sent came before this.
    one.ask(ping()).await.expect("an answer");
    one.done(watch("jobs")).await.expect("done");
    assert_eq!(told(&mut one).await, news(&second, "queued"));
    // To watch again is to begin again.
    two.done(watch("jobs")).await.expect("done");
    assert_eq!(told(&mut two).await, news(&second, "queued"));
}

#[tokio::test]
async fn changes_are_told_without_redis_and_after_it_lost_everything() {
    let mut stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;
    let first = stage.submit("first").await;
    socket.done(watch("jobs")).await.expect("done");
    assert_eq!(told(&mut socket).await, news(&first, "queued"));

    stage.lose_redis().await;
    // Nobody announces these.
    stage.app.jobs.cancel(stage.user.id, first.parse().expect("an id")).await.expect("cancelled");
    let second = stage.submit("second").await;
    let mut heard = [told(&mut socket).await, told(&mut socket).await];
    heard.sort();
    let mut expected = [(first, "cancelled".to_owned(), true), news(&second, "queued")];
    expected.sort();
    assert_eq!(heard, expected);

    stage.restart_redis().await;
    let third = stage.submit("third").await;
    assert_eq!(told(&mut socket).await, news(&third, "queued"));
    stage.app.jobs.cancel(stage.user.id, second.parse().expect("an id")).await.expect("cancelled");
    assert_eq!(told(&mut socket).await, (second, "cancelled".to_owned(), true));
}

/// The next news of the system of which `is_so` is true.
async fn system(socket: &mut Socket, is_so: impl Fn(&Value) -> bool) -> Value {
    loop {
        let news = socket.until("system").await.expect("news");
        if is_so(&news) {
            return news;
        }
    }
}

#[tokio::test]
async fn admins_follow_anybodys_job_as_long_as_they_are_admins() {
    let stage = Stage::new().await;
    let elsewhere = stage.elsewhere(&[]).await;
    let (server, mut stranger) = stage.socket().await;
    let admin = stage.account("a@example.com", Role::Admin).await;
    stage.account("b@example.com", Role::Admin).await;
    let mut socket = server.socket(&stage.token_of(&admin).await).await;
    let job = stage.submit("hi").await;
    let own = stage.call(&stage.token_of(&admin).await, Method::POST, "/api/chat", &json!({"message": "mine"})).await.json()["id"].clone();
    let own = own.as_str().expect("an id");
    let mut hand = stage.hand().await;
    let leases = [hand.take().await, hand.take().await];

    for job in [job.as_str(), own] {
        socket.done(json!({"type": "subscribe", "job_id": job})).await.expect("done");
    }
    assert_eq!(stranger.refused(json!({"type": "subscribe", "job_id": own})).await.expect("refused"), "not_found");
    for lease in &leases {
        say(lease, "hello");
    }
    let mut heard = std::collections::BTreeSet::new();
    while heard.len() < 2 {
        let event = socket.until("event").await.expect("an event");
        if event["event"]["type"] == "text.delta" {
            heard.insert(event["job_id"].as_str().expect("an id").to_owned());
        }
    }

    let change = UserChange { role: Some(Role::User), ..UserChange::default() };
    elsewhere.app.users.update(admin.id, change, &By::default()).await.expect("demoted");
    assert_eq!(socket.until("error").await.expect("told so")["code"], "admin_required");
    for lease in leases {
        complete(lease, "done").await;
    }
    loop {
        let event = socket.until("event").await.expect("an event");
        assert_eq!(event["job_id"], own, "{event}");
        if event["event"]["type"] == "job.completed" {
            break;
        }
    }
}

#[tokio::test]
async fn admins_watch_workers_and_queue_as_long_as_they_are_admins() {
    let stage = Stage::new().await;
    let elsewhere = stage.elsewhere(&[]).await;
    let (server, mut user) = stage.socket().await;
    let (admin, second) = (stage.account("a@example.com", Role::Admin).await, stage.account("b@example.com", Role::Admin).await);
    let mut socket = server.socket(&stage.token_of(&admin).await).await;
    let mut witness = server.socket(&stage.token_of(&second).await).await;
    assert_eq!(user.refused(watch("system")).await.expect("refused"), "admin_required");
    for socket in [&mut socket, &mut witness] {
        socket.done(watch("system")).await.expect("done");
        let news = system(socket, |_| true).await;
        assert_eq!((&news["queue"]["queued"], &news["workers"]), (&json!(0), &json!([])), "{news}");
    }

    stage.submit("waits").await;
    let mut hand = stage.hand().await;
    let joined = system(&mut socket, |news| news["workers"][0]["state"] == "active").await;
    assert_eq!(joined["queue"]["queued"], 1);
    assert_eq!((&joined["workers"][0]["id"], &joined["workers"][0]["slots"]), (&json!(hand.id()), &json!(100)), "{joined}");
    let _lease = hand.take().await;
    stage.app.workers.drain(hand.id(), &By::default()).await.expect("told to drain");
    let draining = system(&mut socket, |news| news["workers"][0]["state"] == "draining").await;
    assert_eq!((&draining["queue"]["queued"], &draining["queue"]["running"]), (&json!(0), &json!(1)), "{draining}");

    let change = UserChange { role: Some(Role::User), ..UserChange::default() };
    elsewhere.app.users.update(admin.id, change, &By::default()).await.expect("demoted");
    let farewell = socket.until("error").await.expect("told so");
    assert_eq!((&farewell["code"], farewell.get("request_id")), (&json!("admin_required"), None));
    stage.submit("unheard").await;
    system(&mut witness, |news| news["queue"]["queued"] == 1).await;
    socket.ask(ping()).await.expect("an answer");
    assert_eq!(socket.refused(watch("system")).await.expect("refused"), "admin_required");
    // Nothing came before the answers.
    socket.say(&ping()).await.expect("sent");
    assert_eq!(socket.said().await.expect("an answer"), json!({"type": "pong"}));
}
