//! The user that the bootstrap key of the environment acts for. It has no password and cannot log in.

use crate::step::{migration, run_either};

const POSTGRES_UP: &str = "
INSERT INTO users (id, email, email_folded, name, created_at, updated_at)
VALUES ('00000000-0000-0000-0000-000000000001', 'user_bootstrap', 'user_bootstrap', 'Bootstrap key', 0, 0);
";

const SQLITE_UP: &str = "
INSERT INTO users (id, email, email_folded, name, created_at, updated_at)
VALUES (X'00000000000000000000000000000001', 'user_bootstrap', 'user_bootstrap', 'Bootstrap key', 0, 0);
";

const POSTGRES_DOWN: &str = "DELETE FROM users WHERE id = '00000000-0000-0000-0000-000000000001';";

const SQLITE_DOWN: &str = "DELETE FROM users WHERE id = X'00000000000000000000000000000001';";

migration! {
    up(manager) { run_either(manager, POSTGRES_UP, SQLITE_UP).await }
    down(manager) { run_either(manager, POSTGRES_DOWN, SQLITE_DOWN).await }
}
