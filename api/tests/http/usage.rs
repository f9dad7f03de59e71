//! What was used, added up.

use poem::http::StatusCode;
use serde_json::json;
use shared::{
    job::{JobResult, NanoUsd, Usage},
    lease::{Outcome, Report},
};
use tokio_util::sync::CancellationToken;

use crate::stage::Stage;

#[tokio::test]
async fn usage_is_told_by_group_and_in_all() {
    let stage = Stage::new().await;
    let mut hand = stage.hand().await;
    for (model, cost) in [("small", 1_000_000), ("large", 250_000_000), ("small", 2_000_000)] {
        stage.submit("hi").await;
        let usage = Usage { input_tokens: 10, output_tokens: 20, cache_read_tokens: 30, cache_write_tokens: 40 };
        let report = Report { model: Some(model.into()), usage: Some(usage), cost: Some(NanoUsd(cost)), ..Report::default() };
        let outcome = Outcome::Completed(JobResult::default());
        hand.take().await.settle(outcome, report, &CancellationToken::new()).await.expect("settled");
    }

    let mut usage = stage.get("/api/usage?group_by=model").await.json();
    for row in usage["data"].as_array_mut().expect("rows") {
        assert!(row["duration_ms"].take().is_u64());
    }

    let row = |model: &str, attempts: u64, cost: f64| {
        json!({"day": null, "model": model, "session_id": null, "api_key_id": null, "user_id": null, "requests": attempts, "jobs": attempts,
               "input_tokens": 10 * attempts, "output_tokens": 20 * attempts, "cache_read_tokens": 30 * attempts,
               "cache_write_tokens": 40 * attempts, "cost_usd": cost, "duration_ms": null, "estimated": 0})
    };
    assert_eq!(usage["data"], json!([row("large", 1, 0.25), row("small", 2, 0.003)]));
    assert_eq!((usage["total"]["requests"].clone(), usage["total"]["cost_usd"].clone()), (json!(3), json!(0.253)));
    assert_eq!(usage["truncated"], false);
    let days = stage.get("/api/usage").await.json();
    assert!(days["data"].as_array().expect("days").iter().all(|row| row["day"].as_str().is_some_and(|day| day.len() == 10)), "{days}");
    let past = stage.get("/api/usage?from=2020-01-01T00:00:00Z&to=2020-02-01T00:00:00Z").await.json();
    assert_eq!((past["data"].clone(), past["total"]["jobs"].clone()), (json!([]), json!(0)));
}

#[tokio::test]
async fn a_wrong_span_or_group_is_pointed_at() {
    let stage = Stage::new().await;

    for (query, pointer) in [
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "?to"),
        ("from=2024-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "?to"),
        ("from=yesterday", "?from"),
        ("group_by=hour", "?group_by"),
    ] {
        let answer = stage.get(&format!("/api/usage?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"), "{query}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
}
