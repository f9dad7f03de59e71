//! What operators do from the machine's own command line.

use std::fs;

use api::operator::{self, Task};
use clap::Parser;
use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::user::Role;

use crate::stage::{PASSWORD, Stage};

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

async fn perform(stage: &Stage, words: &[&str]) -> anyhow::Result<String> {
    let task = Line::try_parse_from([&["api"], words].concat())?.task;
    operator::perform(&stage.app.store, task).await
}

#[tokio::test]
async fn an_admin_is_made_with_a_password_from_a_file() {
    let stage = Stage::empty(&[]).await;
    let file = std::env::temp_dir().join(format!("api-password-{}", std::process::id()));
    fs::write(&file, format!("{PASSWORD}\nmore\n")).expect("written");
    let file = file.to_str().expect("UTF-8");

    let id = perform(&stage, &["admin", "create", "--email", "boss@example.com", "--name", "Boss", "--password-file", file]).await;
    fs::remove_file(file).expect("removed");

    let body = json!({"email": "boss@example.com", "password": PASSWORD});
    let login = stage.call("", Method::POST, "/api/auth/login", &body).await.json();
    assert_eq!(format!("{}\n", login["user"]["id"].as_str().expect("an id")), id.expect("made"));
    assert_eq!((&login["user"]["role"], &login["user"]["name"]), (&json!("admin"), &json!("Boss")));
}

#[tokio::test]
async fn a_key_is_made_alone_on_its_line_and_revoked_by_its_id() {
    let stage = Stage::new().await;
    stage.account("boss@example.com", Role::Admin).await;

    let line = perform(&stage, &["key", "create", "--email", "BOSS@example.com", "--name", "ci", "--scope", "read,admin"]).await;

    let line = line.expect("made");
    let key = line.strip_suffix('\n').expect("a line");
    assert_eq!(stage.call(key, Method::GET, "/api/jobs", &Value::Null).await.status, StatusCode::OK);
    assert_eq!(stage.call(key, Method::POST, "/api/chat", &json!({"message": "hi"})).await.code(), "insufficient_scope");
    let keys = stage.app.users.find_by_email(&"boss@example.com".parse().expect("an address")).await.expect("an answer").expect("there");
    let id = stage.app.api_keys.list(keys.id, None, 1).await.expect("keys")[0].id.to_string();
    assert_eq!(perform(&stage, &["key", "revoke", &id]).await.expect("revoked"), "");
    assert_eq!(stage.call(key, Method::GET, "/api/jobs", &Value::Null).await.code(), "invalid_credentials");
}

#[tokio::test]
async fn what_an_operator_gets_wrong_is_said() {
    let stage = Stage::new().await;

    for (words, said) in [
        (vec!["key", "create", "--email", "nobody@example.com", "--name", "k"], "no account"),
        (vec!["key", "create", "--email", "user@example.com", "--name", "k", "--scope", "admin"], "for keys of admins"),
        (vec!["key", "create", "--email", "user@example.com", "--name", "k", "--scope", "root"], "not one of"),
        (vec!["key", "create", "--email", "user@example.com", "--name", "k", "--expires-at", "2020-01-01T00:00:00Z"], "not in the future"),
        (vec!["key", "revoke", "key_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"], "no key"),
        (vec!["admin", "create", "--email", "user"], "email"),
        (vec!["admin", "create", "--email", "a@example.com", "--password-file", "/dev/null"], "12 to 256"),
    ] {
        let error = perform(&stage, &words).await.expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
}
