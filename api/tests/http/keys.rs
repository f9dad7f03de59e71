//! API keys: made, used, narrowed, revoked.

use std::time::{Duration, Instant};

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{api_key::Scope, api_keys::NewApiKey, audit::By, time::Timestamp, user::Role};

use crate::stage::{Answer, Stage, from, get, new_key, request, with};

const KEYS: &str = "/api/auth/api-keys";

#[tokio::test]
async fn a_key_is_shown_once_and_works_in_either_header() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.user).await;
    let body = json!({"name": "ci", "scopes": ["read"], "rate_limit_per_hour": 7, "allowed_tools": ["Read"], "allowed_ips": ["127.0.0.1", "10.1.2.3/8"]});

    let made = stage.call(&token, Method::POST, KEYS, &body).await;

    assert_eq!((made.status, made.header("cache-control")), (StatusCode::CREATED, Some("no-store")));
    let answer = made.json();
    let key = answer["key"].as_str().expect("a key");
    let shown = &answer["api_key"];
    assert_eq!((key.len(), shown["prefix"].as_str()), (56, Some(&key[..12])));
    assert_eq!((&shown["scopes"], &shown["rate_limit_per_hour"]), (&json!(["read"]), &json!(7)));
    assert_eq!(shown["allowed_ips"], json!(["127.0.0.1/32", "10.0.0.0/8"]));

    assert_eq!(Answer::of(stage.send(with(get("/api/jobs"), "x-api-key", key)).await).await.status, StatusCode::OK);
    assert_eq!(stage.call(key, Method::GET, "/api/jobs", &Value::Null).await.status, StatusCode::OK);
    let list = stage.call(&token, Method::GET, KEYS, &Value::Null).await;
    assert!(!String::from_utf8_lossy(&list.body).contains(&key[12..]));
    assert_eq!(list.json()["data"][0]["id"], shown["id"]);
}

#[tokio::test]
async fn a_key_for_nothing_in_particular_may_chat_and_read() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.user).await;

    let made = stage.call(&token, Method::POST, KEYS, &json!({"name": "k"})).await;

    assert_eq!(made.json()["api_key"]["scopes"], json!(["chat", "read"]));
}

#[tokio::test]
async fn the_scope_admin_is_for_keys_of_admins() {
    let stage = Stage::new().await;
    let admin = stage.account("admin@example.com", Role::Admin).await;
    let body = json!({"name": "k", "scopes": ["read", "admin"]});

    let refused = stage.call(&stage.token_of(&stage.user).await, Method::POST, KEYS, &body).await;
    assert_eq!((refused.status, &refused.json()["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("/scopes/1")));
    assert_eq!(stage.call(&stage.token_of(&admin).await, Method::POST, KEYS, &body).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn keys_are_listed_newest_first_in_pages() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.user).await;
    for name in ["one", "two", "three"] {
        stage.call(&token, Method::POST, KEYS, &json!({"name": name})).await;
    }
    let page = async |query: &str| stage.call(&token, Method::GET, &format!("{KEYS}?limit=2{query}"), &Value::Null).await.json();
    let names = |page: &Value| -> Vec<String> {
        page["data"].as_array().expect("keys").iter().map(|key| key["name"].as_str().expect("a name").to_owned()).collect()
    };

    let first = page("").await;
    let second = page(&format!("&cursor={}", first["next_cursor"].as_str().expect("more"))).await;

    assert_eq!((names(&first), names(&second)), (vec!["three".to_owned(), "two".into()], vec!["one".to_owned(), "key".into()]));
    assert_eq!(second["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_revoked_key_is_dead_on_every_server_within_a_second() {
    let stage = Stage::new().await;
    let other = stage.elsewhere(&[]).await;
    let (token, stranger) = (stage.token_of(&stage.user).await, stage.account("other@example.com", Role::User).await);
    let made = stage.call(&token, Method::POST, KEYS, &json!({"name": "k"})).await.json();
    let (key, id) = (made["key"].as_str().expect("a key"), made["api_key"]["id"].as_str().expect("an id"));
    let path = format!("{KEYS}/{id}");
    let there = async || other.call(key, Method::GET, "/api/jobs", &Value::Null).await;
    assert_eq!(there().await.status, StatusCode::OK);

    let theirs = stage.call(&stage.token_of(&stranger).await, Method::DELETE, &path, &Value::Null).await;
    assert_eq!((theirs.status, there().await.status), (StatusCode::NOT_FOUND, StatusCode::OK));
    let revoked = stage.call(&token, Method::DELETE, &path, &Value::Null).await;
    let begun = Instant::now();

    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    assert_eq!(stage.call(key, Method::GET, "/api/jobs", &Value::Null).await.code(), "invalid_credentials", "here at once");
    while there().await.status == StatusCode::OK {
        assert!(begun.elapsed() < Duration::from_secs(1), "alive after {:?}", begun.elapsed());
    }
    assert_eq!(there().await.code(), "invalid_credentials");
    assert_eq!(stage.call(&token, Method::DELETE, &path, &Value::Null).await.status, StatusCode::NO_CONTENT, "again");
    let list = stage.call(&token, Method::GET, KEYS, &Value::Null).await.json();
    assert!(list["data"][0]["revoked_at"].is_string());
    for nobody in ["key_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b", "key_x", "x"] {
        let answer = stage.call(&token, Method::DELETE, &format!("{KEYS}/{nobody}"), &Value::Null).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "not_found"), "{nobody}");
    }
}

#[tokio::test]
async fn a_key_with_one_character_changed_is_unknown_whichever_it_is() {
    let stage = Stage::new().await;
    let other = |c: &str| if c == "a" { "b" } else { "a" };
    let mut answers = Vec::new();

    for at in 0..stage.key.len() {
        let mut key = stage.key.clone();
        key.replace_range(at..=at, other(&stage.key[at..=at]));
        let answer = Answer::of(stage.send(with(get("/api/jobs"), "x-api-key", &key)).await).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_credentials"), "at {at}");
        let mut body = answer.json();
        body["request_id"].take();
        answers.push(body);
    }

    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "a part that is right is not told from one that is wrong");
    for key in [&stage.key[..55], &stage.key[..12], &format!("{}a", stage.key), &stage.key.to_uppercase()] {
        let answer = Answer::of(stage.send(with(get("/api/jobs"), "x-api-key", key)).await).await;
        assert_eq!(answer.code(), "invalid_credentials");
    }
}

#[tokio::test]
async fn a_key_stops_with_its_time() {
    let stage = Stage::new().await;
    let past = NewApiKey { expires_at: Some(Timestamp::from_unix_ms(1)), ..new_key(&stage.user, &[Scope::Read]) };
    let (_, key) = stage.app.api_keys.create(past, &By::default()).await.expect("a key");

    let answer = stage.call(key.expose(), Method::GET, "/api/jobs", &Value::Null).await;

    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "key_expired"));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"claude-api\", error=\"invalid_token\""));
}

#[tokio::test]
async fn a_key_may_be_bound_to_addresses() {
    let stage = Stage::with(("TRUSTED_PROXIES", "192.0.2.0/24")).await;
    let home = NewApiKey { allowed_ips: Some(vec!["203.0.113.0/24".parse().expect("a net")]), ..new_key(&stage.user, &[Scope::Read]) };
    let (_, key) = stage.app.api_keys.create(home, &By::default()).await.expect("a key");
    let ask = || request(key.expose(), Method::GET, "/api/jobs", &Value::Null);
    let through = |proxy, client| with(from(ask(), proxy), "x-forwarded-for", client);

    for (request, status) in [
        (from(ask(), "203.0.113.9"), StatusCode::OK),
        (from(ask(), "198.51.100.9"), StatusCode::FORBIDDEN),
        (through("192.0.2.1", "203.0.113.9"), StatusCode::OK),
        (through("192.0.2.1", "198.51.100.9"), StatusCode::FORBIDDEN),
        (through("198.51.100.9", "203.0.113.9"), StatusCode::FORBIDDEN),
    ] {
        let answer = Answer::of(stage.send(request).await).await;
        assert_eq!(answer.status, status, "{:?}", answer.body);
        assert!(status == StatusCode::OK || answer.code() == "address_not_allowed");
    }
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say_and_never_makes_keys() {
    let stage = Stage::new().await;
    let (reader, sender) = (stage.key_of(&stage.user, &[Scope::Read]).await, stage.key_of(&stage.user, &[Scope::Chat]).await);
    let chat = json!({"message": "hi"});

    let refused = stage.call(&reader, Method::POST, "/api/chat", &chat).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::FORBIDDEN, "insufficient_scope"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"claude-api\", error=\"insufficient_scope\", scope=\"chat\""));
    assert_eq!(stage.call(&sender, Method::POST, "/api/chat", &chat).await.status, StatusCode::ACCEPTED);
    assert_eq!(stage.call(&sender, Method::GET, "/api/jobs", &Value::Null).await.code(), "insufficient_scope");

    let makes = stage.call(&stage.key, Method::POST, KEYS, &json!({"name": "k"})).await;
    assert_eq!((makes.status, makes.code().as_str()), (StatusCode::FORBIDDEN, "login_required"));
    let changes = json!({"password": "another battery", "current_password": crate::stage::PASSWORD});
    assert_eq!(stage.call(&stage.key, Method::PUT, "/api/auth/profile", &changes).await.code(), "login_required");
}
