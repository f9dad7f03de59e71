//! What was used and what it cost: one row for each attempt, and the running sum of each user's day.

use crate::step::{migration, run};

const UP: &str = "
CREATE TABLE usage_logs (
    id UUID PRIMARY KEY NOT NULL,
    job_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    user_id UUID NOT NULL,
    api_key_id UUID,
    session_id UUID,
    model TEXT,
    outcome TEXT NOT NULL,
    input_tokens BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0,
    cache_read_tokens BIGINT NOT NULL DEFAULT 0,
    cache_write_tokens BIGINT NOT NULL DEFAULT 0,
    cost_nano_usd BIGINT NOT NULL DEFAULT 0,
    estimated BOOLEAN NOT NULL DEFAULT FALSE,
    duration_ms BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    UNIQUE (job_id, attempt)
);
CREATE INDEX usage_logs_of_user ON usage_logs (user_id, created_at);
CREATE INDEX usage_logs_of_session ON usage_logs (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX usage_logs_of_key ON usage_logs (api_key_id, created_at) WHERE api_key_id IS NOT NULL;
CREATE INDEX usage_logs_by_age ON usage_logs (created_at);

CREATE TABLE spend (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    utc_day INTEGER NOT NULL,
    reserved_nano_usd BIGINT NOT NULL DEFAULT 0,
    spent_nano_usd BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, utc_day)
);
";

const DOWN: &str = "
DROP TABLE spend;
DROP TABLE usage_logs;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
