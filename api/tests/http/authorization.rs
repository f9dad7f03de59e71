//! Every operation, asked for by every kind of caller, against the table in `authorization.txt`.

use std::collections::{BTreeMap, BTreeSet};

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    api_keys::NewApiKey,
    audit::By,
    id::UserId,
    time::Timestamp,
    user::{Role, User},
    users::UserChange,
};

use crate::{
    contract::operations,
    stage::{Stage, new_key, request},
};

/// What the table says: for each operation, for each caller, a status or `ok`.
fn table() -> (Vec<&'static str>, BTreeMap<&'static str, Vec<&'static str>>) {
    let mut lines = include_str!("authorization.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let callers: Vec<_> = lines.next().expect("a head").split_whitespace().skip(1).collect();
    let mut rows = BTreeMap::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let operation = words.next().expect("an operation");
        let expected: Vec<_> = words.collect();
        assert_eq!(expected.len(), callers.len(), "{line}");
        assert!(rows.insert(operation, expected).is_none(), "{operation} twice");
    }
    (callers, rows)
}

/// Everybody who asks.
struct Cast {
    stage: Stage,
    other: User,
    disabled: User,
    disabled_token: String,
    admin: User,
    keys: BTreeMap<&'static str, String>,
}

impl Cast {
    async fn new() -> Self {
        let stage = Stage::new().await;
        let [other, disabled] = [stage.account("other@example.com", Role::User).await, stage.account("gone@example.com", Role::User).await];
        let admin = stage.account("admin@example.com", Role::Admin).await;
        let disabled_token = stage.token_of(&disabled).await;
        let change = UserChange { disabled: Some(true), ..UserChange::default() };
        stage.app.users.update(disabled.id, change, &By::default()).await.expect("disabled");
        let past = NewApiKey { expires_at: Some(Timestamp::from_unix_ms(1)), ..new_key(&stage.user, &[Scope::Chat, Scope::Read]) };
        let (_, expired) = stage.app.api_keys.create(past, &By::default()).await.expect("a key");
        let keys = BTreeMap::from([
            ("chat-key", stage.key_of(&stage.user, &[Scope::Chat]).await),
            ("read-key", stage.key_of(&stage.user, &[Scope::Read]).await),
            ("expired", expired.expose().to_owned()),
            ("admin-key", stage.key_of(&admin, &[Scope::Admin]).await),
            ("plain-key", stage.key_of(&admin, &[Scope::Chat, Scope::Read]).await),
        ]);
        Self { stage, other, disabled, disabled_token, admin, keys }
    }

    /// What `caller` shows: of those who log in a login of its own for each call, since some calls end it.
    async fn credential(&self, caller: &str) -> String {
        match caller {
            "anonymous" => String::new(),
            "user" => self.stage.token_of(&self.stage.user).await,
            "other" => self.stage.token_of(&self.other).await,
            "disabled" => self.disabled_token.clone(),
            "admin" => self.stage.token_of(&self.admin).await,
            key => self.keys.get(key).unwrap_or_else(|| panic!("no such caller: {key}")).clone(),
        }
    }

    /// A path of the contract with something of the user's in it, made for this call.
    async fn path(&self, path: &str) -> String {
        let Some((before, _)) = path.split_once("{id}") else { return path.to_owned() };
        let id = match before {
            "/api/sessions/" | "/api/admin/sessions/" => {
                let session = self.stage.session().await;
                // Something to read, to replace and to take away.
                let file = format!("/api/sessions/{session}/files/a");
                assert!(self.stage.call(&self.stage.key, Method::PUT, &file, &json!({})).await.status.is_success());
                session
            }
            "/api/jobs/" | "/api/admin/jobs/" | "/api/admin/dead-letters/" => self.stage.submit("hi").await,
            "/api/auth/api-keys/" | "/api/admin/api-keys/" => {
                let new = new_key(&self.stage.user, &[Scope::Read]);
                self.stage.app.api_keys.create(new, &By::default()).await.expect("a key").0.id.to_string()
            }
            "/api/admin/users/" => self.stage.account(&format!("{}@example.com", UserId::new()), Role::User).await.id.to_string(),
            "/api/admin/workers/" => self.stage.hand().await.id().to_string(),
            other => panic!("say what stands for the id in `{other}…`"),
        };
        path.replace("{id}", &id).replace("{path}", "a")
    }
}

#[tokio::test]
async fn nobody_may_do_more_or_less_than_the_table_says() {
    let cast = Cast::new().await;
    let (callers, mut rows) = table();
    let mut wrong = BTreeSet::new();

    for (path, method, operation) in operations() {
        let name = operation["operationId"].as_str().expect("a name");
        let expected = rows.remove(name).unwrap_or_else(|| panic!("`{name}` is not in authorization.txt"));
        let method: Method = method.to_uppercase().parse().expect("a method");
        let body = if name == "create_chat" { json!({"message": "hi"}) } else { json!({}) };
        for (caller, expected) in callers.iter().zip(expected) {
            let status = ask(&cast, caller, &method, &path, &body).await;
            let is_right = match expected {
                "ok" => !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && !status.is_server_error(),
                expected => status.as_str() == expected,
            };
            if !is_right {
                wrong.insert(format!("{name} as {caller}: {status} where {expected} should be"));
            }
        }
    }

    assert_eq!(wrong, BTreeSet::new());
    assert_eq!(rows.keys().collect::<Vec<_>>(), Vec::<&&str>::new(), "the contract has none of these");
    assert!(cast.stage.app.users.find(cast.disabled.id).await.expect("an answer").is_some_and(|user| user.disabled));
}

/// The status alone: some of the answers are streams.
async fn ask(cast: &Cast, caller: &str, method: &Method, path: &str, body: &Value) -> StatusCode {
    let (credential, path) = (cast.credential(caller).await, cast.path(path).await);
    cast.stage.send(request(&credential, method.clone(), &path, body)).await.status()
}
