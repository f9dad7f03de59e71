//! Who has a socket keeps it for as long as their rights last.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use poem::http::Method;
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    api_keys::NewApiKey,
    audit::By,
    id::JobId,
    time::Timestamp,
    user::{Role, User},
    users::UserChange,
};
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use super::{Server, auth, ping, subscribe, watch};
use crate::{
    socket::{Heard, Socket},
    stage::{PATIENCE, SECRET, Stage, complete, new_key, say},
};

/// An access token of a login of `user` that ends in a second or two.
async fn short_token(stage: &Stage, user: &User) -> String {
    let (family, _) = stage.app.logins.begin(user, &By::default()).await.expect("a login");
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("before the end of time");
    let claims = json!({"sub": user.id, "jti": "1", "fam": family, "role": "user", "iat": now, "exp": now + 2,
                        "iss": "claude-api", "aud": "claude-api"});
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("signed")
}

#[tokio::test]
async fn a_token_ends_with_its_socket_unless_a_fresh_one_is_shown() {
    let stage = Stage::new().await;
    let (server, mut kept) = (Server::of(&stage.app).await, Vec::new());
    let other = stage.account("other@example.com", Role::User).await;
    let token = short_token(&stage, &stage.user).await;
    let mut ends = server.socket(&token).await;
    let mut ends_too = Socket::connect(&server.base, &[]).await.expect("a socket");
    ends_too.done(auth(&token)).await.expect("known");
    for fresh in [stage.token_of(&stage.user).await, stage.key.clone()] {
        let mut socket = server.socket(&token).await;
        let known = socket.done(auth(&fresh)).await.expect("extended");
        assert_eq!(known["user_id"], json!(stage.user.id));
        kept.push(socket);
    }

    // Nobody else's, and nothing that is none.
    for (wrong, code) in [(stage.token_of(&other).await, "invalid_credentials"), ("a.b.c".to_owned(), "invalid_credentials")] {
        assert_eq!(ends.refused(auth(&wrong)).await.expect("refused"), code);
        assert_eq!(kept[0].refused(auth(&wrong)).await.expect("refused"), code);
    }
    ends.done(watch("jobs")).await.expect("it may go on as who it is");
    let id = stage.submit("mine").await;
    assert_eq!(ends.until("job").await.expect("news")["job"]["id"], json!(id));

    for socket in [&mut ends, &mut ends_too] {
        assert_eq!(socket.closed().await.expect("closed"), (4401, "token_expired".to_owned()));
    }
    for socket in &mut kept {
        assert_eq!(socket.ask(ping()).await.expect("an answer")["type"], "pong");
        socket.done(watch("jobs")).await.expect("its rights too");
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let id = stage.submit("waits").await;
    let expires_at = Some(Timestamp::from_unix_ms(Timestamp::now().unix_ms() + 1_500));
    let new = NewApiKey { expires_at, ..new_key(&stage.user, &[Scope::Read]) };
    let (_, key) = stage.app.api_keys.create(new, &By::default()).await.expect("a key");

    let mut stream = raw_stream(&server, key.expose(), &id).await;
    while stream.read().await {}

    assert!(stream.text.contains("job.queued"), "{}", stream.text);
    assert!(stream.text.contains(": these credentials are no longer good\n\n"), "{}", stream.text);
}

#[tokio::test]
async fn whoever_goes_on_by_a_narrower_key_follows_no_more_than_it_allows() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let admin = stage.account("admin@example.com", Role::Admin).await;
    let (own, others) = (stage.token_of(&admin).await, stage.submit("somebody else's").await);
    for scope in [Scope::Chat, Scope::Read] {
        let mut socket = server.socket(&own).await;
        socket.done(watch("system")).await.expect("done");
        socket.done(subscribe(&others)).await.expect("done");

        socket.say(&auth(&stage.key_of(&admin, &[scope]).await)).await.expect("sent");
        let farewell = socket.until("error").await.expect("told so");
        assert_eq!((&farewell["code"], farewell.get("request_id")), (&json!("insufficient_scope"), None));
        socket.until("ack").await.expect("known");
        stage.submit("unheard").await;
        socket.ask(ping()).await.expect("an answer");

        // Nothing came before the answer.
        socket.say(&ping()).await.expect("sent");
        assert_eq!(socket.said().await.expect("an answer"), json!({"type": "pong"}));
        assert_eq!(socket.refused(watch("system")).await.expect("refused"), "insufficient_scope");
    }
}

/// How somebody loses their rights.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    Logout,
    Revoke,
    Disable,
    Delete,
}

#[tokio::test]
async fn whoever_loses_their_rights_anywhere_is_sent_away_within_a_second() {
    for loss in [Loss::Logout, Loss::Revoke, Loss::Disable, Loss::Delete] {
        let stage = Stage::new().await;
        let elsewhere = stage.elsewhere(&[]).await;
        let (server, bystander) = (Server::of(&stage.app).await, stage.token_of(&stage.user).await);
        let (key, text) = stage.app.api_keys.create(new_key(&stage.user, &[Scope::Read]), &By::default()).await.expect("a key");
        let credential = if loss == Loss::Revoke { text.expose().to_owned() } else { stage.token_of(&stage.user).await };
        let id = stage.submit("hi").await;
        let mut socket = server.socket(&credential).await;
        socket.done(subscribe(&id)).await.expect("done");
        let mut others = server.socket(&bystander).await;
        others.ask(ping()).await.expect("an answer");
        let mut stream = raw_stream(&server, &credential, &id).await;
        while !stream.text.contains("job.queued") {
            assert!(stream.read().await);
        }

        match loss {
            Loss::Logout => drop(elsewhere.call(&credential, Method::POST, "/api/auth/logout", &Value::Null).await),
            Loss::Revoke => assert!(elsewhere.app.api_keys.revoke(key.id, None, &By::default()).await.expect("revoked")),
            Loss::Disable => {
                let change = UserChange { disabled: Some(true), ..UserChange::default() };
                elsewhere.app.users.update(stage.user.id, change, &By::default()).await.expect("disabled");
            }
            Loss::Delete => assert!(elsewhere.app.users.delete(stage.user.id, &By::default()).await.expect("deleted")),
        }
        let lost = Instant::now();
        let (code, reason) = socket.closed().await.expect("closed");
        while stream.read().await {}

        assert!(lost.elapsed() < Duration::from_secs(1), "{loss:?}: {:?}", lost.elapsed());
        assert_eq!((code, reason.as_str()), (4401, if loss == Loss::Disable { "account_disabled" } else { "invalid_credentials" }));
        assert!(stream.text.contains(": these credentials are no longer good\n\n"), "{loss:?}: {}", stream.text);
        if matches!(loss, Loss::Logout | Loss::Revoke) {
            assert_eq!(others.ask(ping()).await.expect("another login goes on")["type"], "pong");
        } else {
            assert_eq!(others.closed().await.expect("closed").0, 4401);
        }
    }
}

#[tokio::test]
async fn a_lost_right_is_noticed_without_redis() {
    let mut stage = Stage::new().await;
    let elsewhere = stage.elsewhere(&[]).await;
    let (_server, mut socket) = stage.socket().await;
    socket.done(watch("jobs")).await.expect("done");
    stage.lose_redis().await;

    let change = UserChange { disabled: Some(true), ..UserChange::default() };
    elsewhere.app.users.update(stage.user.id, change, &By::default()).await.expect("disabled");
    let lost = Instant::now();

    assert_eq!(socket.closed().await.expect("closed"), (4401, "account_disabled".to_owned()));
    assert!(lost.elapsed() < Duration::from_secs(2), "{:?}", lost.elapsed());
}

/// A job that ended and left a log of many megabytes.
async fn long_job(stage: &Stage) -> String {
    let id = stage.submit("long").await;
    let lease = stage.hand().await.take().await;
    let piece = "x".repeat(32 * 1024);
    for n in 0..400 {
        say(&lease, &piece);
        if n % 50 == 49 {
            let job: JobId = id.parse().expect("an id");
            // The log takes so much at a time.
            while stage.app.events.read(job, None, 1_000).await.expect("a log").len() < n {
                tokio::task::yield_now().await;
            }
        }
    }
    complete(lease, "done").await;
    id
}

#[tokio::test]
async fn a_busy_reader_is_sent_away_no_later_than_an_idle_one() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let id = long_job(&stage).await;
    let (key, text) = stage.app.api_keys.create(new_key(&stage.user, &[Scope::Read]), &By::default()).await.expect("a key");
    let mut socket = Socket::narrow(&server.base, &[("x-api-key", text.expose())]).await.expect("a socket");
    socket.done(subscribe(&id)).await.expect("done");
    let mut heard = 0;

    // It has begun, and there is more than the network holds.
    socket.until("event").await.expect("an event");
    assert!(stage.app.api_keys.revoke(key.id, None, &By::default()).await.expect("revoked"));
    let (code, events) = loop {
        match socket.next().await.expect("something") {
            Heard::Said(_) => heard += 1,
            Heard::Closed(code, _) => break (code, heard),
            Heard::Gone => panic!("gone without a word after {heard} events"),
        }
    };

    assert_eq!(code, 4401, "after {events} events");
    assert!(events < 390, "all was said before: {events}");
}

/// An answer to `GET /api/jobs/{id}/events`, as it comes over the wire.
struct RawStream {
    wire: TcpStream,
    text: String,
}

async fn raw_stream(server: &Server, credential: &str, job: &str) -> RawStream {
    let mut wire = TcpStream::connect(server.base.trim_start_matches("http://")).await.expect("connected");
    let request = format!("GET /api/jobs/{job}/events HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {credential}\r\n\r\n");
    wire.write_all(request.as_bytes()).await.expect("sent");
    RawStream { wire, text: String::new() }
}

impl RawStream {
    /// Read on; `false` at the end of the answer.
    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4 * 1024];
        let read = timeout(PATIENCE, self.wire.read(&mut buffer)).await.expect("something in time").expect("readable");
        self.text.push_str(std::str::from_utf8(&buffer[..read]).expect("ASCII"));
        read > 0 && !self.text.ends_with("\r\n0\r\n\r\n")
    }
}
