//! A job's events: from anywhere, in any order of things, without a hole and without a repeat.

use std::time::Duration;

use poem::http::StatusCode;
use serde_json::json;
use shared::{
    job::JobError,
    lease::{Lease, Outcome},
};

use crate::stage::{Stage, complete, get, say, settle, with};

const STORY: [&str; 5] = ["1-0 job.started", "1-1 text.delta", "1-2 text.delta", "1-3 text.delta", "1-4 job.completed"];

async fn tell_story(lease: Lease) {
    for text in ["a", "b", "c"] {
        say(&lease, text);
    }
    complete(lease, "abc").await;
}

#[tokio::test]
async fn a_client_that_was_cut_off_anywhere_misses_nothing() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut early = stage.follow(&id, None).await;
    early.until("job.started").await;
    say(&lease, "a");
    early.until("text.delta").await;

    let mut living = Vec::new();
    for cut in ["1-0", "1-1"] {
        living.push((cut, stage.follow(&id, Some(cut)).await));
    }
    say(&lease, "b");
    say(&lease, "c");
    complete(lease, "abc").await;

    assert_eq!(early.rest().await, STORY[2..]);
    for (n, (cut, events)) in living.into_iter().enumerate() {
        assert_eq!(events.rest().await, STORY[n + 1..], "living, after {cut}");
    }
    for n in 0..4 {
        assert_eq!(stage.follow(&id, Some(&format!("1-{n}"))).await.rest().await, STORY[n + 1..], "ended, after 1-{n}");
    }
}

#[tokio::test]
async fn a_client_that_has_the_end_is_told_not_to_come_back() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    tell_story(stage.hand().await.take().await).await;

    for position in ["1-4", "1-5", "7-0", "1-4294967295"] {
        assert_eq!(stage.follow(&id, Some(position)).await.status, StatusCode::NO_CONTENT, "{position}");
        let by_query = stage.get(&format!("/api/jobs/{id}/events?after={position}")).await;
        assert_eq!((by_query.status, by_query.body.len()), (StatusCode::NO_CONTENT, 0));
    }
}

#[tokio::test]
async fn a_job_that_goes_back_to_the_queue_says_so_and_starts_anew() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let mut hand = stage.hand().await;
    let mut events = stage.follow(&id, None).await;
    let lease = hand.take().await;
    say(&lease, "void");
    events.until("text.delta").await;

    settle(lease, Outcome::HandBack).await;
    let retrying = events.until("retrying").await;
    assert_eq!((retrying.id, &retrying.data["attempt"], &retrying.data["reason"]), (None, &json!(2), &json!("drained")));
    let lease = hand.take().await;
    let started = events.until("job.started").await;
    assert_eq!((started.id.as_deref(), &started.data["reason"]), (Some("2-0"), &json!("drained")));

    // What the first attempt said is void: whoever stood there starts with the second.
    let behind = stage.follow(&id, Some("1-1")).await;
    let fresh = stage.follow(&id, None).await;
    complete(lease, "done").await;
    for events in [behind, fresh] {
        assert_eq!(events.rest().await, ["2-0 job.started", "2-1 job.completed"]);
    }
    assert_eq!(stage.follow(&id, Some("1-1")).await.rest().await, ["2-0 job.started", "2-1 job.completed"]);
}

#[tokio::test]
async fn a_delayed_retry_says_how_long() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut events = stage.follow(&id, None).await;
    events.until("job.started").await;

    let error = JobError::new("upstream_overloaded", "busy", true);
    settle(lease, Outcome::Retry { error, delay: Duration::from_mins(5) }).await;

    let retrying = events.until("retrying").await.data;
    assert_eq!(retrying["reason"], "retry");
    assert!(retrying["delay_ms"].as_u64().is_some_and(|ms| (200_000..=300_000).contains(&ms)), "{retrying}");
}

#[tokio::test]
async fn a_position_that_never_was_is_answered_with_the_job_and_from_the_start() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    stage.follow(&id, None).await.until("job.started").await;

    for position in ["1-7", "3-0", "1-4294967295"] {
        let mut events = stage.follow(&id, Some(position)).await;
        events.next().await.expect("the retry");
        let resync = events.next().await.expect("a message");
        assert_eq!((resync.kind(), &resync.data["job"]["id"]), ("resync", &json!(id)), "{position}");
        assert!(resync.id.is_none() && resync.forgets, "who is cut off now would come back with the same position");
        assert_eq!(events.until("job.started").await.id.as_deref(), Some("1-0"));
    }
    drop(lease);
}

#[tokio::test]
async fn a_reader_far_behind_reads_at_its_own_pace_and_misses_nothing() {
    const PIECES: usize = 3000;
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut quick = stage.follow(&id, None).await;
    let slow = stage.follow(&id, None).await;
    for n in 0..PIECES {
        say(&lease, &n.to_string());
    }
    let newest = json!((PIECES - 1).to_string());
    while quick.until("text.delta").await.data["text"] != newest {}
    let late = stage.follow(&id, None).await;
    complete(lease, "done").await;

    let expected: Vec<String> = (0..PIECES + 2).map(|n| format!("1-{n}")).collect();
    for events in [slow, late, stage.follow(&id, None).await] {
        let ids: Vec<String> = events.rest().await.iter().map(|line| line.split_once(' ').expect("an id").0.to_owned()).collect();
        assert_eq!(ids, expected);
    }
}

#[tokio::test]
async fn events_are_listed_as_they_were_sent() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut stream = stage.follow(&id, None).await;
    say(&lease, "a");
    let delta = stream.until("text.delta").await;
    let listed = |query: &str| stage.ask(with(get(&format!("/api/jobs/{id}/events{query}")), "accept", "application/json"));

    let living = listed("").await.json();
    assert_eq!(living["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(living["data"][1], delta.data);
    assert_eq!(listed("?after=1-0").await.json(), json!({"data": [delta.data], "next_cursor": null}));
    assert_eq!(listed("?after=1-9").await.code(), "position_gone");

    complete(lease, "a").await;
    let last = stream.until("job.completed").await;
    assert_eq!(listed("?after=1-1").await.json()["data"], json!([last.data]));
    assert_eq!(listed("?after=1-2").await.json()["data"], json!([]));
    let gone = listed("?after=1-9").await;
    assert_eq!((gone.status, gone.code().as_str()), (StatusCode::GONE, "position_gone"));
}

#[tokio::test]
async fn a_list_goes_on_page_by_page_to_its_end_while_its_job_runs() {
    const PIECES: usize = 2500;
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut stream = stage.follow(&id, None).await;
    for n in 1..=PIECES {
        say(&lease, &n.to_string());
    }
    while stream.until("text.delta").await.data["text"] != json!(PIECES.to_string()) {}

    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let page = stage.ask(with(get(&format!("/api/jobs/{id}/events{after}")), "accept", "application/json")).await.json();
        ids.extend(page["data"].as_array().expect("a list").iter().map(|event| event["id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        after = format!("?after={cursor}");
    }

    assert_eq!(ids, (0..=PIECES).map(|n| format!("1-{n}")).collect::<Vec<_>>());
    drop(lease);
}

#[tokio::test]
async fn a_large_event_goes_out_in_small_pieces_that_make_it_up() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut stream = stage.follow(&id, None).await;
    stream.until("job.started").await;
    say(&lease, &"x".repeat(100_000));

    let mut frame = Vec::new();
    while !frame.ends_with(b"\n\n") {
        let piece = stream.piece().await.expect("more of it");
        assert!(piece.len() <= 16 * 1024, "{}", piece.len());
        frame.extend(piece);
    }

    let log = stage.app.feeds.events().read(lease.job().id, None, 10).await.expect("a log");
    let json = std::str::from_utf8(&log[1].json).expect("UTF-8");
    assert_eq!(String::from_utf8(frame).expect("UTF-8"), format!("id: 1-1\nevent: text.delta\ndata: {json}\n\n"));
}

#[tokio::test]
async fn a_stream_ends_in_an_event_that_was_lost_half_way_and_its_client_gets_it_whole_later() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut halfway = stage.follow(&id, None).await;
    halfway.until("job.started").await;
    say(&lease, &"x".repeat(100_000));
    let mut frame = halfway.piece().await.expect("a piece").to_vec();
    assert!(frame.starts_with(b"id: 1-1\n"));

    // More than the feed keeps; then the log is gone before anybody sends it again.
    let mut quick = stage.follow(&id, None).await;
    for n in 0..600 {
        say(&lease, &n.to_string());
    }
    while quick.until("text.delta").await.data["text"] != "599" {}
    stage.lose_log(&id).await;
    while let Some(piece) = halfway.piece().await {
        frame.extend(piece);
    }
    assert!(!frame.ends_with(b"\n\n") && frame.len() < 100_000, "{}", frame.len());
    let mut again = stage.follow(&id, Some("1-0")).await;
    complete(lease, "done").await;

    assert_eq!(again.until("resync").await.data["job"]["id"], json!(id));
    let ids: Vec<String> = again.rest().await.iter().map(|line| line.split_once(' ').expect("an id").0.to_owned()).collect();
    assert_eq!(ids, (0..603).map(|n| format!("1-{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_outlives_redis() {
    let mut stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    let mut events = stage.follow(&id, None).await;
    events.until("job.started").await;
    say(&lease, "a");
    events.until("text.delta").await;

    stage.lose_redis().await;
    let joined_without_redis = stage.follow(&id, Some("1-1")).await;
    assert_eq!(joined_without_redis.status, StatusCode::OK);
    say(&lease, "b");
    say(&lease, "c");
    stage.restart_redis().await;
    complete(lease, "abc").await;

    assert_eq!(events.rest().await, STORY[2..]);
    assert_eq!(joined_without_redis.rest().await, STORY[2..]);
}

#[tokio::test]
async fn an_ended_job_needs_no_redis() {
    let mut stage = Stage::new().await;
    let id = stage.submit("hi").await;
    tell_story(stage.hand().await.take().await).await;

    stage.lose_redis().await;

    assert_eq!(stage.follow(&id, None).await.rest().await, STORY);
    assert_eq!(stage.follow(&id, Some("1-2")).await.rest().await, STORY[3..]);
}

#[tokio::test]
async fn a_feed_ends_after_its_last_watcher_left() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let mut events = stage.follow(&id, None).await;
    events.until("job.queued").await;

    drop(events);

    tokio::time::timeout(crate::stage::PATIENCE, stage.app.feeds.join_all()).await.expect("no feed is left");
}

#[tokio::test]
async fn a_server_about_to_stop_ends_its_streams_and_its_feeds() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let mut events = stage.follow(&id, None).await;
    events.until("job.queued").await;

    stage.app.draining.cancel();

    let goodbye = events.next().await.expect("a last message");
    assert_eq!(goodbye.comment.as_deref(), Some("the server is about to stop"));
    assert_eq!(events.next().await, None);
    tokio::time::timeout(crate::stage::PATIENCE, stage.app.feeds.join_all()).await.expect("every feed has ended");
}
