//! Conversations: made, shown, changed and deleted by their owner; and their turns, one at a time.

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{
    job::{JobError, JobResult, NanoUsd, Usage},
    lease::{Outcome, Report},
    user::Role,
};
use tokio_util::sync::CancellationToken;

use crate::stage::{Answer, Stage, complete, settle};

async fn chat(stage: &Stage, session: &str) -> Answer {
    stage.post("/api/chat", &json!({"message": "hi", "session_id": session})).await
}

#[tokio::test]
async fn a_conversation_is_made_shown_and_changed() {
    let stage = Stage::new().await;
    let asked = json!({"title": "Trees", "model": "sonnet", "system_prompt": "Be a tree.", "tools": ["Read"], "metadata": {"a": "1"}});

    let made = stage.post("/api/sessions", &asked).await;
    let session = made.json();
    let path = format!("/api/sessions/{}", session["id"].as_str().expect("an id"));
    assert_eq!((made.status, made.header("location")), (StatusCode::CREATED, Some(path.as_str())));
    for (field, value) in asked.as_object().expect("fields") {
        assert_eq!(session[field], *value, "{field}");
    }
    assert_eq!(stage.get(&path).await.json(), session);

    let put = async |body: Value| stage.call(&stage.key, Method::PUT, &path, &body).await;
    let changed = put(json!({"title": null, "tools": null, "archived": true})).await.json();
    assert_eq!((&changed["title"], &changed["tools"], &changed["archived"]), (&Value::Null, &Value::Null, &json!(true)));
    assert_eq!(
        (&changed["model"], &changed["system_prompt"], &changed["metadata"]),
        (&asked["model"], &asked["system_prompt"], &asked["metadata"])
    );
    for (wrong, pointer) in [
        (json!({"title": ""}), "/title"),
        (json!({"model": "gpt-5"}), "/model"),
        (json!({"system_prompt": "no"}), "/system_prompt"),
        (json!({"tools": ["CronCreate"]}), "/tools/0"),
        (json!({"archived": null}), "/archived"),
        (json!({"metadata": {"k": "v".repeat(513)}}), "/metadata"),
    ] {
        let answer = put(wrong.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.json()["errors"][0]["pointer"].clone()), (422, json!(pointer)), "{wrong}");
    }
}

#[tokio::test]
async fn the_list_has_ones_own_conversations_newest_first_and_page_by_page() {
    let stage = Stage::new().await;
    let made = [stage.session().await, stage.session().await, stage.session().await];
    let other = stage.account("other@example.com", Role::User).await;
    let token = stage.token_of(&other).await;
    let theirs = stage.call(&token, Method::POST, "/api/sessions", &json!({})).await.json();
    let ids = |page: &Value| -> Vec<String> {
        page["data"].as_array().into_iter().flatten().filter_map(|session| session["id"].as_str()).map(str::to_owned).collect()
    };

    let first = stage.get("/api/sessions?limit=2").await.json();
    let rest = stage.get(&format!("/api/sessions?cursor={}", first["next_cursor"].as_str().expect("more"))).await.json();

    assert_eq!(ids(&first), [made[2].clone(), made[1].clone()]);
    assert_eq!((ids(&rest), &rest["next_cursor"]), (vec![made[0].clone()], &Value::Null));
    let id = theirs["id"].as_str().expect("an id");
    assert_eq!(chat(&stage, id).await.status, StatusCode::NOT_FOUND, "somebody else's");
    assert_eq!(stage.get(&format!("/api/jobs?session_id={id}")).await.json()["data"], json!([]));
}

#[tokio::test]
async fn turns_come_one_at_a_time_in_the_order_of_their_arrival() {
    let stage = Stage::new().await;
    let (session, other) = (stage.session().await, stage.session().await);
    let mut turns = Vec::new();
    for message in ["one", "two", "three"] {
        turns.push(stage.submit_turn(&session, message).await);
    }
    let mut hand = stage.hand().await;

    let first = hand.take().await;
    assert_eq!(first.job().id.to_string(), turns[0]);
    // Of all that waits, only what belongs to another conversation may begin.
    let elsewhere = stage.submit_turn(&other, "hello").await;
    let second = hand.take().await;
    assert_eq!(second.job().id.to_string(), elsewhere);
    complete(second, "hi").await;

    complete(first, "1").await;
    let next = hand.take().await;
    assert_eq!(next.job().id.to_string(), turns[1]);
    settle(next, Outcome::Failed(JobError::new("refused", "no", false))).await;
    let last = hand.take().await;
    assert_eq!(last.job().id.to_string(), turns[2], "a turn that failed holds nobody up");
    complete(last, "3").await;
    let shown = stage.get(&format!("/api/sessions/{session}")).await.json();
    assert_eq!((&shown["jobs"], &shown["turns"], &shown["active_jobs"]), (&json!(3), &json!(2), &json!(0)));
    let messages = stage.get(&format!("/api/sessions/{session}/messages")).await.json();
    let said: Vec<_> = messages["data"].as_array().expect("messages").iter().map(|message| message["content"].clone()).collect();
    assert_eq!(said, [json!("3"), json!("three"), json!("1"), json!("one")]);
}

#[tokio::test]
async fn the_end_of_a_waiting_turn_lets_the_next_one_go_on() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let (first, second) = (stage.submit_turn(&session, "one").await, stage.submit_turn(&session, "two").await);

    assert_eq!(stage.post(&format!("/api/jobs/{first}/cancel"), &json!({})).await.json()["status"], "cancelled");

    assert_eq!(stage.hand().await.take().await.job().id.to_string(), second);
}

#[tokio::test]
async fn a_conversation_that_is_archived_takes_no_more_and_repeats_what_it_took() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let path = format!("/api/sessions/{session}");
    let keyed = async |message: &str| {
        let body = json!({"message": message, "session_id": session}).to_string();
        let request = crate::stage::post("/api/chat").content_type("application/json").header("idempotency-key", "once");
        stage.ask(request.body(body)).await
    };
    let accepted = keyed("hi").await.json();
    let archive = async |archived: bool| stage.call(&stage.key, Method::PUT, &path, &json!({"archived": archived})).await.status;

    assert_eq!(archive(true).await, StatusCode::OK);
    let refused = chat(&stage, &session).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "session_archived"));
    assert_eq!(keyed("hi").await.json()["id"], accepted["id"]);
    assert_eq!(keyed("other").await.code(), "idempotency_key_reused");
    let upload = stage.call(&stage.key, Method::PUT, &format!("{path}/files/a"), &json!({})).await;
    assert_eq!((upload.status, upload.code().as_str()), (StatusCode::CONFLICT, "session_archived"));

    assert_eq!(archive(false).await, StatusCode::OK);
    assert_eq!(chat(&stage, &session).await.status, StatusCode::ACCEPTED);
    assert_eq!(stage.call(&stage.key, Method::DELETE, &path, &json!({})).await.status, StatusCode::NO_CONTENT);
    let refused = chat(&stage, &session).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "session_deleted"));
    assert_eq!(keyed("hi").await.json()["id"], accepted["id"]);
}

#[tokio::test]
async fn a_job_has_of_its_conversation_what_it_does_not_say_itself_and_no_other_tools() {
    let stage = Stage::new().await;
    let asked = json!({"model": "sonnet", "system_prompt": "Be a tree.", "tools": ["Read"], "metadata": {"a": "1", "b": "2"}});
    let session = stage.post("/api/sessions", &asked).await.json()["id"].clone();

    let silent = stage.post("/api/chat", &json!({"message": "a", "session_id": session, "metadata": {"b": "3"}})).await.json();
    let beyond = stage.post("/api/chat", &json!({"message": "b", "session_id": session, "tools": ["Read", "Bash"]})).await;

    assert_eq!((&silent["model"], &silent["metadata"]), (&json!("sonnet"), &json!({"a": "1", "b": "3"})));
    assert_eq!((beyond.status.as_u16(), beyond.json()["errors"][0]["pointer"].clone()), (422, json!("/tools/1")));
    let lease = stage.hand().await.take().await;
    assert_eq!(lease.job().spec.system_prompt.as_deref(), Some("Be a tree."));
    let known = lease.session().await.expect("an answer").expect("a conversation");
    assert_eq!(known.tools.as_deref(), Some(["Read".to_owned()].as_slice()));
}

#[tokio::test]
async fn the_same_message_in_another_conversation_is_another_request() {
    let stage = Stage::new().await;
    let keyed = async |session: &str| {
        let body = json!({"message": "hi", "session_id": session}).to_string();
        let request = crate::stage::post("/api/chat").content_type("application/json").header("idempotency-key", "once");
        stage.ask(request.body(body)).await
    };

    assert_eq!(keyed(&stage.session().await).await.status, StatusCode::ACCEPTED);
    assert_eq!(keyed(&stage.session().await).await.code(), "idempotency_key_reused");
}

#[tokio::test]
async fn what_a_turn_used_is_what_its_conversation_used() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    stage.submit_turn(&session, "one").await;
    let lease = stage.hand().await.take().await;
    let usage = Usage { input_tokens: 5, output_tokens: 7, cache_read_tokens: 11, cache_write_tokens: 13 };
    let report = Report { usage: Some(usage), cost: Some(NanoUsd(250_000_000)), ..Report::default() };

    lease.settle(Outcome::Completed(JobResult::default()), report, &CancellationToken::new()).await.expect("settled");

    let shown = stage.get(&format!("/api/sessions/{session}")).await.json();
    assert_eq!(shown["usage"], json!({"input_tokens": 5, "output_tokens": 7, "cache_read_tokens": 11, "cache_write_tokens": 13}));
    assert_eq!(shown["cost_usd"], json!(0.25));
    let groups = stage.get("/api/usage?group_by=session").await.json();
    assert_eq!((&groups["data"][0]["session_id"], &groups["data"][0]["cost_usd"]), (&json!(session), &json!(0.25)));
}
