//! Accounts: made, logged into, changed, left.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::operator;
use bytes::Bytes;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use poem::{
    Body,
    http::{Method, StatusCode},
};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    audit::{AuditFilter, By},
    user::{PasswordHash, Role},
    users::UserChange,
};
use tokio::sync::Notify;

use crate::stage::{Answer, PASSWORD, SECRET, Stage, from, get, request, with};

const SEED: &str = r#"{"email":"admin@example.com","password":"yourpassword","role":"admin"}"#;

fn login(email: &str, password: &str) -> Value {
    json!({"email": email, "password": password})
}

fn refresh(token: &str) -> Value {
    json!({"refresh_token": token})
}

fn text(answer: &Answer, field: &str) -> String {
    answer.json()[field].as_str().unwrap_or_else(|| panic!("{field} in {:?}", answer.body)).to_owned()
}

/// Post to an operation on accounts as whom `credential` says.
async fn post(stage: &Stage, credential: &str, operation: &str, body: &Value) -> Answer {
    stage.call(credential, Method::POST, &format!("/api/auth/{operation}"), body).await
}

async fn profile(stage: &Stage, credential: &str) -> Answer {
    stage.call(credential, Method::GET, "/api/auth/profile", &Value::Null).await
}

/// The words of the audit log, the oldest first, with what each says of its target.
async fn audit(stage: &Stage) -> Vec<(String, Option<String>)> {
    let filter = AuditFilter { actor: None, action: None, before: None, limit: 100 };
    let entries = stage.app.audit.list(filter).await.expect("entries");
    entries.into_iter().rev().map(|entry| (entry.action, entry.target)).collect()
}

#[tokio::test]
async fn the_first_admin_registers_on_a_fresh_server_and_no_second_one() {
    let stage = Stage::empty(&[]).await;
    let body: Value = serde_json::from_str(SEED).expect("JSON");

    let first = post(&stage, "", "register", &body).await;

    assert_eq!(first.status, StatusCode::CREATED, "{:?}", first.body);
    assert_eq!(first.header("cache-control"), Some("no-store"));
    let answer = first.json();
    assert_eq!((&answer["user"]["role"], &answer["user"]["email"]), (&json!("admin"), &json!("admin@example.com")));
    assert_eq!((&answer["token_type"], &answer["expires_in"]), (&json!("Bearer"), &json!(900)));
    assert_eq!(answer["user"]["daily_budget_usd"], Value::Null);
    let token = text(&first, "access_token");
    assert_eq!(profile(&stage, &token).await.json()["id"], answer["user"]["id"]);

    let second = |email: &str| json!({"email": email, "password": "yourpassword", "role": "admin"});
    let refused = post(&stage, "", "register", &second("b@example.com")).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::FORBIDDEN, "admin_exists"));
    let by_admin = post(&stage, &token, "register", &second("b@example.com")).await;
    assert_eq!((by_admin.status, &by_admin.json()["user"]["role"]), (StatusCode::CREATED, &json!("admin")));
}

#[tokio::test]
async fn of_many_first_admins_at_once_one_is_it() {
    let stage = Stage::empty(&[]).await;
    let other = stage.elsewhere(&[]).await;
    let body = |n: usize| json!({"email": format!("admin{n}@example.com"), "password": "yourpassword", "role": "admin"});
    let bodies: Vec<Value> = (0..8).map(body).collect();

    let here = futures_util::future::join_all(bodies[..4].iter().map(|body| post(&stage, "", "register", body)));
    let there = futures_util::future::join_all(bodies[4..].iter().map(|body| other.call("", Method::POST, "/api/auth/register", body)));
    let (here, there) = tokio::join!(here, there);

    let mut statuses: Vec<u16> = here.iter().chain(&there).map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403, 403, 403, 403, 403, 403, 403]);
}

#[tokio::test]
async fn the_first_admin_comes_from_this_machine_unless_told_otherwise() {
    let body: Value = serde_json::from_str(SEED).expect("JSON");
    let register = || request("", Method::POST, "/api/auth/register", &body);
    let stage = Stage::empty(&[]).await;

    for far in [from(register(), "203.0.113.9"), with(register(), "x-forwarded-for", "127.0.0.1"), with(register(), "forwarded", "for=1")] {
        let answer = Answer::of(stage.send(far).await).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::FORBIDDEN, "not_local"));
    }
    let open = Stage::empty(&[("BOOTSTRAP_ADMIN", "open")]).await;
    assert_eq!(open.send(from(register(), "203.0.113.9")).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn somebody_who_registers_gets_a_budget_and_never_another_role() {
    let stage = Stage::with(("DEFAULT_DAILY_BUDGET_USD", "2.5")).await;
    stage.account("admin@example.com", Role::Admin).await;
    let body = json!({"email": "New@Example.com", "password": "twelve chars", "name": "Ann"});

    let answer = post(&stage, "", "register", &body).await;

    let user = &answer.json()["user"];
    assert_eq!((answer.status, &user["role"], &user["daily_budget_usd"]), (StatusCode::CREATED, &json!("user"), &json!(2.5)));
    assert_eq!((&user["name"], &user["email"]), (&json!("Ann"), &json!("New@Example.com")));
    let token = text(&answer, "access_token");
    let admin = json!({"email": "b@example.com", "password": "twelve chars", "role": "admin"});
    assert_eq!(post(&stage, &token, "register", &admin).await.code(), "admin_exists");
    let again = post(&stage, "", "register", &json!({"email": "nEW@eXAMPLE.com", "password": "twelve chars"})).await;
    assert_eq!((again.status, again.code().as_str()), (StatusCode::CONFLICT, "email_taken"));
}

#[tokio::test]
async fn where_registration_is_closed_admins_make_the_accounts() {
    let stage = Stage::empty(&[("REGISTRATION", "closed")]).await;
    let body = json!({"email": "a@example.com", "password": "twelve chars"});

    let refused = post(&stage, "", "register", &body).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::FORBIDDEN, "registration_closed"));
    let admin = post(&stage, "", "register", &serde_json::from_str(SEED).expect("JSON")).await;
    assert_eq!(admin.status, StatusCode::CREATED, "the first admin still comes in");
    let made = post(&stage, &text(&admin, "access_token"), "register", &body).await;
    assert_eq!((made.status, &made.json()["user"]["daily_budget_usd"]), (StatusCode::CREATED, &Value::Null));
}

#[tokio::test]
async fn every_wrong_field_of_an_account_is_pointed_at() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.user).await;
    let long = "x".repeat(257);

    for (operation, body, pointers) in [
        ("register", json!({"email": "a", "password": "short", "name": ""}), vec!["/email", "/password", "/name"]),
        ("register", json!({"email": "a@b@c", "password": long, "name": "n".repeat(101)}), vec!["/email", "/password", "/name"]),
        ("register", json!({"email": "a@example.com", "password": "twelve chars", "role": "root"}), vec!["/role"]),
        ("register", json!({"email": "a@example.com", "password": "twelve chars", "admin": true}), vec!["/admin"]),
        ("register", json!({"email": "a@example.com"}), vec!["/password"]),
        ("login", json!({"email": "a", "password": long}), vec!["/email", "/password"]),
        ("login", json!({"email": "a@example.com", "password": "twelve chars", "otp": 1}), vec!["/otp"]),
        ("refresh", json!({}), vec!["/refresh_token"]),
        ("profile", json!({"name": "", "email": "a", "password": "short"}), vec!["/name", "/email", "/password", "/current_password"]),
        ("profile", json!({"role": "admin"}), vec!["/role"]),
    ] {
        let method = if operation == "profile" { Method::PUT } else { Method::POST };
        let answer = stage.call(&token, method, &format!("/api/auth/{operation}"), &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"), "{body}");
        let errors = answer.json()["errors"].as_array().expect("errors").clone();
        let found: Vec<&str> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
        assert_eq!(found, pointers, "{body}");
    }
}

#[tokio::test]
async fn an_unknown_email_and_a_wrong_password_get_the_same_answer() {
    let stage = Stage::new().await;
    let gone = stage.account("gone@example.com", Role::User).await;
    stage.app.users.delete(gone.id, &By::default()).await.expect("deleted");

    let right = post(&stage, "", "login", &login("USER@example.com", PASSWORD)).await;
    assert_eq!((right.status, right.header("cache-control")), (StatusCode::OK, Some("no-store")));
    assert!(
        right.json()["user"]["last_login_at"].is_string()
            || profile(&stage, &text(&right, "access_token")).await.json()["last_login_at"].is_string()
    );

    let mut answers = Vec::new();
    for (email, password) in [
        ("user@example.com", "correct horse battery stapl"),
        ("user@example.com", "correct horse battery staple "),
        ("user@example.com", ""),
        ("nobody@example.com", PASSWORD),
        ("gone@example.com", PASSWORD),
    ] {
        let answer = post(&stage, "", "login", &login(email, password)).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_login"), "{email} {password}");
        let mut body = answer.json();
        body["request_id"].take();
        answers.push((body, answer.header("www-authenticate").map(str::to_owned)));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}

#[tokio::test]
async fn a_disabled_account_is_told_so_only_with_its_password() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.user).await;
    let first = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;
    let change = UserChange { disabled: Some(true), ..UserChange::default() };
    stage.app.users.update(stage.user.id, change, &By::default()).await.expect("disabled");

    let code = async |password| post(&stage, "", "login", &login("user@example.com", password)).await.code();

    assert_eq!(code(PASSWORD).await, "account_disabled");
    assert_eq!(code("another password").await, "invalid_login");
    for credential in [&token, &stage.key] {
        let answer = profile(&stage, credential).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::FORBIDDEN, "account_disabled"));
    }
    let renewed = post(&stage, "", "refresh", &refresh(&text(&first, "refresh_token"))).await;
    assert_eq!((renewed.status, renewed.code().as_str()), (StatusCode::FORBIDDEN, "account_disabled"));
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_copy_ends_the_login() {
    let stage = Stage::new().await;
    let first = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;
    let other = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;

    let second = post(&stage, "", "refresh", &refresh(&text(&first, "refresh_token"))).await;
    assert_eq!((second.status, second.header("cache-control")), (StatusCode::OK, Some("no-store")));
    assert_ne!(text(&second, "refresh_token"), text(&first, "refresh_token"));
    assert_eq!(profile(&stage, &text(&second, "access_token")).await.status, StatusCode::OK);

    let copy = post(&stage, "", "refresh", &refresh(&text(&first, "refresh_token"))).await;
    assert_eq!((copy.status, copy.code().as_str()), (StatusCode::UNAUTHORIZED, "token_reused"));
    for token in [text(&first, "access_token"), text(&second, "access_token")] {
        assert_eq!(profile(&stage, &token).await.code(), "invalid_credentials");
    }
    assert_eq!(post(&stage, "", "refresh", &refresh(&text(&second, "refresh_token"))).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(profile(&stage, &text(&other, "access_token")).await.status, StatusCode::OK, "another login goes on");

    for wrong in ["", "crt_", &format!("crt_{}", "a".repeat(43)), &stage.key, &text(&other, "access_token")] {
        let answer = post(&stage, "", "refresh", &refresh(wrong)).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_credentials"), "{wrong}");
    }
}

#[tokio::test]
async fn who_logs_out_is_out_on_every_server_within_a_second() {
    let stage = Stage::new().await;
    let other = stage.elsewhere(&[]).await;
    let login = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;
    let (access, renewal) = (text(&login, "access_token"), text(&login, "refresh_token"));
    let there = async || other.call(&access, Method::GET, "/api/auth/profile", &Value::Null).await;
    assert_eq!(there().await.status, StatusCode::OK, "the other server has it in its memory");

    let out = post(&stage, &access, "logout", &json!({})).await;
    let begun = Instant::now();

    assert_eq!((out.status, out.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(profile(&stage, &access).await.code(), "invalid_credentials", "here at once");
    while there().await.status == StatusCode::OK {
        assert!(begun.elapsed() < Duration::from_secs(1), "still in after {:?}", begun.elapsed());
    }
    assert_eq!(there().await.code(), "invalid_credentials");
    assert_eq!(post(&stage, "", "refresh", &refresh(&renewal)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_that_is_not_ours_or_is_over_is_refused_by_its_own_word() {
    let stage = Stage::new().await;
    let (family, _) = stage.app.logins.begin(&stage.user, &By::default()).await.expect("a login");
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("before the end of time");
    let made = |secret: &str, algorithm, change: Value| {
        let mut claims = json!({"sub": stage.user.id, "jti": "1", "fam": family, "role": "user", "iat": now, "exp": now + 900,
                                "iss": "claude-api", "aud": "claude-api"});
        claims.as_object_mut().expect("claims").extend(change.as_object().cloned().unwrap_or_default());
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(secret.as_bytes())).expect("signed")
    };
    let good = made(SECRET, Algorithm::HS256, json!({}));
    assert_eq!(profile(&stage, &good).await.status, StatusCode::OK);

    let expired = profile(&stage, &made(SECRET, Algorithm::HS256, json!({"iat": now - 901, "exp": now - 1}))).await;
    assert_eq!((expired.status, expired.code().as_str()), (StatusCode::UNAUTHORIZED, "token_expired"));
    assert_eq!(expired.header("www-authenticate"), Some("Bearer realm=\"claude-api\", error=\"invalid_token\""));
    let (message, _) = good.rsplit_once('.').expect("three parts");
    let (_, payload) = message.split_once('.').expect("two parts");
    for wrong in [
        made("Z1x9C8v7B6n5M4a3S2d1F0g9H8j7K6l5", Algorithm::HS256, json!({})),
        made(SECRET, Algorithm::HS384, json!({})),
        made(SECRET, Algorithm::HS256, json!({"aud": "others"})),
        made(SECRET, Algorithm::HS256, json!({"iss": "others"})),
        made(SECRET, Algorithm::HS256, json!({"iat": now + 60})),
        made(SECRET, Algorithm::HS256, json!({"sub": shared::id::UserId::new()})),
        made(SECRET, Algorithm::HS256, json!({"fam": shared::id::FamilyId::new()})),
        format!("{message}."),
        message.to_owned(),
        // {"alg":"none"}
        format!("eyJhbGciOiJub25lIn0.{payload}."),
    ] {
        let answer = profile(&stage, &wrong).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_credentials"), "{wrong}");
    }

    let rotated = stage.elsewhere(&[("JWT_SECRET", &format!("Z1x9C8v7B6n5M4a3S2d1F0g9H8j7K6l5,{SECRET}"))]).await;
    assert_eq!(rotated.call(&good, Method::GET, "/api/auth/profile", &Value::Null).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_is_over_is_no_hindrance_to_getting_the_next() {
    let stage = Stage::new().await;
    let first = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;

    let again = post(&stage, "a.b.c", "refresh", &refresh(&text(&first, "refresh_token"))).await;
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(post(&stage, "a.b.c", "login", &login("user@example.com", PASSWORD)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn two_credentials_must_be_of_one_user_and_the_key_narrows() {
    let stage = Stage::new().await;
    let other = stage.account("other@example.com", Role::User).await;
    let token = stage.token_of(&stage.user).await;
    let narrow = stage.key_of(&stage.user, &[Scope::Read]).await;
    let both = async |key: &str, token: &str, method, path| {
        let request = request(token, method, path, &json!({"message": "hi"}));
        Answer::of(stage.send(with(request, "x-api-key", key)).await).await
    };

    assert_eq!(both(&narrow, &token, Method::GET, "/api/jobs").await.status, StatusCode::OK);
    assert_eq!(both(&narrow, &token, Method::POST, "/api/chat").await.code(), "insufficient_scope");
    assert_eq!(both(&stage.key, &stage.token_of(&other).await, Method::GET, "/api/jobs").await.code(), "invalid_credentials");
    assert_eq!(both(&narrow, &stage.key, Method::GET, "/api/jobs").await.code(), "invalid_credentials");
    assert_eq!(both(&narrow, "a.b.c", Method::GET, "/api/jobs").await.code(), "invalid_credentials");
    let mut wrong_key = narrow.clone();
    wrong_key.replace_range(55.., if narrow.ends_with('a') { "b" } else { "a" });
    assert_eq!(both(&wrong_key, &token, Method::GET, "/api/jobs").await.code(), "invalid_credentials");
}

#[tokio::test]
async fn a_profile_is_changed_by_its_owner_with_the_password() {
    let stage = Stage::new().await;
    let mine = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;
    let theirs = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;
    stage.account("taken@example.com", Role::User).await;
    let token = text(&mine, "access_token");
    let put = async |body: Value| stage.call(&token, Method::PUT, "/api/auth/profile", &body).await;

    assert_eq!(put(json!({"name": "Ann"})).await.json()["name"], "Ann");
    assert_eq!(put(json!({})).await.json()["name"], "Ann", "what is absent stays");
    assert_eq!(put(json!({"name": null})).await.json()["name"], Value::Null);

    let wrong = put(json!({"email": "new@example.com", "current_password": "wrong"})).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (StatusCode::FORBIDDEN, "wrong_password"));
    assert_eq!(put(json!({"email": "TAKEN@example.com", "current_password": PASSWORD})).await.code(), "email_taken");
    let moved = put(json!({"email": "new@example.com", "password": "another battery", "current_password": PASSWORD})).await;
    assert_eq!((moved.status, &moved.json()["email"]), (StatusCode::OK, &json!("new@example.com")));

    assert_eq!(profile(&stage, &token).await.json()["email"], "new@example.com", "this login goes on");
    assert_eq!(post(&stage, "", "refresh", &refresh(&text(&mine, "refresh_token"))).await.status, StatusCode::OK);
    assert_eq!(profile(&stage, &text(&theirs, "access_token")).await.code(), "invalid_credentials", "all others end");
    assert_eq!(post(&stage, "", "login", &login("new@example.com", PASSWORD)).await.code(), "invalid_login");
    assert_eq!(post(&stage, "", "login", &login("new@example.com", "another battery")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_password_that_was_kept_cheaply_is_kept_better_after_a_login() {
    use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, Version};

    let stage = Stage::new().await;
    let cheap = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).expect("parameters"));
    let hash = PasswordHash::new(cheap.hash_password(PASSWORD.as_bytes()).expect("hashed").to_string());
    let change = UserChange { password: Some(hash), ..UserChange::default() };
    stage.app.users.update(stage.user.id, change, &By::default()).await.expect("changed");
    let email = "user@example.com".parse().expect("an address");

    let first = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;

    let (_, kept) = stage.app.users.password_of(&email).await.expect("an answer").expect("an account");
    assert!(kept.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", kept.expose());
    assert_eq!(profile(&stage, &text(&first, "access_token")).await.status, StatusCode::OK, "no login ends by that");
    assert_eq!(post(&stage, "", "login", &login("user@example.com", PASSWORD)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_admin_of_the_settings_is_made_once_and_never_changed() {
    let settings = [("ADMIN_EMAIL", "boss@example.com"), ("ADMIN_PASSWORD", PASSWORD)];
    let stage = Stage::empty(&settings).await;

    operator::ensure_admin(&stage.app).await.expect("made");

    let answer = post(&stage, "", "login", &login("boss@example.com", PASSWORD)).await;
    assert_eq!((answer.status, &answer.json()["user"]["role"]), (StatusCode::OK, &json!("admin")));
    let later = stage.elsewhere(&[("ADMIN_EMAIL", "boss@example.com"), ("ADMIN_PASSWORD", "quite another one")]).await;
    operator::ensure_admin(&later.app).await.expect("left alone");
    assert_eq!(post(&stage, "", "login", &login("boss@example.com", "quite another one")).await.code(), "invalid_login");
    assert_eq!(post(&stage, "", "login", &login("boss@example.com", PASSWORD)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_matters_is_in_the_audit_log_and_no_secret_is() {
    let stage = Stage::empty(&[]).await;
    let made = post(&stage, "", "register", &json!({"email": "a@example.com", "password": PASSWORD})).await;
    let (token, id) = (text(&made, "access_token"), made.json()["user"]["id"].as_str().expect("an id").to_owned());
    post(&stage, "", "login", &login("hunter2@example.com", PASSWORD)).await;
    post(&stage, "", "login", &login("a@example.com", "wrong password")).await;
    let key = post(&stage, &token, "api-keys", &json!({"name": "k"})).await;
    let key_id = key.json()["api_key"]["id"].as_str().expect("an id").to_owned();
    stage.call(&token, Method::DELETE, &format!("/api/auth/api-keys/{key_id}"), &Value::Null).await;
    let change = json!({"password": "another battery", "current_password": PASSWORD});
    stage.call(&token, Method::PUT, "/api/auth/profile", &change).await;
    let renewal = refresh(&text(&made, "refresh_token"));
    post(&stage, "", "refresh", &renewal).await;
    post(&stage, "", "refresh", &renewal).await;
    let again = post(&stage, "", "login", &login("a@example.com", "another battery")).await;
    post(&stage, &text(&again, "access_token"), "logout", &json!({})).await;

    let entries = audit(&stage).await;
    let words: Vec<&str> = entries.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(
        words,
        [
            "user.register",
            "login",
            "login.failed",
            "login.failed",
            "key.create",
            "key.revoke",
            "password.change",
            "token.reused",
            "login",
            "logout"
        ]
    );
    assert_eq!((&entries[2].1, &entries[3].1), (&None, &Some(id)));
    let filter = AuditFilter { actor: None, action: None, before: None, limit: 100 };
    let all = format!("{:?}", stage.app.audit.list(filter).await.expect("entries"));
    let secrets = [PASSWORD, "another battery", "wrong password", "hunter2", &token, &text(&made, "refresh_token"), &text(&key, "key")];
    for secret in secrets {
        assert!(!all.contains(secret), "{secret}");
    }
    assert!(all.contains("127.0.0.1"));
}

#[tokio::test]
async fn who_tries_too_often_waits() {
    let stage = Stage::with(("AUTH_RATE_LIMIT_PER_MINUTE", "2")).await;
    for _ in 0..2 {
        assert_eq!(post(&stage, "", "login", &login("user@example.com", "wrong password")).await.code(), "invalid_login");
    }

    let answer = post(&stage, "", "login", &login("user@example.com", PASSWORD)).await;

    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "too_many_attempts"));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(Answer::of(stage.send(get("/health")).await).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_password_that_was_proved_before_another_one_was_set_changes_nothing() {
    let stage = Stage::new().await;
    let (_, proof) = stage.app.users.password_of(&stage.user.email.parse().expect("an address")).await.expect("known").expect("a password");
    let update = |password: &str, proof: Option<PasswordHash>| {
        let change = UserChange { password: Some(PasswordHash::new(password.to_owned())), proof, ..UserChange::default() };
        let (users, id) = (stage.app.users.clone(), stage.user.id);
        async move { users.update(id, change, &By::default()).await }
    };

    update("the owner's", Some(proof.clone())).await.expect("proved");
    let refused = update("a thief's", Some(proof)).await.expect_err("proved long ago");

    assert!(matches!(refused, shared::Error::WrongPassword), "{refused}");
    let (_, kept) = stage.app.users.password_of(&stage.user.email.parse().expect("an address")).await.expect("known").expect("a password");
    assert_eq!(kept.expose(), "the owner's");
}

#[tokio::test]
async fn what_was_begun_by_a_login_is_not_done_after_its_end() {
    let stage = Stage::new().await;
    let token = stage.token_of(&stage.user).await;
    let (is_read, may_go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (reads, goes_on) = (is_read.clone(), may_go_on.clone());
    let body = async_stream::stream! {
        yield Ok::<_, std::io::Error>(Bytes::from_static(b"{\"name\": "));
        reads.notify_one();
        goes_on.notified().await;
        yield Ok(Bytes::from_static(b"\"a key\"}"));
    };
    let mut slow = request(&token, Method::POST, "/api/auth/api-keys", &Value::Null);
    slow.set_body(Body::from_bytes_stream(body));

    let logout = async {
        is_read.notified().await;
        assert_eq!(post(&stage, &token, "logout", &Value::Null).await.status, StatusCode::NO_CONTENT);
        may_go_on.notify_one();
    };
    let (answer, ()) = tokio::join!(stage.send(slow), logout);

    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(stage.app.api_keys.list(stage.user.id, None, 10).await.expect("keys").iter().all(|key| key.name != "a key"));
}

#[tokio::test]
async fn a_key_makes_no_admin_and_decides_of_nobody_who_they_are() {
    let stage = Stage::new().await;
    let admin = stage.account("admin@example.com", Role::Admin).await;
    let (key, token) = (stage.key_of(&admin, &[Scope::Admin]).await, stage.token_of(&admin).await);
    let new = |email: &str, role: &str| json!({"email": email, "password": "long enough for one", "role": role});
    let user = format!("/api/admin/users/{}", stage.user.id);
    let changes = [json!({"password": "long enough for one"}), json!({"role": "admin"}), json!({"email": "thief@example.com"})];

    for (credential, status) in [(&key, StatusCode::FORBIDDEN), (&token, StatusCode::CREATED)] {
        let made = stage.call(credential, Method::POST, "/api/admin/users", &new("second@example.com", "admin")).await;
        assert_eq!(made.status, status, "{:?}", made.body);
    }
    let made = stage.call(&key, Method::POST, "/api/admin/users", &new("third@example.com", "user")).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    for change in &changes {
        for (credential, status) in [(&key, StatusCode::FORBIDDEN), (&token, StatusCode::OK)] {
            let answer = stage.call(credential, Method::PATCH, &user, change).await;
            assert_eq!(answer.status, status, "{change}: {:?}", answer.body);
        }
    }
    let limit = stage.call(&key, Method::PATCH, &user, &json!({"rate_limit_per_hour": 10})).await;
    assert_eq!(limit.status, StatusCode::OK, "{:?}", limit.body);
}
