//! Jobs over a socket: sent, followed, ended, with the same rights and counted the same as over HTTP.

use std::collections::HashMap;

use poem::http::Method;
use serde_json::{Value, json};
use shared::{api_key::Scope, lease::Outcome, user::Role};

use super::{Server, ping, subscribe};
use crate::{
    socket::Socket,
    stage::{Stage, complete, say, settle},
};

fn subscribe_after(job: &str, after: &str) -> Value {
    json!({"type": "subscribe", "job_id": job, "after": after})
}

fn unsubscribe(job: &str) -> Value {
    json!({"type": "unsubscribe", "job_id": job})
}

fn cancel(job: &str) -> Value {
    json!({"type": "cancel", "job_id": job})
}

fn is_terminal(event: &Value) -> bool {
    matches!(event["type"].as_str(), Some("job.completed" | "job.failed" | "job.cancelled"))
}

/// The kept events of `jobs`, each to its end.
async fn to_their_ends(socket: &mut Socket, jobs: &[&str]) -> HashMap<String, Vec<Value>> {
    let mut events: HashMap<String, Vec<Value>> = HashMap::new();
    let mut open = jobs.len();
    while open > 0 {
        let message = socket.until("event").await.expect("an event");
        let (job, event) = (message["job_id"].as_str().expect("a job").to_owned(), message["event"].clone());
        open -= usize::from(is_terminal(&event));
        if event["id"].is_string() {
            events.entry(job).or_default().push(event);
        }
    }
    events
}

/// What the stream of server-sent events of an ended job says.
async fn streamed(stage: &Stage, job: &str, after: Option<&str>) -> Vec<Value> {
    let (mut stream, mut events) = (stage.follow(job, after).await, Vec::new());
    while let Some(message) = stream.next().await {
        events.extend(message.id.is_some().then_some(message.data));
    }
    events
}

/// The next kept event.
async fn next_event(socket: &mut Socket) -> Value {
    loop {
        let message = socket.until("event").await.expect("an event");
        if message["event"]["id"].is_string() {
            return message;
        }
    }
}

#[tokio::test]
async fn many_jobs_come_whole_over_one_socket_as_they_come_over_http() {
    let stage = Stage::with(("MAX_SUBSCRIPTIONS_PER_SOCKET", "4")).await;
    let (_server, mut socket) = stage.socket().await;
    let mut hand = stage.hand().await;
    let mut jobs = Vec::new();
    for n in 0..4 {
        jobs.push(stage.submit(&format!("hi {n}")).await);
    }

    // One that has not begun, one that runs, one from its middle; the last one has ended.
    assert_eq!(socket.done(subscribe(&jobs[0])).await.expect("done")["ended"], false);
    let mut leases = Vec::new();
    for n in 0..4 {
        let lease = hand.take().await;
        for piece in ["a", "b \"é\" ", &n.to_string()] {
            say(&lease, piece);
        }
        leases.push(lease);
    }
    socket.done(subscribe(&jobs[1])).await.expect("done");
    stage.follow(&jobs[2], Some("1-1")).await.until("text.delta").await;
    socket.done(subscribe_after(&jobs[2], "1-1")).await.expect("done");
    complete(leases.pop().expect("the last"), "done").await;
    let done = socket.done(subscribe(&jobs[3])).await.expect("done");
    assert_eq!((&done["ended"], &done["job_id"]), (&json!(false), &json!(jobs[3])));
    for lease in leases {
        say(&lease, "!");
        complete(lease, "done").await;
    }
    let events = to_their_ends(&mut socket, &jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;

    for (n, job) in jobs.iter().enumerate() {
        let events = &events[job];
        assert_eq!(*events, streamed(&stage, job, (n == 2).then_some("1-1")).await);
        let ids: Vec<String> = events.iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect();
        let (first, last) = (if n == 2 { 2 } else { 0 }, if n == 3 { 4 } else { 5 });
        assert_eq!(ids, (first..=last).map(|n| format!("1-{n}")).collect::<Vec<_>>());
        let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
        let whole = format!("ab \"é\" {n}{}", if n == 3 { "" } else { "!" });
        assert_eq!(text, if n == 2 { whole[1..].to_owned() } else { whole });
        assert_eq!(events.iter().filter(|event| is_terminal(event)).count(), 1);
    }
    // They are followed no more: there is room for as many others.
    for n in 4..8 {
        socket.done(subscribe(&stage.submit(&format!("hi {n}")).await)).await.expect("room");
    }
}

#[tokio::test]
async fn whoever_has_everything_is_told_that_there_is_no_more() {
    let stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    say(&lease, "a");
    complete(lease, "a").await;

    for last in ["1-2", "1-3", "2-0"] {
        assert_eq!(socket.done(subscribe_after(&id, last)).await.expect("done")["ended"], true, "{last}");
    }
    assert_eq!(socket.done(subscribe_after(&id, "1-1")).await.expect("done")["ended"], false);

    let last = next_event(&mut socket).await;
    assert_eq!((&last["event"]["id"], &last["event"]["type"]), (&json!("1-2"), &json!("job.completed")));
}

#[tokio::test]
async fn a_position_that_is_gone_is_answered_with_the_job_and_from_the_start() {
    let stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    stage.follow(&id, None).await.until("job.started").await;

    socket.done(subscribe_after(&id, "1-7")).await.expect("done");

    let resync = socket.said().await.expect("a message");
    assert_eq!((&resync["type"], &resync["job_id"], &resync["event"]["type"]), (&json!("event"), &json!(id), &json!("resync")));
    assert_eq!((&resync["event"]["job"]["id"], resync["event"].get("id")), (&json!(id), None));
    assert_eq!(next_event(&mut socket).await["event"]["id"], "1-0");
    drop(lease);
}

#[tokio::test]
async fn whoever_unsubscribes_hears_no_more_and_whoever_subscribes_again_begins_anew() {
    let stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;
    let mut hand = stage.hand().await;
    let (left, kept) = (stage.submit("left").await, stage.submit("kept").await);
    let (of_left, of_kept) = (hand.take().await, hand.take().await);
    for job in [&left, &kept] {
        socket.done(subscribe(job)).await.expect("done");
        assert_eq!(next_event(&mut socket).await["job_id"], *job);
    }

    socket.done(unsubscribe(&left)).await.expect("done");
    socket.done(unsubscribe(&left)).await.expect("nothing to it");
    let mut witness = stage.follow(&left, Some("1-0")).await;
    say(&of_left, "unheard");
    witness.until("text.delta").await;
    say(&of_kept, "heard");
    let next = next_event(&mut socket).await;
    assert_eq!((&next["job_id"], &next["event"]["text"]), (&json!(kept), &json!("heard")));

    // From the start, and once: what was there before is replaced.
    socket.done(subscribe(&kept)).await.expect("done");
    socket.done(subscribe(&kept)).await.expect("done");
    complete(of_kept, "heard").await;
    let events = to_their_ends(&mut socket, &[&kept]).await;
    let ids: Vec<&Value> = events[&kept].iter().map(|event| &event["id"]).collect();
    assert_eq!(ids[ids.len() - 3..], [&json!("1-0"), &json!("1-1"), &json!("1-2")]);

    complete(of_left, "left").await;
    socket.done(subscribe_after(&left, "1-1")).await.expect("done");
    assert_eq!(to_their_ends(&mut socket, &[&left]).await[&left].len(), 1);
}

#[tokio::test]
async fn a_question_is_asked_and_answered_over_a_socket() {
    let stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;
    let mut hand = stage.hand().await;

    let asked = socket.done(json!({"type": "chat", "message": "hi", "metadata": {"order": "7"}})).await.expect("a job");
    assert_eq!(
        (&asked["replayed"], &asked["job"]["status"], &asked["job"]["metadata"]["order"]),
        (&json!(false), &json!("queued"), &json!("7"))
    );
    assert_eq!(asked["job"]["queue"]["position"], 0);
    assert_eq!(stage.get(&format!("/api/jobs/{}", asked["job"]["id"].as_str().expect("an id"))).await.json()["id"], asked["job"]["id"]);
    complete(hand.take().await, "unheard").await;

    let streamed = json!({"type": "chat", "message": "hi", "stream": true, "idempotency_key": "once"});
    let first = socket.done(streamed.clone()).await.expect("a job");
    let id = first["job"]["id"].as_str().expect("an id").to_owned();
    let lease = hand.take().await;
    say(&lease, "hello");
    complete(lease, "hello").await;
    let events = to_their_ends(&mut socket, &[&id]).await;
    assert_eq!(events[&id][2]["job"]["result"]["text"], "hello");

    let again = socket.done(streamed.clone()).await.expect("the same job");
    assert_eq!((&again["job"]["id"], &again["job"]["status"], &again["replayed"]), (&json!(id), &json!("completed"), &json!(true)));
    assert_eq!(to_their_ends(&mut socket, &[&id]).await, events);
    let mut other = streamed;
    other["message"] = "another".into();
    assert_eq!(socket.refused(other).await.expect("refused"), "idempotency_key_reused");
}

#[tokio::test]
async fn what_is_wrong_with_a_question_is_pointed_at_as_over_http() {
    let stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;

    for body in [
        json!({}),
        json!({"message": "", "max_turns": 0}),
        json!({"message": "a", "mode": 7}),
        json!({"message": "a", "model": "another"}),
        json!({"message": "a", "session_id": "sess_1"}),
    ] {
        let over_http = stage.call(&stage.key, Method::POST, "/api/chat", &body).await.json();
        let mut message = body.clone();
        message["type"] = "chat".into();
        let over_socket = socket.ask(message).await.expect("an answer");
        assert_eq!((&over_socket["type"], &over_socket["code"]), (&json!("error"), &over_http["code"]), "{body}");
        assert_eq!((&over_socket["detail"], &over_socket["errors"]), (&over_http["detail"], &over_http["errors"]), "{body}");
        assert!(over_socket["errors"].as_array().is_some_and(|errors| !errors.is_empty()), "{over_socket}");
    }
}

#[tokio::test]
async fn a_job_is_ended_over_a_socket_by_its_owner_alone() {
    let stage = Stage::new().await;
    let (server, mut socket) = stage.socket().await;
    let other = stage.account("other@example.com", Role::User).await;
    let mut others = server.socket(&stage.key_of(&other, &[Scope::Chat, Scope::Read]).await).await;
    let (running, queued) = (stage.submit("runs").await, stage.submit("waits").await);
    let lease = stage.hand().await.take().await;

    for message in [subscribe(&running), cancel(&running), subscribe_after(&running, "1-0"), cancel("job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b")]
    {
        assert_eq!(others.refused(message.clone()).await.expect("refused"), "not_found", "{message}");
    }
    assert_eq!(socket.done(cancel(&queued)).await.expect("done")["job"]["status"], "cancelled");
    let asked = socket.done(cancel(&running)).await.expect("done")["job"].clone();
    assert_eq!((&asked["status"], asked["cancel_requested_at"].is_string()), (&json!("running"), true), "{asked}");
    let again = socket.done(cancel(&running)).await.expect("done")["job"].clone();
    assert_eq!(again["cancel_requested_at"], asked["cancel_requested_at"]);
    socket.done(subscribe(&running)).await.expect("done");
    settle(lease, Outcome::Cancelled).await;

    let events = to_their_ends(&mut socket, &[&running]).await;
    assert_eq!(events[&running].last().expect("an end")["type"], "job.cancelled");
}

#[tokio::test]
async fn a_key_may_on_a_socket_what_it_may_over_http() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let (reads, chats) = (stage.key_of(&stage.user, &[Scope::Read]).await, stage.key_of(&stage.user, &[Scope::Chat]).await);
    let id = stage.submit("hi").await;
    let chat = json!({"type": "chat", "message": "hi", "stream": true});
    let mut socket = server.socket(&reads).await;
    let mut other = server.socket(&chats).await;

    for message in [chat.clone(), cancel(&id)] {
        assert_eq!(socket.refused(message.clone()).await.expect("refused"), "insufficient_scope", "{message}");
    }
    for message in [subscribe(&id), json!({"type": "watch", "what": "jobs"})] {
        socket.done(message.clone()).await.expect("done");
        assert_eq!(other.refused(message.clone()).await.expect("refused"), "insufficient_scope", "{message}");
    }
    assert_eq!(socket.refused(json!({"type": "watch", "what": "system"})).await.expect("refused"), "admin_required");
    let asked = other.done(chat).await.expect("a job");
    assert_eq!(other.until("event").await.expect("its events")["job_id"], asked["job"]["id"]);
}

#[tokio::test]
async fn what_is_done_over_a_socket_counts_as_requests_do() {
    let stage = Stage::with(("DEFAULT_RATE_LIMIT_PER_HOUR", "6")).await;
    // The handshake is the first of them.
    let (_server, mut socket) = stage.socket().await;
    let chat = |key: &str| json!({"type": "chat", "message": "hi", "idempotency_key": key});
    let remaining = async || stage.get("/api/quota").await.json()["user"]["remaining"].clone();
    assert_eq!(remaining().await, 5);

    let id = socket.done(chat("a")).await.expect("done")["job"]["id"].as_str().expect("an id").to_owned();
    for _ in 0..3 {
        assert_eq!(socket.done(chat("a")).await.expect("done")["replayed"], true);
    }
    assert_eq!(remaining().await, 4, "a replay costs nothing");
    socket.done(subscribe(&id)).await.expect("done");
    socket.done(cancel(&id)).await.expect("done");
    socket.done(unsubscribe(&id)).await.expect("done");
    socket.done(json!({"type": "watch", "what": "jobs"})).await.expect("done");
    socket.ask(ping()).await.expect("an answer");
    assert_eq!(remaining().await, 2);
    assert_eq!(socket.refused(subscribe("job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b")).await.expect("refused"), "not_found");
    socket.done(chat("b")).await.expect("done");

    for message in [chat("c"), subscribe(&id), cancel(&id)] {
        let refused = socket.ask(message).await.expect("an answer");
        assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("rate_limited")), "{refused}");
        assert!(refused["retry_after_secs"].as_u64().is_some_and(|secs| (1..=3_660).contains(&secs)), "{refused}");
    }
    assert_eq!(stage.get("/api/jobs").await.code(), "rate_limited");
    socket.done(unsubscribe(&id)).await.expect("done");
}

#[tokio::test]
async fn a_socket_follows_so_many_jobs_and_no_more() {
    let stage = Stage::with(("MAX_SUBSCRIPTIONS_PER_SOCKET", "2")).await;
    let (_server, mut socket) = stage.socket().await;
    let mut jobs = Vec::new();
    for n in 0..3 {
        jobs.push(stage.submit(&format!("hi {n}")).await);
    }
    let chat = json!({"type": "chat", "message": "hi", "stream": true});

    for job in [&jobs[0], &jobs[1], &jobs[1]] {
        socket.done(subscribe(job)).await.expect("done");
    }
    for message in [subscribe(&jobs[2]), chat.clone()] {
        assert_eq!(socket.refused(message).await.expect("refused"), "too_many_subscriptions");
    }
    assert_eq!(stage.get("/api/jobs").await.json()["data"].as_array().map(Vec::len), Some(3), "a refused question is no job");
    socket.done(unsubscribe(&jobs[0])).await.expect("done");
    socket.done(subscribe(&jobs[2])).await.expect("done");

    // What has ended makes room by itself.
    stage.app.jobs.cancel(stage.user.id, jobs[1].parse().expect("an id")).await.expect("cancelled");
    let events = to_their_ends(&mut socket, &[&jobs[1]]).await;
    assert_eq!(events[&jobs[1]].len(), 1);
    socket.done(chat).await.expect("done");
}
