//! What goes with a job's place in a trace: the words of those who began it, kept beside its `traceparent`.

use crate::step::{migration, run};

const UP: &str = "ALTER TABLE jobs ADD COLUMN tracestate TEXT;";

const DOWN: &str = "ALTER TABLE jobs DROP COLUMN tracestate;";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
