//! Whose turn it is: what weight a user has, which jobs wait for a place and which were rung for. And the file
//! that a worker keeps locked while it lives, for those on its host to see that it does not.
//!
//! Every move of a job is paid for by the indexes that have to follow it, so those go that hardly anybody asks. Whether
//! an end reached Redis is no longer noted in the row: the doorbell, which stays until then, says it.

use crate::step::{migration, run, run_either};

const UP: &str = "
ALTER TABLE users ADD COLUMN queue_weight INTEGER;
ALTER TABLE workers ADD COLUMN lock_file TEXT;
DROP INDEX jobs_to_dispatch;
DROP INDEX jobs_waiting;
DROP INDEX jobs_waiting_of_user;
DROP INDEX jobs_to_finalize;
ALTER TABLE jobs DROP COLUMN finalized;
DROP INDEX jobs_of_user_by_state;
CREATE INDEX jobs_of_user_not_completed ON jobs (user_id, state, id) WHERE state <> 'completed';
CREATE INDEX jobs_without_place ON jobs (user_id, priority DESC, id) WHERE state = 'queued' AND NOT dispatched;
CREATE INDEX jobs_with_place ON jobs (id) WHERE state = 'queued' AND dispatched;
CREATE INDEX jobs_waiting_of_user ON jobs (user_id, priority DESC, id) WHERE state = 'queued';
";

// A name that is given is looked up by its own index. What follows a job goes with it by the statement that removes
// it, and not by a look at the job each time that something is added. (SQLite cannot take either back.)
const POSTGRES: &str = "
ALTER TABLE jobs DROP CONSTRAINT jobs_user_id_idempotency_key_key;
CREATE UNIQUE INDEX jobs_of_idempotency_key ON jobs (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
ALTER TABLE job_events DROP CONSTRAINT job_events_job_id_fkey;
ALTER TABLE job_log DROP CONSTRAINT job_log_job_id_fkey;
-- Each job passes through the indexes of those that wait and run, and leaves its traces there until they are swept: by
-- the number of jobs that passed, and not by how many there ever were.
ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
";

const POSTGRES_DOWN: &str = "
ALTER TABLE jobs RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
ALTER TABLE job_log ADD CONSTRAINT job_log_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE;
ALTER TABLE job_events ADD CONSTRAINT job_events_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE;
DROP INDEX jobs_of_idempotency_key;
ALTER TABLE jobs ADD CONSTRAINT jobs_user_id_idempotency_key_key UNIQUE (user_id, idempotency_key);
";

const DOWN: &str = "
DROP INDEX jobs_of_user_not_completed;
CREATE INDEX jobs_of_user_by_state ON jobs (user_id, state, id);
ALTER TABLE jobs ADD COLUMN finalized BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX jobs_to_finalize ON jobs (finished_at) WHERE NOT finalized AND state IN ('completed', 'failed', 'cancelled');
DROP INDEX jobs_waiting_of_user;
DROP INDEX jobs_with_place;
DROP INDEX jobs_without_place;
CREATE INDEX jobs_waiting_of_user ON jobs (user_id, priority, id) WHERE state = 'queued';
CREATE INDEX jobs_waiting ON jobs (priority, id) WHERE state = 'queued';
CREATE INDEX jobs_to_dispatch ON jobs (run_at) WHERE state = 'queued' AND NOT dispatched;
ALTER TABLE workers DROP COLUMN lock_file;
ALTER TABLE users DROP COLUMN queue_weight;
";

migration! {
    up(manager) {
        run(manager, UP).await?;
        run_either(manager, POSTGRES, "").await
    }
    down(manager) {
        run_either(manager, POSTGRES_DOWN, "").await?;
        run(manager, DOWN).await
    }
}
