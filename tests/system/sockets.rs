//! Sockets of real servers.

use std::time::Duration;

use api::token::Claims;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use shared::{audit::By, logins::Logins, time::Timestamp, user::Role, users::Users};
use tests::{
    servers::{Kind, RedisServer},
    socket::Socket,
    system::{Api, Cli, JWT_SECRET, System},
};

use crate::accounts::new_user;

/// A socket of the user of `api`, opened at `base`.
async fn open(api: &Api, base: &str) -> anyhow::Result<Socket> {
    Socket::connect(base, &[("x-api-key", &api.key)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_sends_nobody_away_but_whose_token_ends() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, store) = (system.api().await?, system.store().await?);
    let user = Users::new(&store).create(new_user("me@example.com", Role::User), &By::default()).await?;
    let (fam, _) = Logins::new(&store, Duration::from_mins(5)).begin(&user, &By::default()).await?;
    let iat = Timestamp::now().unix_ms() / 1_000;
    let (iss, aud) = ("claude-api".to_owned(), "claude-api".to_owned());
    let claims = Claims { sub: user.id, jti: "1".to_owned(), fam, role: Role::User, iat, exp: iat + 5, iss, aud };
    let token = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(JWT_SECRET.as_bytes()))?;
    let mut ends = Socket::connect(api.client.base(), &[("authorization", &format!("Bearer {token}"))]).await?;
    let mut stays = open(&api, api.client.base()).await?;
    for socket in [&mut ends, &mut stays] {
        socket.done(json!({"type": "watch", "what": "jobs"})).await?;
    }

    // Without Redis anybody's rights may have changed, and the database does not say.
    system.database.shut().await?;
    system.redis.kill();
    system.redis = RedisServer::start(system.directory())?;

    assert_eq!(ends.closed().await?, (4401, "token_expired".to_owned()));
    let mut unknown = Socket::connect(api.client.base(), &[]).await?;
    let refused = unknown.refused(json!({"type": "auth", "token": api.key})).await?;
    assert!(matches!(refused.as_str(), "unavailable" | "internal_error"), "{refused}");
    assert_eq!(unknown.ask(json!({"type": "ping"})).await?["type"], "pong", "it may try again");
    system.database.open().await?;
    assert_eq!(stays.ask(json!({"type": "ping"})).await?["type"], "pong");
    stays.done(json!({"type": "watch", "what": "jobs"})).await?;
    Ok(())
}
