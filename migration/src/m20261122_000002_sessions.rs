//! Conversations, and the transcript each one goes on from.

use crate::step::{migration, run};

const UP: &str = "
CREATE TABLE sessions (
    id UUID PRIMARY KEY NOT NULL,
    user_id UUID NOT NULL REFERENCES users (id),
    title TEXT,
    model TEXT,
    system_prompt TEXT,
    tools TEXT,
    metadata TEXT NOT NULL DEFAULT '{}',
    archived BOOLEAN NOT NULL DEFAULT FALSE,
    deleted_at BIGINT,
    next_seq BIGINT NOT NULL DEFAULT 1,
    turns INTEGER NOT NULL DEFAULT 0,
    input_tokens BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0,
    cache_read_tokens BIGINT NOT NULL DEFAULT 0,
    cache_write_tokens BIGINT NOT NULL DEFAULT 0,
    cost_nano_usd BIGINT NOT NULL DEFAULT 0,
    workspace TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    last_activity_at BIGINT
);
CREATE INDEX sessions_of_user ON sessions (user_id, id);
CREATE INDEX sessions_to_purge ON sessions (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE transcripts (
    session_id UUID PRIMARY KEY NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    job_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    body BYTEA NOT NULL,
    bytes BIGINT NOT NULL,
    cli_version TEXT,
    updated_at BIGINT NOT NULL
);
";

const DOWN: &str = "
DROP TABLE transcripts;
DROP TABLE sessions;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
