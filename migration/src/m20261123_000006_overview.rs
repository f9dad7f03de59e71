//! What an operator looks at, over all users: jobs by their state and by their acceptance.

use crate::step::{migration, run};

const UP: &str = "
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_by_acceptance ON jobs (created_at);
";

const DOWN: &str = "
DROP INDEX jobs_by_acceptance;
DROP INDEX jobs_by_state;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
