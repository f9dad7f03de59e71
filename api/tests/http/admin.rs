//! What admins see and do.

use std::time::Duration;

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{
    id::WorkerId,
    job::{JobError, JobResult, NanoUsd},
    lease::{Outcome, Report},
    user::Role,
    workers::{Membership, NewWorker},
};

use tokio_util::sync::CancellationToken;

use crate::stage::{Answer, Events, PASSWORD, Stage, complete, request, settle, with};

/// A stage with an admin, and the admin's token.
async fn stage() -> (Stage, String) {
    let stage = Stage::new().await;
    let admin = stage.account("admin@example.com", Role::Admin).await;
    let token = stage.token_of(&admin).await;
    (stage, token)
}

async fn read(stage: &Stage, token: &str, path: &str) -> Value {
    let answer = stage.call(token, Method::GET, path, &Value::Null).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {:?}", answer.body);
    answer.json()
}

async fn login(stage: &Stage, email: &str, password: &str) -> Answer {
    stage.call("", Method::POST, "/api/auth/login", &json!({"email": email, "password": password})).await
}

fn ids(page: &Value) -> Vec<&str> {
    page["data"].as_array().expect("a page").iter().map(|one| one["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn an_account_is_made_found_changed_and_deleted() {
    let (stage, admin) = stage().await;
    let body = json!({"email": "New@Example.com", "password": PASSWORD, "name": "N", "max_concurrent_jobs": 3, "daily_budget_usd": 2.5});

    let made = stage.call(&admin, Method::POST, "/api/admin/users", &body).await;

    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let user = made.json();
    let path = format!("/api/admin/users/{}", user["id"].as_str().expect("an id"));
    assert_eq!(made.header("location"), Some(path.as_str()));
    assert_eq!((&user["role"], &user["max_concurrent_jobs"], &user["daily_budget_usd"]), (&json!("user"), &json!(3), &json!(2.5)));
    assert_eq!((&user["api_keys"], &user["running_jobs"], &user["spent_today_usd"]), (&json!(0), &json!(0), &json!(0.0)));
    assert_eq!(user.get("password"), None);
    assert_eq!(stage.call(&admin, Method::POST, "/api/admin/users", &body).await.code(), "email_taken");
    assert_eq!(ids(&read(&stage, &admin, "/api/admin/users?query=new%40exam").await), [user["id"].as_str().expect("an id")]);
    assert_eq!(login(&stage, "new@example.com", PASSWORD).await.status, StatusCode::OK);

    let change = json!({"daily_budget_usd": null, "name": null, "rate_limit_per_hour": 9, "role": "admin"});
    let changed = stage.call(&admin, Method::PATCH, &path, &change).await.json();
    assert_eq!((&changed["daily_budget_usd"], &changed["name"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&changed["rate_limit_per_hour"], &changed["role"], &changed["max_concurrent_jobs"]),
        (&json!(9), &json!("admin"), &json!(3))
    );

    let other = "another battery staple";
    stage.call(&admin, Method::PATCH, &path, &json!({"password": other})).await;
    assert_eq!(login(&stage, "new@example.com", PASSWORD).await.code(), "invalid_login");
    assert_eq!(login(&stage, "new@example.com", other).await.status, StatusCode::OK);

    assert_eq!(stage.call(&admin, Method::DELETE, &path, &Value::Null).await.status, StatusCode::NO_CONTENT);
    for (method, body) in [(Method::GET, Value::Null), (Method::DELETE, Value::Null), (Method::PATCH, json!({"disabled": true}))] {
        assert_eq!(stage.call(&admin, method, &path, &body).await.code(), "not_found");
    }
    assert_eq!(login(&stage, "new@example.com", other).await.code(), "invalid_login");
}

#[tokio::test]
async fn accounts_are_walked_newest_first_with_what_they_have() {
    let (stage, admin) = stage().await;
    stage.submit("hi").await;
    let mut hand = stage.hand().await;
    let lease = hand.take().await;

    let first = read(&stage, &admin, "/api/admin/users?limit=1").await;
    let second = read(&stage, &admin, &format!("/api/admin/users?limit=1&cursor={}", first["next_cursor"].as_str().expect("more"))).await;

    assert_eq!((&first["data"][0]["role"], &second["data"][0]["id"]), (&json!("admin"), &json!(stage.user.id)));
    assert_eq!((&second["data"][0]["api_keys"], &second["data"][0]["running_jobs"]), (&json!(1), &json!(1)));
    complete(lease, "done").await;
    assert_eq!(second["next_cursor"], Value::Null);
}

#[tokio::test]
async fn the_last_admin_can_neither_leave_nor_be_made_less() {
    let (stage, admin) = stage().await;
    let list = read(&stage, &admin, "/api/admin/users?query=admin%40").await;
    let path = format!("/api/admin/users/{}", ids(&list)[0]);

    for change in [json!({"role": "user"}), json!({"disabled": true})] {
        let refused = stage.call(&admin, Method::PATCH, &path, &change).await;
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "last_admin"));
    }
    assert_eq!(stage.call(&admin, Method::DELETE, &path, &Value::Null).await.code(), "last_admin");

    stage.account("second@example.com", Role::Admin).await;
    assert_eq!(stage.call(&admin, Method::PATCH, &path, &json!({"role": "user"})).await.status, StatusCode::OK);
    assert_eq!(stage.call(&admin, Method::GET, "/api/admin/users", &Value::Null).await.code(), "admin_required");
}

#[tokio::test]
async fn a_key_is_made_for_somebody_shown_once_and_revoked() {
    let (stage, admin) = stage().await;
    let path = format!("/api/admin/users/{}/api-keys", stage.user.id);

    let made = stage.call(&admin, Method::POST, &path, &json!({"name": "robot", "scopes": ["read"]})).await;

    assert_eq!((made.status, made.header("cache-control")), (StatusCode::CREATED, Some("no-store")));
    let (key, id) = (made.json()["key"].as_str().expect("a key").to_owned(), made.json()["api_key"]["id"].clone());
    assert_eq!(stage.call(&key, Method::GET, "/api/jobs", &Value::Null).await.status, StatusCode::OK);
    let list = stage.call(&admin, Method::GET, &path, &Value::Null).await;
    assert_eq!(json!(ids(&list.json())[0]), id);
    assert!(!String::from_utf8_lossy(&list.body).contains(&key[13..]));
    let refused = stage.call(&admin, Method::POST, &path, &json!({"name": "root", "scopes": ["admin"]})).await;
    assert_eq!((refused.status, &refused.json()["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("/scopes/0")));

    let path = format!("/api/admin/api-keys/{}", id.as_str().expect("an id"));
    for _ in 0..2 {
        assert_eq!(stage.call(&admin, Method::DELETE, &path, &Value::Null).await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(stage.call(&key, Method::GET, "/api/jobs", &Value::Null).await.code(), "invalid_credentials");
    let missing = "/api/admin/api-keys/key_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b";
    assert_eq!(stage.call(&admin, Method::DELETE, missing, &Value::Null).await.code(), "not_found");
}

#[tokio::test]
async fn everybodys_jobs_are_seen_without_what_they_ask_and_ended() {
    let (stage, admin) = stage().await;
    let (first, second) = (stage.submit("a secret question").await, stage.submit("another").await);
    let own = stage.call(&admin, Method::POST, "/api/chat", &json!({"message": "mine"})).await.json();

    let all = stage.call(&admin, Method::GET, "/api/admin/jobs", &Value::Null).await;
    assert_eq!(ids(&all.json()), [own["id"].as_str().expect("an id"), &second, &first]);
    assert!(!String::from_utf8_lossy(&all.body).contains("secret question"));
    let of_user = read(&stage, &admin, &format!("/api/admin/jobs?user_id={}&limit=1", stage.user.id)).await;
    assert_eq!((ids(&of_user), &of_user["data"][0]["user_id"]), (vec![second.as_str()], &json!(stage.user.id)));
    assert_eq!(of_user["next_cursor"], json!(second));

    let path = format!("/api/admin/jobs/{first}");
    assert_eq!(read(&stage, &admin, &path).await["queue"]["position"], 0);
    for _ in 0..2 {
        let ended = stage.call(&admin, Method::POST, &format!("{path}/cancel"), &Value::Null).await;
        assert_eq!((ended.status, ended.json()["status"].as_str()), (StatusCode::ACCEPTED, Some("cancelled")));
    }
    assert_eq!(stage.get(&format!("/api/jobs/{first}")).await.json()["status"], "cancelled");
    assert_eq!(ids(&read(&stage, &admin, "/api/admin/jobs?status=cancelled").await), [first.as_str()]);
    let noted = read(&stage, &admin, "/api/admin/audit-log?action=job.cancel").await;
    assert_eq!((noted["data"].as_array().map(Vec::len), &noted["data"][0]["target"]), (Some(1), &json!(first)));
}

#[tokio::test]
async fn anybodys_job_is_followed_by_an_admin() {
    let (stage, admin) = stage().await;
    let job = stage.submit("hi").await;
    complete(stage.hand().await.take().await, "hello").await;
    let path = format!("/api/admin/jobs/{job}/events");

    let events = Events::of(stage.send(request(&admin, Method::GET, &path, &Value::Null)).await).rest().await;
    assert_eq!(events, stage.follow(&job, None).await.rest().await);
    let listing = with(request(&admin, Method::GET, &path, &Value::Null), "accept", "application/json");
    let listed = Answer::of(stage.send(listing).await).await.json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(events.len()));
    let after = listed["data"].as_array().and_then(|events| events.last()).expect("an event")["id"].clone();
    let rest = stage.call(&admin, Method::GET, &format!("{path}?after={}", after.as_str().expect("an id")), &Value::Null).await;
    assert_eq!(rest.status, StatusCode::NO_CONTENT);

    // What is an admin's is so under `/api/admin` alone.
    let own = stage.call(&admin, Method::GET, &format!("/api/jobs/{job}/events"), &Value::Null).await;
    assert_eq!(own.code(), "not_found");
}

#[tokio::test]
async fn everybodys_conversations_are_seen_read_and_deleted() {
    let (stage, admin) = stage().await;
    let (session, other) = (stage.session().await, stage.session().await);
    stage.submit_turn(&session, "what is a lease?").await;
    complete(stage.hand().await.take().await, "a right that ends").await;
    let own = stage.call(&admin, Method::POST, "/api/sessions", &json!({"title": "mine"})).await.json();
    let own = own["id"].as_str().expect("an id");

    let all = read(&stage, &admin, "/api/admin/sessions").await;
    assert_eq!(ids(&all), [own, &other, &session]);
    let first = read(&stage, &admin, &format!("/api/admin/sessions?user_id={}&limit=1", stage.user.id)).await;
    assert_eq!((ids(&first), &first["data"][0]["user_id"]), (vec![other.as_str()], &json!(stage.user.id)));
    let second = read(&stage, &admin, &format!("/api/admin/sessions?user_id={}&limit=1&cursor={other}", stage.user.id)).await;
    assert_eq!((ids(&second), &second["data"][0]["turns"], &second["next_cursor"]), (vec![session.as_str()], &json!(1), &Value::Null));
    let jobs = read(&stage, &admin, &format!("/api/admin/jobs?session_id={session}")).await;
    assert_eq!((ids(&jobs).len(), &jobs["data"][0]["session_id"]), (1, &json!(session)));

    let path = format!("/api/admin/sessions/{session}");
    assert_eq!(read(&stage, &admin, &path).await, second["data"][0]);
    let messages = read(&stage, &admin, &format!("{path}/messages")).await;
    let said: Vec<_> = messages["data"].as_array().expect("messages").iter().map(|message| message["content"].clone()).collect();
    assert_eq!(said, [json!("a right that ends"), json!("what is a lease?")]);
    read(&stage, &admin, &format!("/api/admin/sessions/{own}/messages")).await;
    let noted = read(&stage, &admin, "/api/admin/audit-log?action=session.read").await;
    assert_eq!((noted["data"].as_array().map(Vec::len), &noted["data"][0]["target"]), (Some(1), &json!(session)));
    // Whoever begins with a later page has read it as well.
    read(&stage, &admin, &format!("{path}/messages?cursor={}", messages["data"][0]["job_id"].as_str().expect("a job"))).await;
    let noted = read(&stage, &admin, "/api/admin/audit-log?action=session.read").await;
    assert_eq!(noted["data"].as_array().map(Vec::len), Some(2));

    assert_eq!(stage.call(&admin, Method::DELETE, &path, &Value::Null).await.status, StatusCode::NO_CONTENT);
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(stage.call(&admin, method, &path, &Value::Null).await.code(), "not_found");
    }
    assert_eq!(stage.get(&format!("/api/sessions/{session}")).await.code(), "not_found");
    let noted = read(&stage, &admin, "/api/admin/audit-log?action=session.delete").await;
    assert_eq!(noted["data"][0]["detail"], json!({"user_id": stage.user.id}));
}

#[tokio::test]
async fn everybodys_usage_is_added_up() {
    let (stage, admin) = stage().await;
    stage.submit("hi").await;
    stage.call(&admin, Method::POST, "/api/chat", &json!({"message": "mine"})).await;
    let mut hand = stage.hand().await;
    for cost in [2_000_000, 1_000_000] {
        let report = Report { cost: Some(NanoUsd(cost)), ..Report::default() };
        let outcome = Outcome::Completed(JobResult::default());
        hand.take().await.settle(outcome, report, &CancellationToken::new()).await.expect("settled");
    }

    let by_user = read(&stage, &admin, "/api/admin/usage?group_by=user").await;

    let rows: Vec<_> = by_user["data"].as_array().expect("rows").iter().map(|row| (&row["user_id"], &row["cost_usd"])).collect();
    let admin_id = read(&stage, &admin, "/api/auth/profile").await["id"].clone();
    assert_eq!(rows, [(&json!(stage.user.id), &json!(0.002)), (&admin_id, &json!(0.001))]);
    assert_eq!((&by_user["total"]["jobs"], &by_user["total"]["cost_usd"]), (&json!(2), &json!(0.003)));
    let of_user = read(&stage, &admin, &format!("/api/admin/usage?user_id={}", stage.user.id)).await;
    assert_eq!((&of_user["total"]["jobs"], of_user["data"].as_array().map(Vec::len)), (&json!(1), Some(1)));
    let own = stage.get("/api/usage?group_by=user").await.json();
    assert_eq!((own["data"].as_array().map(Vec::len), &own["data"][0]["user_id"]), (Some(1), &json!(stage.user.id)));
}

#[tokio::test]
async fn a_dead_letter_is_tried_again_as_one_new_job() {
    let (stage, admin) = stage().await;
    let (dead, alive) = (stage.submit("hi").await, stage.submit("later").await);
    let mut hand = stage.hand().await;
    while stage.get(&format!("/api/jobs/{dead}")).await.json()["status"] != "failed" {
        let lease = hand.take().await;
        if lease.job().id.to_string() == alive {
            complete(lease, "fine").await;
            continue;
        }
        let error = JobError::new("upstream_overloaded", "too much", true);
        settle(lease, Outcome::Retry { error, delay: Duration::ZERO }).await;
    }
    let letters = read(&stage, &admin, "/api/admin/dead-letters").await;
    assert_eq!((ids(&letters), &letters["data"][0]["dead_letter"]), (vec![dead.as_str()], &json!(true)));

    let path = |job: &str| format!("/api/admin/dead-letters/{job}/retry");
    let again = path(&dead);
    let retry = || stage.call(&admin, Method::POST, &again, &Value::Null);
    let (one, other) = tokio::join!(retry(), retry());

    let retry = one.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!((one.status, other.status, &other.json()["id"]), (StatusCode::ACCEPTED, StatusCode::ACCEPTED, &json!(retry)));
    assert_eq!(one.header("location"), Some(format!("/api/admin/jobs/{retry}").as_str()));
    assert_eq!((&one.json()["retry_of"], &one.json()["user_id"]), (&json!(dead), &json!(stage.user.id)));
    let (old, new) = (stage.get(&format!("/api/jobs/{dead}")).await.json(), stage.get(&format!("/api/jobs/{retry}")).await.json());
    assert_eq!((&old["retried_as"], old.get("retry_of")), (&json!(retry), None));
    assert_eq!((&new["retry_of"], new.get("retried_as")), (&json!(dead), None));

    let refused = stage.call(&admin, Method::POST, &path(&alive), &Value::Null).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "not_a_dead_letter"));
    assert_eq!(stage.call(&admin, Method::POST, &path("job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"), &Value::Null).await.code(), "not_found");
    complete(hand.take().await, "at last").await;
    assert_eq!(stage.get(&format!("/api/jobs/{retry}")).await.json()["result"]["text"], "at last");
}

#[tokio::test]
async fn a_worker_is_shown_and_drained_unless_it_is_dead() {
    let (stage, admin) = stage().await;
    let worker = NewWorker { name: "w1".into(), host: "h1".into(), slots: 4, mcp_servers: Vec::new(), lock_file: None };
    let living = Membership::join(&stage.app.store, WorkerId::new(), &worker).await.expect("joined");
    let path = format!("/api/admin/workers/{}/drain", living.id());

    let page = read(&stage, &admin, "/api/admin/workers").await;
    let shown = &page["data"][0];
    assert_eq!((&shown["name"], &shown["host"], &shown["slots"], &shown["running"]), (&json!("w1"), &json!("h1"), &json!(4), &json!(0)));
    assert_eq!((&shown["state"], &shown["cli_processes"], &page["next_cursor"]), (&json!("active"), &Value::Null, &Value::Null));
    living.books().tell(2).await;
    assert_eq!(read(&stage, &admin, "/api/admin/workers").await["data"][0]["cli_processes"], 2);
    for _ in 0..2 {
        let asked = stage.call(&admin, Method::POST, &path, &Value::Null).await;
        assert_eq!((asked.status, asked.json()["state"].as_str()), (StatusCode::ACCEPTED, Some("draining")));
    }

    assert!(living.leave().await.expect("an answer"));
    let refused = stage.call(&admin, Method::POST, &path, &Value::Null).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "worker_dead"));
    let dead = read(&stage, &admin, "/api/admin/workers").await["data"][0].clone();
    assert_eq!((&dead["state"], &dead["cli_processes"]), (&json!("dead"), &Value::Null));
    let missing = "/api/admin/workers/worker_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b/drain";
    assert_eq!(stage.call(&admin, Method::POST, missing, &Value::Null).await.code(), "not_found");
}

#[tokio::test]
async fn figures_are_shown_for_each_window() {
    let (stage, admin) = stage().await;
    let done = stage.submit("hi").await;
    complete(stage.hand().await.take().await, "hello").await;
    stage.submit("later").await;

    for (query, window, bucket_secs, buckets) in
        [("", "24h", 1_800, 48), ("?window=1h", "1h", 60, 60), ("?window=7d", "7d", 10_800, 56), ("?window=30d", "30d", 43_200, 60)]
    {
        let stats = read(&stage, &admin, &format!("/api/admin/stats{query}")).await;

        assert_eq!((&stats["window"], &stats["bucket_secs"]), (&json!(window), &json!(bucket_secs)));
        let series = stats["series"].as_array().expect("a series");
        assert_eq!((series.len(), &series[0]["at"]), (buckets, &stats["from"]));
        let (accepted, completed) = (&stats["totals"]["accepted"], &stats["totals"]["completed"]);
        assert_eq!((accepted, completed, &stats["totals"]["failed"]), (&json!(2), &json!(1), &json!(0)), "{done}");
        assert_eq!(stats["now"]["jobs"], json!({"queued": 1, "running": 0, "completed": 1, "failed": 0, "cancelled": 0}));
        assert_eq!((&stats["now"]["queue"]["depth"], &stats["now"]["users"]), (&json!(1), &json!(2)));
    }
    let refused = stage.call(&admin, Method::GET, "/api/admin/stats?window=2h", &Value::Null).await;
    assert_eq!((refused.status, &refused.json()["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("?window")));
}

#[tokio::test]
async fn what_admins_do_is_in_the_audit_log_with_who_and_from_where() {
    let (stage, admin) = stage().await;
    let user = format!("/api/admin/users/{}", stage.user.id);
    stage.call(&admin, Method::PATCH, &user, &json!({"disabled": true, "rate_limit_per_hour": 5})).await;
    stage.call(&admin, Method::PATCH, &user, &json!({"password": "another battery staple"})).await;
    let actor = read(&stage, &admin, "/api/auth/profile").await["id"].clone();

    let path = format!("/api/admin/audit-log?actor={}&limit=1", actor.as_str().expect("an id"));
    let first = read(&stage, &admin, &path).await;
    let second = read(&stage, &admin, &format!("{path}&cursor={}", first["next_cursor"].as_str().expect("more"))).await;

    assert_eq!(first["data"][0]["action"], "password.change");
    let entry = &second["data"][0];
    assert_eq!((&entry["action"], &entry["actor_id"], &entry["target"]), (&json!("user.update"), &actor, &json!(stage.user.id)));
    assert_eq!((&entry["address"], &entry["api_key_id"]), (&json!("127.0.0.1"), &Value::Null));
    assert_eq!(entry["detail"], json!({"changed": ["disabled", "rate_limit_per_hour"]}));
    let whole = stage.call(&admin, Method::GET, "/api/admin/audit-log?limit=100", &Value::Null).await;
    assert!(!String::from_utf8_lossy(&whole.body).contains("battery staple"));
    assert_eq!(read(&stage, &admin, "/api/admin/audit-log?action=no.such").await["data"], json!([]));
}
