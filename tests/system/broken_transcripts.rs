//! Transcripts that are not whole, or not the present one: a turn that leaves such a one does not count, and none is
//! gone on from.

use std::time::Duration;

use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tests::{
    client::Client,
    on_both_databases,
    servers::Kind,
    system::{Cli, PATIENCE, System},
};
use tokio::time::timeout;

on_both_databases!(
    a_turn_that_leaves_no_whole_transcript_does_not_count,
    nothing_is_gone_on_from_but_a_whole_transcript,
    a_copy_is_used_only_if_it_is_the_present_one,
);

async fn turn(client: &Client, session: &str, message: &str) -> anyhow::Result<Value> {
    let id = client.submit(json!({"message": message, "session_id": session})).await?;
    client.ended(&id).await
}

/// The copy of a conversation's transcript, once there is one. It comes after the end of the job is told, and
/// nobody announces it.
async fn copied(system: &System, session: &str) -> anyhow::Result<String> {
    let copy = format!("s:{{{}}}:t", session.trim_start_matches("sess_"));
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let seen = async {
        while system.redis.command(&["EXISTS", &copy])?.trim() != "1" {
            looks.tick().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, seen).await??;
    Ok(copy)
}

async fn a_turn_that_leaves_no_whole_transcript_does_not_count(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let session = api.client.session(json!({})).await?;
    assert_eq!(turn(&api.client, &session, "recall:one").await?["result"]["text"], "one");

    // What is too large fills the disk for a while, and a SQLite file is on the same.
    let too_large = (kind == Kind::Postgres).then_some(("grow:62914560", "session_too_large"));
    for (fault, code) in too_large.into_iter().chain([("symlink", "attempts_exhausted")]) {
        let job = turn(&api.client, &session, &format!("seq:say:lost || cli:transcript:{fault}")).await?;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{fault}: {job}");
        let tells = |word: &str| job["error"]["detail"].as_str().is_some_and(|detail| detail.contains(word));
        assert!(code == "session_too_large" || tells("session_not_saved"), "{job}");
    }

    let job = turn(&api.client, &session, "recall:last").await?;
    assert_eq!(job["result"]["text"], "one | last", "{job}");
    let shown = api.client.get(&format!("/api/sessions/{session}")).await?;
    assert_eq!((&shown["active_jobs"], &shown["turns"]), (&json!(0), &json!(2)));
    Ok(())
}

async fn nothing_is_gone_on_from_but_a_whole_transcript(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let database = system.database.connect().await?;
    let tamper = async |session: String, set: &str| {
        // Those of the rounds before stay as they are.
        let last = "(SELECT session_id FROM transcripts ORDER BY session_id DESC LIMIT 1)";
        database.execute_unprepared(&format!("UPDATE transcripts SET {set} WHERE session_id = {last}")).await?;
        // Without the copy the record is asked.
        system.redis.command(&["DEL", &copied(&system, &session).await?])?;
        anyhow::Ok(())
    };
    let (empty, garbage, cut) = match kind {
        Kind::Sqlite => ("x''", "x'6e6f7065'", "substr(body, 1, length(body) - 20)"),
        Kind::Postgres => ("''::bytea", "'nope'::bytea", "substring(body from 1 for length(body) - 20)"),
    };

    for damage in [format!("body = {empty}"), format!("body = {garbage}"), format!("body = {cut}"), "bytes = bytes + 1".to_owned()] {
        let session = api.client.session(json!({})).await?;
        assert_eq!(turn(&api.client, &session, "say:one").await?["status"], "completed");
        tamper(session.clone(), &damage).await?;

        let job = turn(&api.client, &session, "say:two").await?;

        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("session_unreadable")), "{damage}: {job}");
        assert_eq!(job["error"]["retryable"], false);
    }
    Ok(())
}

async fn a_copy_is_used_only_if_it_is_the_present_one(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let session = api.client.session(json!({})).await?;
    assert_eq!(turn(&api.client, &session, "recall:one").await?["result"]["text"], "one");
    copied(&system, &session).await?;

    // Nobody could go on from the record now.
    system.database.connect().await?.execute_unprepared("UPDATE transcripts SET body = ''").await?;
    assert_eq!(turn(&api.client, &session, "recall:two").await?["result"]["text"], "one | two");

    // A former copy in the place of the present one.
    let other = api.client.session(json!({})).await?;
    assert_eq!(turn(&api.client, &other, "recall:one").await?["result"]["text"], "one");
    let copy = copied(&system, &other).await?;
    system.redis.command(&["RENAME", &copy, "former"])?;
    assert_eq!(turn(&api.client, &other, "recall:two").await?["result"]["text"], "one | two");
    copied(&system, &other).await?;
    system.redis.command(&["RENAME", "former", &copy])?;
    assert_eq!(turn(&api.client, &other, "recall:three").await?["result"]["text"], "one | two | three");
    Ok(())
}
