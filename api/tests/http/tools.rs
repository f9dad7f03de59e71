//! Tools: which there are, which a caller's jobs may use, and the switches of admins.

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    api_keys::NewApiKey,
    audit::{AuditFilter, By},
    id::WorkerId,
    tool::{AnnouncedTool, Category},
    user::Role,
    workers::{Membership, NewWorker},
};

use crate::stage::{Stage, new_key};

/// A worker comes whose CLI has these tools.
async fn announce(stage: &Stage, version: &str, tools: &[(&str, Category)]) {
    let worker = NewWorker { name: "w".into(), host: "h".into(), slots: 1, mcp_servers: Vec::new(), lock_file: None };
    let worker = Membership::join(&stage.app.store, WorkerId::new(), &worker).await.expect("joined");
    let announced = |(name, category): &(&str, Category)| AnnouncedTool {
        name: (*name).to_owned(),
        description: Some(format!("does {name}")),
        category: *category,
    };
    let tools: Vec<_> = tools.iter().map(announced).collect();
    stage.app.tools.announce(worker.id(), version, &tools).await.expect("announced");
}

/// A key of the stage's user whose jobs may use `tools` alone.
async fn narrow_key(stage: &Stage, tools: &[&str]) -> String {
    let allowed_tools = Some(tools.iter().map(|tool| (*tool).to_owned()).collect());
    let new = NewApiKey { allowed_tools, ..new_key(&stage.user, &[Scope::Chat, Scope::Read]) };
    stage.app.api_keys.create(new, &By::default()).await.expect("a key").1.expose().to_owned()
}

const NONE: Value = Value::Null;

#[tokio::test]
async fn the_list_tells_what_is_on_and_what_the_key_allows() {
    let stage = Stage::new().await;
    assert_eq!(stage.get("/api/tools").await.json(), json!({"data": []}));
    announce(&stage, "1.0.0", &[("Read", Category::Files), ("Bash", Category::Shell), ("Grep", Category::Search)]).await;
    stage.app.tools.switch("Grep", false, &By::default()).await.expect("switched");

    let answer = stage.call(&narrow_key(&stage, &["Read", "Grep"]).await, Method::GET, "/api/tools", &NONE).await;

    assert_eq!(answer.status, StatusCode::OK);
    let tool = |name: &str, category: &str, enabled: bool, allowed: bool| json!({"name": name, "description": format!("does {name}"), "category": category, "enabled": enabled, "allowed": allowed});
    let expected = [tool("Bash", "shell", true, false), tool("Grep", "search", false, false), tool("Read", "files", true, true)];
    assert_eq!(answer.json(), json!({"data": expected}));
    let everything = stage.get("/api/tools").await.json();
    assert_eq!(everything["data"][0], tool("Bash", "shell", true, true));
}

#[tokio::test]
async fn a_job_that_names_what_it_may_not_use_is_refused_and_told_what() {
    let stage = Stage::new().await;
    let key = narrow_key(&stage, &["Read", "Grep"]).await;
    let send =
        async |key: &str, tools: &[&str]| stage.call(key, Method::POST, "/api/chat", &json!({"message": "hi", "tools": tools})).await;

    assert_eq!(send(&stage.key, &["Anything"]).await.status, StatusCode::ACCEPTED, "no worker has told yet what there is");
    assert_eq!(send(&key, &["Anything"]).await.status, StatusCode::UNPROCESSABLE_ENTITY, "but the key has");

    announce(&stage, "1.0.0", &[("Read", Category::Files), ("Bash", Category::Shell), ("Grep", Category::Search)]).await;
    stage.app.tools.switch("Grep", false, &By::default()).await.expect("switched");

    let refused = send(&key, &["Read", "Anything", "Grep", "Bash"]).await;
    assert_eq!(refused.code(), "invalid_request");
    let errors = refused.json()["errors"].clone();
    let pointers: Vec<_> = errors.as_array().expect("errors").iter().map(|error| error["pointer"].clone()).collect();
    assert_eq!(pointers, [json!("/tools/1"), json!("/tools/2"), json!("/tools/3")], "{errors}");
    assert_eq!(send(&key, &["Read"]).await.status, StatusCode::ACCEPTED);
    assert_eq!(send(&key, &[]).await.status, StatusCode::ACCEPTED);
    assert_eq!(send(&stage.key, &["Read", "Bash"]).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn what_the_key_allows_goes_with_the_job_and_is_no_part_of_what_was_asked() {
    let stage = Stage::new().await;
    let mut hand = stage.hand().await;
    let narrow = narrow_key(&stage, &["Read"]).await;
    let send = async |key: &str| {
        let request = crate::stage::request(key, Method::POST, "/api/chat", &json!({"message": "hi"}));
        crate::stage::Answer::of(stage.send(crate::stage::with(request, "idempotency-key", "k")).await).await
    };

    let first = send(&narrow).await;
    let again = send(&stage.key).await;

    assert_eq!((again.status, &again.json()["id"]), (StatusCode::ACCEPTED, &first.json()["id"]));
    let lease = hand.take().await;
    assert_eq!(lease.job().spec.allowed_tools.as_deref(), Some(&["Read".to_owned()][..]));
    let named = stage.call(&stage.key, Method::POST, "/api/chat", &json!({"message": "hi", "allowed_tools": ["Bash"]})).await;
    assert_eq!(named.status, StatusCode::UNPROCESSABLE_ENTITY, "a client cannot say it");
}

#[tokio::test]
async fn an_admin_switches_a_tool_for_every_server_at_once() {
    let stage = Stage::new().await;
    let admin = stage.account("admin@example.com", Role::Admin).await;
    let token = stage.token_of(&admin).await;
    announce(&stage, "1.0.0", &[("Read", Category::Files), ("Bash", Category::Shell)]).await;
    let elsewhere = stage.elsewhere(&[]).await;

    let switched = stage.call(&token, Method::PUT, "/api/admin/tools/Bash", &json!({"enabled": false})).await;

    assert_eq!(switched.status, StatusCode::OK, "{:?}", switched.body);
    assert_eq!((&switched.json()["enabled"], &switched.json()["cli_versions"]), (&json!(false), &json!(["1.0.0"])));
    let refused = elsewhere.call(&stage.key, Method::POST, "/api/chat", &json!({"message": "hi", "tools": ["Bash"]})).await;
    assert_eq!(refused.json()["errors"][0]["pointer"], "/tools/0");
    let list = elsewhere.call(&token, Method::GET, "/api/admin/tools", &NONE).await.json();
    assert_eq!((&list["data"][0]["name"], &list["data"][0]["enabled"]), (&json!("Bash"), &json!(false)));
    let one = elsewhere.call(&token, Method::GET, "/api/admin/tools/Bash", &NONE).await.json();
    assert_eq!(one, list["data"][0]);

    let filter = AuditFilter { actor: Some(admin.id), action: Some("tool.switch".into()), before: None, limit: 10 };
    let audited = stage.app.audit.list(filter).await.expect("the log");
    let [entry] = audited.as_slice() else { panic!("{audited:?}") };
    assert_eq!((entry.action.as_str(), entry.target.as_deref()), ("tool.switch", Some("Bash")));
    assert_eq!(entry.detail, Some(json!({"enabled": false})));
}

#[tokio::test]
async fn only_a_tool_that_was_ever_seen_has_a_switch() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.account("admin@example.com", Role::Admin).await).await;
    announce(&stage, "1.0.0", &[("Read", Category::Files)]).await;

    for name in ["Teleport", "%00", "CronCreate", "Bash%20(git%20*)"] {
        let path = format!("/api/admin/tools/{name}");
        let answers =
            [stage.call(&token, Method::GET, &path, &NONE).await, stage.call(&token, Method::PUT, &path, &json!({"enabled": true})).await];
        for answer in answers {
            assert_eq!(answer.code(), "not_found", "{name}");
        }
    }
    let path = "/api/admin/tools/Read";
    for body in [json!({}), json!({"enabled": "no"}), json!({"enabled": true, "more": 1})] {
        assert_eq!(stage.call(&token, Method::PUT, path, &body).await.code(), "invalid_request", "{body}");
    }
    assert_eq!(stage.call(&stage.key, Method::PUT, path, &json!({"enabled": false})).await.code(), "admin_required");
    let chat_only = stage.key_of(&stage.user, &[Scope::Chat]).await;
    assert_eq!(stage.call(&chat_only, Method::GET, "/api/tools", &NONE).await.code(), "insufficient_scope");
}
