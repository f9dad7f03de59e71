//! Chat jobs, the logs of those that ended, and the record of every move between states. Two triggers
//! keep what no statement may forget: a terminal row stays as it is, and every move is recorded.

use crate::step::{migration, run, run_either};

const UP: &str = "
CREATE TABLE jobs (
    id UUID PRIMARY KEY NOT NULL,
    user_id UUID NOT NULL REFERENCES users (id),
    api_key_id UUID,
    session_id UUID,
    session_seq BIGINT,
    idempotency_key TEXT,
    request_hash BYTEA,
    request TEXT NOT NULL,
    priority SMALLINT NOT NULL DEFAULT 0,
    traceparent TEXT,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed', 'cancelled')),
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    reclaims INTEGER NOT NULL DEFAULT 0,
    max_failures INTEGER NOT NULL,
    max_reclaims INTEGER NOT NULL,
    start_reason TEXT NOT NULL DEFAULT 'first',
    worker_id UUID,
    run_at BIGINT NOT NULL,
    queue_deadline_at BIGINT NOT NULL,
    cancel_requested_at BIGINT,
    dispatched BOOLEAN NOT NULL DEFAULT FALSE,
    finalized BOOLEAN NOT NULL DEFAULT FALSE,
    dead_letter BOOLEAN NOT NULL DEFAULT FALSE,
    streamed BOOLEAN NOT NULL DEFAULT FALSE,
    retry_of UUID,
    retried_as UUID,
    model TEXT,
    result TEXT,
    error TEXT,
    stderr_tail TEXT,
    usage TEXT,
    running_usage TEXT,
    cost_nano_usd BIGINT NOT NULL DEFAULT 0,
    reserved_nano_usd BIGINT NOT NULL DEFAULT 0,
    start_ms BIGINT,
    first_token_ms BIGINT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    UNIQUE (user_id, idempotency_key)
);
CREATE INDEX jobs_of_user ON jobs (user_id, id);
CREATE INDEX jobs_of_user_by_state ON jobs (user_id, state, id);
CREATE INDEX jobs_of_session ON jobs (session_id, session_seq) WHERE session_id IS NOT NULL;
CREATE UNIQUE INDEX jobs_one_running_of_session ON jobs (session_id) WHERE state = 'running';
CREATE INDEX jobs_to_dispatch ON jobs (run_at) WHERE state = 'queued' AND NOT dispatched;
CREATE INDEX jobs_waiting ON jobs (priority, id) WHERE state = 'queued';
CREATE INDEX jobs_waiting_of_user ON jobs (user_id, priority, id) WHERE state = 'queued';
CREATE INDEX jobs_by_queue_deadline ON jobs (queue_deadline_at) WHERE state = 'queued';
CREATE INDEX jobs_of_worker ON jobs (worker_id) WHERE state = 'running';
CREATE INDEX jobs_to_finalize ON jobs (finished_at) WHERE NOT finalized AND state IN ('completed', 'failed', 'cancelled');
CREATE INDEX jobs_by_end ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_with_idempotency_key ON jobs (created_at) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_dead_letters ON jobs (id) WHERE dead_letter;

CREATE TABLE job_log (
    job_id UUID PRIMARY KEY NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    events BYTEA NOT NULL,
    n_events INTEGER NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX job_log_by_age ON job_log (created_at);

-- The key is a law as well: an attempt is claimed once, given back once and ends once.
CREATE TABLE job_events (
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    to_state TEXT NOT NULL,
    from_state TEXT,
    worker_id UUID,
    reason TEXT,
    at BIGINT NOT NULL,
    PRIMARY KEY (job_id, attempt, to_state)
);
";

const POSTGRES_TRIGGERS: &str = "
CREATE FUNCTION jobs_terminal_row_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'job % has ended as % and stays as it is', OLD.id, OLD.state;
END $$;
CREATE TRIGGER jobs_terminal_row_stays BEFORE UPDATE OF state, attempt, result, error ON jobs FOR EACH ROW
    WHEN (OLD.state IN ('completed', 'failed', 'cancelled') AND
          (NEW.state, NEW.attempt, NEW.result, NEW.error) IS DISTINCT FROM (OLD.state, OLD.attempt, OLD.result, OLD.error))
    EXECUTE FUNCTION jobs_terminal_row_stays();

CREATE FUNCTION jobs_record_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_events (job_id, attempt, to_state, from_state, worker_id, reason, at)
    VALUES (NEW.id, NEW.attempt, NEW.state, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.worker_id,
            CASE WHEN NEW.state = 'queued' THEN NEW.start_reason END, (extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_record_birth AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION jobs_record_move();
CREATE TRIGGER jobs_record_move AFTER UPDATE OF state ON jobs FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION jobs_record_move();
";

const SQLITE_TRIGGERS: &str = "
CREATE TRIGGER jobs_terminal_row_stays BEFORE UPDATE OF state, attempt, result, error ON jobs FOR EACH ROW
    WHEN OLD.state IN ('completed', 'failed', 'cancelled') AND
         (NEW.state IS NOT OLD.state OR NEW.attempt IS NOT OLD.attempt OR NEW.result IS NOT OLD.result OR NEW.error IS NOT OLD.error)
BEGIN
    SELECT RAISE(ABORT, 'job has ended and stays as it is');
END;

CREATE TRIGGER jobs_record_birth AFTER INSERT ON jobs FOR EACH ROW
BEGIN
    INSERT INTO job_events (job_id, attempt, to_state, from_state, worker_id, reason, at)
    VALUES (NEW.id, NEW.attempt, NEW.state, NULL, NEW.worker_id, NEW.start_reason, CAST(unixepoch('subsec') * 1000 AS INTEGER));
END;
CREATE TRIGGER jobs_record_move AFTER UPDATE OF state ON jobs FOR EACH ROW WHEN OLD.state IS NOT NEW.state
BEGIN
    INSERT INTO job_events (job_id, attempt, to_state, from_state, worker_id, reason, at)
    VALUES (NEW.id, NEW.attempt, NEW.state, OLD.state, NEW.worker_id,
            CASE WHEN NEW.state = 'queued' THEN NEW.start_reason END, CAST(unixepoch('subsec') * 1000 AS INTEGER));
END;
";

const DOWN: &str = "
DROP TABLE job_events;
DROP TABLE job_log;
DROP TABLE jobs;
";

const POSTGRES_DOWN: &str = "
DROP FUNCTION jobs_record_move;
DROP FUNCTION jobs_terminal_row_stays;
";

migration! {
    up(manager) {
        run(manager, UP).await?;
        run_either(manager, POSTGRES_TRIGGERS, SQLITE_TRIGGERS).await
    }
    down(manager) {
        run(manager, DOWN).await?;
        run_either(manager, POSTGRES_DOWN, "").await
    }
}
