//! Whose turn it is: what weight a user has, which jobs wait for a place and which were rung for. And the file
//! that a worker keeps locked while it lives, for those on its host to see that it does not.

use crate::step::{migration, run};

const UP: &str = "
ALTER TABLE users ADD COLUMN queue_weight INTEGER;
ALTER TABLE workers ADD COLUMN lock_file TEXT;
DROP INDEX jobs_to_dispatch;
DROP INDEX jobs_waiting;
DROP INDEX jobs_waiting_of_user;
CREATE INDEX jobs_without_place ON jobs (user_id, priority DESC, id) WHERE state = 'queued' AND NOT dispatched;
CREATE INDEX jobs_with_place ON jobs (id) WHERE state = 'queued' AND dispatched;
CREATE INDEX jobs_waiting_of_user ON jobs (user_id, priority DESC, id) WHERE state = 'queued';
";

const DOWN: &str = "
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
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
