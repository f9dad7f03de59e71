//! What an operator asks of a worker: to take no more jobs and to end.

use crate::step::{migration, run};

const UP: &str = "ALTER TABLE workers ADD COLUMN drain_requested BOOLEAN NOT NULL DEFAULT FALSE;";

const DOWN: &str = "ALTER TABLE workers DROP COLUMN drain_requested;";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
