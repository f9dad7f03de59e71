//! How a socket is opened, and by whom.

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{api_key::Scope, user::Role};
use tokio::time::Instant;

use super::{Server, auth, ping, watch};
use crate::{
    socket::{Heard, Refused, Socket},
    stage::{Answer, Stage, get, with},
};

async fn refusal(server: &Server, headers: &[(&str, &str)]) -> Refused {
    Socket::attempt(&server.base, headers).await.expect("an answer").err().expect("no socket")
}

#[tokio::test]
async fn a_client_says_who_it_is_by_a_header_a_subprotocol_or_its_first_message() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let token = stage.token_of(&stage.user).await;
    let (bearer, offer, key_offer) =
        (format!("Bearer {token}"), format!("claude.v1, bearer.{token}"), format!("bearer.{}, claude.v1", stage.key));

    for (headers, selected) in [
        (vec![("x-api-key", stage.key.as_str())], None),
        (vec![("authorization", bearer.as_str())], None),
        (vec![("sec-websocket-protocol", offer.as_str())], Some("claude.v1")),
        (vec![("sec-websocket-protocol", key_offer.as_str())], Some("claude.v1")),
        (vec![("sec-websocket-protocol", "claude.v1"), ("x-api-key", stage.key.as_str())], Some("claude.v1")),
    ] {
        let mut socket = Socket::connect(&server.base, &headers).await.expect("a socket");
        let protocol = socket.head.get("sec-websocket-protocol").map(|value| value.to_str().expect("ASCII"));
        assert_eq!(protocol, selected, "{headers:?}");
        socket.done(watch("jobs")).await.expect("let in");
    }
    for (credential, expires) in [(&token, true), (&stage.key, false)] {
        let mut socket = Socket::connect(&server.base, &[]).await.expect("a socket");
        assert_eq!(socket.refused(watch("jobs")).await.expect("refused"), "missing_credentials");
        assert_eq!(socket.ask(ping()).await.expect("an answer")["type"], "pong");
        let known = socket.done(auth(credential)).await.expect("known");
        assert_eq!((&known["user_id"], known["expires_at"].is_string()), (&json!(stage.user.id), expires), "{known}");
        socket.done(watch("jobs")).await.expect("let in");
    }
}

#[tokio::test]
async fn nobody_stays_who_does_not_say_within_five_seconds_who_they_are() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let mut socket = Socket::connect(&server.base, &[]).await.expect("a socket");
    socket.ask(ping()).await.expect("an answer");

    tokio::time::pause();
    let begun = Instant::now();
    let heard = socket.hear().await.expect("an end");

    assert!(matches!(heard, Heard::Closed(4401, _)), "{heard:?}");
    assert!((4..=6).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn wrong_credentials_open_no_socket() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;
    let other = stage.account("other@example.com", Role::User).await;
    let others = format!("claude.v1, bearer.{}", stage.key_of(&other, &[Scope::Read]).await);
    let forged = format!("{}x", &stage.key[..stage.key.len() - 1]);

    for headers in [
        vec![("x-api-key", forged.as_str())],
        vec![("authorization", "Bearer a.b.c")],
        vec![("sec-websocket-protocol", "claude.v1, bearer.a.b.c")],
        vec![("sec-websocket-protocol", "claude.v1, bearer.")],
        // Two users are none.
        vec![("sec-websocket-protocol", others.as_str()), ("x-api-key", stage.key.as_str())],
    ] {
        let refused = refusal(&server, &headers).await;
        assert_eq!((refused.status, &refused.body["code"]), (StatusCode::UNAUTHORIZED, &json!("invalid_credentials")), "{headers:?}");
        assert!(refused.head.contains_key("www-authenticate"));
    }
    for wrong in [forged.as_str(), "a.b.c", ""] {
        let mut socket = Socket::connect(&server.base, &[]).await.expect("a socket");
        assert_eq!(socket.refused(auth(wrong)).await.expect("refused"), "invalid_credentials", "{wrong}");
        assert_eq!(socket.closed().await.expect("closed"), (4401, "invalid_credentials".to_owned()));
    }
}

#[tokio::test]
async fn what_is_no_handshake_is_told_so() {
    let stage = Stage::new().await;
    let server = Server::of(&stage.app).await;

    for credential in ["", &stage.key] {
        let plain = stage.call(credential, Method::GET, "/api/ws", &Value::Null).await;
        assert_eq!((plain.status, plain.code().as_str()), (StatusCode::UPGRADE_REQUIRED, "upgrade_required"));
        assert_eq!((plain.header("upgrade"), plain.header("sec-websocket-version")), (Some("websocket"), Some("13")));
        assert_eq!(plain.header("ratelimit").is_some(), !credential.is_empty());
    }
    let old = with(with(get("/api/ws"), "connection", "upgrade"), "upgrade", "websocket");
    let old = with(with(old, "sec-websocket-version", "8"), "sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let old = Answer::of(stage.send(old).await).await;
    assert_eq!((old.status, old.header("sec-websocket-version")), (StatusCode::UPGRADE_REQUIRED, Some("13")));
    let posted = stage.call(&stage.key, Method::POST, "/api/ws", &Value::Null).await;
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);

    for offer in ["claude.v2", "graphql-ws, chat", &format!("bearer.{}", stage.key)] {
        let refused = refusal(&server, &[("sec-websocket-protocol", offer)]).await;
        assert_eq!((refused.status, &refused.body["code"]), (StatusCode::BAD_REQUEST, &json!("bad_request")), "{offer}");
    }
}

#[tokio::test]
async fn only_our_own_pages_and_those_of_the_front_end_open_sockets() {
    let stage = Stage::with(("FRONTEND_URL", "https://app.example.com, http://localhost:3030")).await;
    let server = Server::of(&stage.app).await;
    let own = server.base.clone();
    let secure = own.replace("http:", "https:");

    for origin in [own.as_str(), &secure, "https://app.example.com", "http://localhost:3030"] {
        let mut socket = Socket::connect(&server.base, &[("origin", origin), ("x-api-key", &stage.key)]).await.expect("a socket");
        assert_eq!(socket.ask(ping()).await.expect("an answer")["type"], "pong", "{origin}");
    }
    for origin in ["https://app.example.com.evil.org", "http://app.example.com", "http://127.0.0.1", "null"] {
        let refused = refusal(&server, &[("origin", origin), ("x-api-key", &stage.key)]).await;
        assert_eq!((refused.status, &refused.body["code"]), (StatusCode::FORBIDDEN, &json!("origin_not_allowed")), "{origin}");
    }
}
