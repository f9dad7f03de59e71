//! The client's word for a request: whoever hears it, however often at once, makes one job of it.

use std::collections::HashSet;

use anyhow::Context as _;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use shared::jobs::Jobs;
use tests::{
    client::Client,
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(two_apis_at_once_make_one_job_of_a_key, a_key_is_free_again_a_day_later);

async fn ask(client: &Client, key: &str, message: &str) -> anyhow::Result<(StatusCode, Value)> {
    let request = client.request(Method::POST, "/api/chat").header("idempotency-key", key).json(&json!({"message": message}));
    let answer = request.send().await?;
    Ok((answer.status(), answer.json().await?))
}

async fn two_apis_at_once_make_one_job_of_a_key(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (one, other, _worker) = (system.api().await?, system.api().await?, system.worker().await?);

    for round in 0..3 {
        let key = format!("order {round}");
        let answers = join_all((0..40).map(|n| ask(if n % 2 == 0 { &one.client } else { &other.client }, &key, "say:once"))).await;

        let mut ids = HashSet::new();
        for answer in answers {
            let (status, job) = answer?;
            assert_eq!(status, StatusCode::ACCEPTED, "{job}");
            ids.insert(job["id"].as_str().context("an id")?.to_owned());
        }
        assert_eq!(ids.len(), 1, "{ids:?}");
        for client in [&one.client, &other.client] {
            let (status, problem) = ask(client, &key, "say:twice").await?;
            assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused")));
        }
        let id = ids.iter().next().context("one")?;
        assert_eq!(one.client.ended(id).await?["result"]["text"], "once");
        // Also of one that has ended.
        assert_eq!(ask(&other.client, &key, "say:once").await?.1["id"], json!(id));
    }
    assert_eq!(system.database.count("jobs").await?, 3);
    Ok(())
}

async fn a_key_is_free_again_a_day_later(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, store) = (system.api().await?, system.store().await?);
    let (jobs, database) = (Jobs::new(&store), system.database.connect().await?);
    let old = ask(&api.client, "old", "say:one").await?.1["id"].clone();
    let young = ask(&api.client, "young", "say:one").await?.1["id"].clone();
    let day_ms = 24 * 60 * 60 * 1000;
    for (id, age_ms) in [(&old, day_ms + 1), (&young, day_ms - 60_000)] {
        let key = if id == &old { "old" } else { "young" };
        database.execute_unprepared(&format!("UPDATE jobs SET created_at = created_at - {age_ms} WHERE idempotency_key = '{key}'")).await?;
    }

    jobs.forget_idempotency_keys().await?;

    let (status, job) = ask(&api.client, "old", "say:another").await?;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_ne!(job["id"], old);
    assert_eq!(ask(&api.client, "young", "say:one").await?.1["id"], young);
    assert_eq!(system.database.count("jobs WHERE idempotency_key IS NULL AND request_hash IS NULL").await?, 1);
    database.close().await?;
    Ok(())
}
