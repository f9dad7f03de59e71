//! Accounts that can be deleted, and a lock for the decision who is an admin.

use crate::step::{migration, run};

const UP: &str = "
ALTER TABLE users ADD COLUMN deleted_at BIGINT;
CREATE INDEX users_to_forget ON users (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX audit_log_of_action ON audit_log (action, id);
INSERT INTO settings (key, value, updated_at) VALUES ('admins', 'held while it is decided who is an admin', 0);
";

const DOWN: &str = "
DELETE FROM settings WHERE key = 'admins';
DROP INDEX audit_log_of_action;
DROP INDEX users_to_forget;
ALTER TABLE users DROP COLUMN deleted_at;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
