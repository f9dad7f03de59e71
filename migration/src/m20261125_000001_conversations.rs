//! What a conversation keeps between its turns beside the transcript: the files of its workspace, as a list
//! that names their contents. Its counts are those of its jobs and of `usage_logs`, so it keeps none itself.
//! And the names of the MCP servers: those a worker knows, and those a conversation may use.

use crate::step::{migration, run, run_either};

const UP: &str = "
CREATE TABLE workspaces (
    session_id UUID PRIMARY KEY NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    manifest BYTEA NOT NULL,
    files INTEGER NOT NULL,
    bytes BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
ALTER TABLE sessions DROP COLUMN workspace;
ALTER TABLE sessions DROP COLUMN turns;
ALTER TABLE sessions DROP COLUMN input_tokens;
ALTER TABLE sessions DROP COLUMN output_tokens;
ALTER TABLE sessions DROP COLUMN cache_read_tokens;
ALTER TABLE sessions DROP COLUMN cache_write_tokens;
ALTER TABLE sessions DROP COLUMN cost_nano_usd;
ALTER TABLE sessions DROP COLUMN last_activity_at;
ALTER TABLE sessions ADD COLUMN mcp_servers TEXT;
ALTER TABLE sessions ADD COLUMN purged_at BIGINT;
ALTER TABLE workers ADD COLUMN mcp_servers TEXT;
DROP INDEX sessions_to_purge;
CREATE INDEX sessions_to_purge ON sessions (deleted_at) WHERE deleted_at IS NOT NULL AND purged_at IS NULL;
-- Whether a turn has its turn is asked at every claim and of every waiting job: never by way of those that ended.
CREATE INDEX jobs_unended_of_session ON jobs (session_id, session_seq) WHERE state IN ('queued', 'running');
";

const DOWN: &str = "
DROP INDEX jobs_unended_of_session;
DROP INDEX sessions_to_purge;
CREATE INDEX sessions_to_purge ON sessions (deleted_at) WHERE deleted_at IS NOT NULL;
ALTER TABLE workers DROP COLUMN mcp_servers;
ALTER TABLE sessions DROP COLUMN purged_at;
ALTER TABLE sessions DROP COLUMN mcp_servers;
ALTER TABLE sessions ADD COLUMN last_activity_at BIGINT;
ALTER TABLE sessions ADD COLUMN cost_nano_usd BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cache_write_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cache_read_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN output_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN input_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN turns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN workspace TEXT;
DROP TABLE workspaces;
";

// What is packed does not get smaller: PostgreSQL would try each time.
const POSTGRES_UP: &str = "ALTER TABLE transcripts ALTER COLUMN body SET STORAGE EXTERNAL;";

const POSTGRES_DOWN: &str = "ALTER TABLE transcripts ALTER COLUMN body SET STORAGE EXTENDED;";

migration! {
    up(manager) {
        run(manager, UP).await?;
        run_either(manager, POSTGRES_UP, "").await
    }
    down(manager) {
        run_either(manager, POSTGRES_DOWN, "").await?;
        run(manager, DOWN).await
    }
}
